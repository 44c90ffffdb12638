package lab_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

// ownDisk is a raw disk in a folder that each host has for itself.
const ownDisk = "/var/lib/libvirt/images/own.raw"

// instances is where the lab's agents keep instances, in each host.
const instances = "/var/lib/libvirt/instances"

// pattern is written into a disk and looked for on the other host.
type pattern struct{ byte, offset, length string }

// qemuIO runs one command of qemu-io on a disk.
func qemuIO(t *testing.T, path, command string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", strings.TrimPrefix(filepath.Ext(path), "."), "-c", command, path).CombinedOutput()
	if err != nil || strings.Contains(string(out), "Pattern verification failed") {
		t.Errorf("qemu-io %q on %s: %v\n%s", command, path, err, out)
	}
}

func (p pattern) write(t *testing.T, path string) {
	t.Helper()
	qemuIO(t, path, fmt.Sprintf("write -P %s %s %s", p.byte, p.offset, p.length))
}

func (p pattern) verify(t *testing.T, path string) {
	t.Helper()
	qemuIO(t, path, fmt.Sprintf("read -P %s %s %s", p.byte, p.offset, p.length))
}

// withDisks gives a guest an overlay on an image that both hosts have, and a raw file
// that only the first host has; both hold something.
func (s *stage) withDisks(t *testing.T, n int) (spec instance.Spec, overlay func(*lab.Host) string) {
	t.Helper()
	spec, _ = s.guest(n)
	base := image(t, s.Lab, "base", "qcow2")
	for _, h := range s.Hosts() {
		must(t, "folder", os.MkdirAll(filepath.Dir(h.Outside(ownDisk)), 0o755))
	}
	raw := s.Host(1).Outside(ownDisk)
	must(t, "disk", os.WriteFile(raw, nil, 0o600))
	must(t, "disk", os.Truncate(raw, 64<<20+512)) // not a whole number of anything
	pattern{"0xa5", "1M", "48M"}.write(t, raw)
	spec.Disks = []instance.Disk{
		{Source: instance.DiskSource{Image: base}, SizeGiB: 1}, {Source: instance.DiskSource{File: ownDisk}, Format: "raw"},
	}
	return spec, func(h *lab.Host) string { return h.Outside(filepath.Join(instances, spec.UUID, "disk0.qcow2")) }
}

// stop stops the guest, so that its disks can be looked at.
func (s *stage) stop(t *testing.T, spec instance.Spec) {
	t.Helper()
	task, err := s.c.StopInstance(t.Context(), spec.UUID, false)
	s.do(t, task, err)
}

// gone checks that nothing of a guest's disks is on a host.
func gone(t *testing.T, h *lab.Host, spec instance.Spec) {
	t.Helper()
	for _, path := range []string{ownDisk, filepath.Join(instances, spec.UUID)} {
		if _, err := os.Stat(h.Outside(path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s has %s: %v", h.Name, path, err)
		}
	}
}

// Block migration by RPC: an overlay whose base both hosts have, and a disk of the
// source's own. First aborted while the disks are copied, then carried out.
func TestBlockMigration(t *testing.T) {
	s := newStage(t)
	ctx := t.Context()
	spec, overlay := s.withDisks(t, 20)
	task, err := s.c.BuildAndRunInstance(ctx, "h1", spec)
	s.do(t, task, err)
	s.stop(t, spec)
	marks := pattern{"0x5a", "512M", "8M"}
	marks.write(t, overlay(s.Host(1)))
	task, err = s.c.StartInstance(ctx, spec.UUID)
	s.do(t, task, err)

	reasons, err := s.c.CheckMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h2", BlockMigration: new(false)})
	if err != nil || len(reasons) != 1 || !strings.HasPrefix(reasons[0], "InvalidSharedStorage: disks vda, vdb ") {
		t.Errorf("check without block migration = %q, %v", reasons, err)
	}
	s.abortCopy(t, spec)
	gone(t, s.Host(2), spec)
	s.only(t, spec, 1)

	task, err = s.c.LiveMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h2"})
	_, took := s.do(t, task, err)
	m, err := s.c.ShowMigration(ctx, task.Migration())
	if err != nil || m.Status != instance.MigrationCompleted || m.Progress.Disk.Total < 64<<20 {
		t.Fatalf("the migration: %s, disk %+v, %v", m.Status, m.Progress.Disk, err)
	}
	t.Logf("moved in %s: %d MiB in all, disk %+v, downtime %d ms", took.Round(time.Millisecond), m.Result.Bytes>>20, m.Progress.Disk, m.Result.DowntimeMS)
	s.only(t, spec, 2)
	gone(t, s.Host(1), spec)
	s.stop(t, spec)
	raw := s.Host(2).Outside(ownDisk)
	pattern{"0xa5", "1M", "48M"}.verify(t, raw)
	if info, err := os.Stat(raw); err != nil || info.Size() != 64<<20+512 {
		t.Errorf("the raw disk has %d bytes, %v, want as many as before", info.Size(), err)
	}
	marks.verify(t, overlay(s.Host(2)))
	if got := startOf(t, overlay(s.Host(2)), 12); got != "base of base" {
		t.Errorf("the overlay begins with %q: is its base lost?", got)
	}
	if info, err := os.Stat(overlay(s.Host(2))); err != nil || info.Size() > 32<<20 {
		t.Errorf("the overlay takes %d bytes, %v: its base was copied too", info.Size(), err)
	}
	task, err = s.c.TerminateInstance(ctx, spec.UUID)
	s.do(t, task, err)
}

// abortCopy aborts a migration that is held at its disks.
func (s *stage) abortCopy(t *testing.T, spec instance.Spec) {
	t.Helper()
	ctx := t.Context()
	slow, err := s.c.LiveMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h2", BandwidthMiB: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Close() }()
	s.eventually(t, 20*time.Second, "disks to be copied", func() error {
		m, err := s.c.FindMigration(ctx, slow.Migration())
		if err == nil && m.Progress.Disk.Processed == 0 {
			err = fmt.Errorf("it is %s, disk %+v", m.Status, m.Progress.Disk)
		}
		return err
	})
	for _, path := range []string{ownDisk, filepath.Join(instances, spec.UUID, "disk0.qcow2")} {
		if _, err := os.Stat(s.Host(2).Outside(path)); err != nil {
			t.Errorf("while it is copied: %v", err)
		}
	}
	task, err := s.c.AbortMigration(ctx, slow.Migration())
	s.do(t, task, err)
	if _, err := slow.Wait(ctx); !errors.Is(err, fault.Cancelled) {
		t.Errorf("the aborted migration ended with %v, want cancelled", err)
	}
}
