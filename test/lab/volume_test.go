package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

// poolDir is the folder of the storage pool "vols", in each host.
const poolDir = "/var/lib/libvirt/vols"

// pool makes the storage pool on a host.
func pool(t *testing.T, h *lab.Host) {
	t.Helper()
	virsh(t, h, "pool-define-as", "vols", "dir", "--target", poolDir)
	virsh(t, h, "pool-build", "vols")
	virsh(t, h, "pool-start", "vols")
}

func volumes(t *testing.T, h *lab.Host) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(virsh(t, h, "vol-list", "vols")) {
		if words := strings.Fields(line); len(words) > 0 {
			names = append(names, words[0])
		}
	}
	slices.Sort(names)
	return names
}

// withVolumes gives a guest two volumes that only the first host has, raw and qcow2, both holding something; a disk that
// both hosts reach; and a read-only one of which each host has its own.
func (s *stage) withVolumes(t *testing.T, n int) instance.Spec {
	t.Helper()
	spec, _ := s.guest(n)
	for _, h := range s.Hosts() {
		pool(t, h)
		own := h.Outside("/var/lib/libvirt/images/cd.raw")
		must(t, "folder", os.MkdirAll(filepath.Dir(own), 0o755))
		must(t, "disk", os.WriteFile(own, make([]byte, 1<<20), 0o644))
	}
	h := s.Host(1)
	virsh(t, h, "vol-create-as", "vols", "own.raw", "67109376", "--format", "raw") // not a whole number of MiB
	virsh(t, h, "vol-create-as", "vols", "own.qcow2", "128M", "--format", "qcow2")
	pattern{"0xa5", "1M", "16M"}.write(t, h.Outside(poolDir+"/own.raw"))
	pattern{"0x5a", "64M", "8M"}.write(t, h.Outside(poolDir+"/own.qcow2"))
	spec.Disks = []instance.Disk{
		{Source: instance.DiskSource{Volume: "vols/own.raw"}, Format: "raw"},
		{Source: instance.DiskSource{Volume: "vols/own.qcow2"}, Format: "qcow2"},
		{Source: instance.DiskSource{File: image(t, s.Lab, "common")}, Format: "raw", Shared: true},
		{Source: instance.DiskSource{File: "/var/lib/libvirt/images/cd.raw"}, Format: "raw", ReadOnly: true},
	}
	return spec
}

// Block migration of storage volumes: the destination makes them through its libvirt, as large as the guest sees them.
// What both hosts reach and what is read-only is not copied, without anybody saying so; with nothing to copy there is no
// copying at all.
func volumesMove(t *testing.T) {
	s := newStage(t)
	ctx := t.Context()
	spec := s.withVolumes(t, 30)
	task, err := s.c.BuildAndRunInstance(ctx, "h1", spec)
	s.do(t, task, err)
	reasons, err := s.c.CheckMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h2", BlockMigration: new(false)})
	if err != nil || len(reasons) != 1 || !strings.HasPrefix(reasons[0], "InvalidSharedStorage: disks vda, vdb ") {
		t.Errorf("check without block migration = %q, %v; want vda and vdb, and no others", reasons, err)
	}

	held := s.begin(t, spec, api.MigrateArgs{Dest: "h2", BandwidthMiB: 2}, func(m instance.Migration) bool { return m.Progress.Disk.Processed > 0 })
	if got := volumes(t, s.Host(2)); !slices.Equal(got, []string{"own.qcow2", "own.raw"}) {
		t.Errorf("while disks are copied h2 has the volumes %v", got)
	}
	abort, err := s.c.AbortMigration(ctx, held.Migration())
	s.do(t, abort, err)
	if _, err := held.Wait(ctx); err == nil {
		t.Error("the aborted migration has completed")
	}
	if got := volumes(t, s.Host(2)); len(got) != 0 {
		t.Errorf("after the abort h2 has the volumes %v", got)
	}
	s.only(t, spec, 1)

	moved := s.begin(t, spec, api.MigrateArgs{Dest: "h2"}, func(m instance.Migration) bool { return m.Phase == "perform" || m.Status.Ended() })
	m := s.end(t, moved)
	if total := m.Progress.Disk.Total; total != 67109376+128<<20 {
		t.Errorf("disks of %d bytes were copied, want the capacities of both volumes", total)
	}
	s.only(t, spec, 2)
	if got := volumes(t, s.Host(1)); len(got) != 0 {
		t.Errorf("afterwards h1 has the volumes %v", got)
	}
	s.stop(t, spec)
	pattern{"0xa5", "1M", "16M"}.verify(t, s.Host(2).Outside(poolDir+"/own.raw"))
	pattern{"0x5a", "64M", "8M"}.verify(t, s.Host(2).Outside(poolDir+"/own.qcow2"))
	for name, want := range map[string]string{"own.raw": "67109376", "own.qcow2": fmt.Sprint(128 << 20)} {
		if got := virsh(t, s.Host(2), "vol-info", "--bytes", "--pool", "vols", name); !strings.Contains(got, want) {
			t.Errorf("volume %s on h2: %s; want a capacity of %s", name, got, want)
		}
	}
	s.withoutCopies(t)
}

// withoutCopies moves a guest whose only disks both hosts reach: asked to copy them it is refused, left alone nothing is
// copied.
func (s *stage) withoutCopies(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	spec, address := s.guest(31)
	spec.Disks = []instance.Disk{{Source: instance.DiskSource{File: image(t, s.Lab, "both")}, Format: "raw", Shared: true}}
	task, err := s.c.BuildAndRunInstance(ctx, "h1", spec)
	s.do(t, task, err)
	must(t, "ping", lab.WaitPing(ctx, address, 30*time.Second))
	reasons, err := s.c.CheckMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h2", BlockMigration: new(true)})
	if err != nil || len(reasons) != 1 || !strings.HasPrefix(reasons[0], "InvalidLocalStorage: ") {
		t.Errorf("check with block migration = %q, %v", reasons, err)
	}
	task, err = s.c.LiveMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h2"})
	must(t, "live_migration", err)
	if m := s.end(t, task); m.Progress.Disk.Total != 0 {
		t.Errorf("disk %+v of a guest without disks of its own", m.Progress.Disk)
	}
}
