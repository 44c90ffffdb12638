package libvirt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

func TestIdentityIsOfTheFileItself(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(at(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"link": "a", "nowhere": "missing"} {
		if err := os.Symlink(at(to), at(from)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(at("a"), at("hard")); err != nil {
		t.Fatal(err)
	}
	a := identity(at("a"))
	if !strings.HasPrefix(a, "kernel ") {
		t.Fatalf("identity of a file of this machine = %q, want the running kernel in it", a)
	}
	for name, same := range map[string]bool{"a": true, "link": true, "hard": true, "b": false, ".": false} {
		if got := identity(at(name)); got == "" || (got == a) != same {
			t.Errorf("identity of %s = %q, of a %q; the same: want %t", name, got, a, same)
		}
	}
	for _, path := range []string{at("missing"), at("nowhere"), "/dev/null"} {
		if got := identity(path); got != "" {
			t.Errorf("identity of %s = %q, want none", path, got)
		}
	}
}

func TestMountOf(t *testing.T) {
	const table = `22 28 0:20 / /sys rw,nosuid shared:7 - sysfs none rw
36 28 0:53 / /srv/img rw,relatime shared:2 master:1 - nfs4 nas:/export/img rw,vers=4.2
37 28 8:1 / / rw - ext4 /dev/sda1 rw
broken
`
	for device, want := range map[string]mount{
		"0:53": {"nfs4", "nas:/export/img"}, "8:1": {"ext4", "/dev/sda1"}, "9:9": {}, "": {},
	} {
		if got := mountOf(table, device); got != want {
			t.Errorf("mountOf(%q) = %+v, want %+v", device, got, want)
		}
	}
	for kind, want := range map[string]bool{"fuse.sshfs": true, "cifs": true, "ext4": false, "xfs": false, "overlay": false} {
		if remote(kind) != want {
			t.Errorf("remote(%s) = %t", kind, !want)
		}
	}
}

func TestPoolIdentity(t *testing.T) {
	rbd := `<pool type='rbd'><name>%</name><source><name>vms</name><host name='m1' port='3300'/><host name='m2'/></source></pool>`
	swapped := `<pool type='rbd'><name>other</name><source><host name='m2'/><host name='m1' port='3300'/><name>vms</name></source></pool>`
	if a, b := poolIdentity(rbd), poolIdentity(swapped); a == "" || a != b {
		t.Errorf("the same pool is %q and %q", a, b)
	}
	for _, xml := range []string{`<pool type='dir'><target><path>/p</path></target></pool>`, `<pool type='dir'><source/></pool>`, "no pool", `<pool type='rbd'/>`} {
		if got := poolIdentity(xml); got != "" {
			t.Errorf("poolIdentity(%s) = %q, want none", xml, got)
		}
	}
}

// A disk that would be copied onto a file that is here is a reason against the guest, and
// so is a shared one that is not here, and one for which there is no room.
func TestIncomingDisksAreChecked(t *testing.T) {
	dir := t.TempDir()
	withRig(t, nil, func(r rig) {
		t := r.t
		disk := func(name string) instance.Disk {
			return instance.Disk{Source: instance.DiskSource{File: filepath.Join(dir, name)}}
		}
		if err := os.WriteFile(filepath.Join(dir, "old"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		def := virt.Definition{
			Migration: uuid.NewString(), Spec: instance.Spec{UUID: uuid.NewString(), Disks: []instance.Disk{disk("old"), disk("shared"), disk("new")}},
			Copies: []instance.DiskFacts{{Target: "vda", CapacityBytes: 1}, {Target: "vdc", CapacityBytes: 1 << 60}},
		}
		def.Spec.Disks[1].Shared = true
		found := &findings{}
		if err := r.d.checkDisks(t.Context(), found, def); err != nil {
			t.Fatal(err)
		}
		text := strings.Join(found.list, "\n")
		for _, want := range []string{"old is here already", "shared is marked as shared, but it is not here", "GiB are free"} {
			if !strings.Contains(text, want) {
				t.Errorf("reasons:\n%s\nwant %q", text, want)
			}
		}
		if strings.Contains(text, "/new") {
			t.Errorf("reasons:\n%s\nthe new disk is made, nothing is against it", text)
		}
	})
}

// What was copied away is removed; what was not, is not.
func TestRemoveDisks(t *testing.T) {
	dir := t.TempDir()
	withRig(t, nil, func(r rig) {
		t := r.t
		def := virt.Definition{Spec: instance.Spec{UUID: uuid.NewString()}}
		for _, name := range []string{"a", "b"} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			def.Spec.Disks = append(def.Spec.Disks, instance.Disk{Source: instance.DiskSource{File: path}})
		}
		for range 2 {
			if err := r.d.RemoveDisks(t.Context(), def, []string{"vda"}); err != nil {
				t.Fatal(err)
			}
		}
		if exists(filepath.Join(dir, "a")) || !exists(filepath.Join(dir, "b")) {
			t.Error("vda must be gone and vdb must stay")
		}
		id := uuid.New()
		r.arrivingDomain(t, id, "", 1, 1) // it runs
		def.Spec.UUID = id.String()
		wantKind(t, "RemoveDisks of a guest that runs", r.d.RemoveDisks(t.Context(), def, []string{"vdb"}), fault.Conflict)
	})
}
