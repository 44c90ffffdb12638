package migration

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

func TestPlanDisks(t *testing.T) {
	own := func(target, identity string) instance.DiskFacts {
		return instance.DiskFacts{Target: target, CapacityBytes: 1 << 30, Identity: identity}
	}
	there := func(identities ...string) instance.StorageFacts {
		f := instance.StorageFacts{}
		for _, id := range identities {
			f.Disks = append(f.Disks, instance.DiskFacts{Identity: id})
		}
		return f
	}
	overlay, file := instance.Disk{Source: instance.DiskSource{Image: "/i"}}, instance.Disk{Source: instance.DiskSource{File: "/f"}}
	marked, readOnly := overlay, file
	marked.Shared, readOnly.ReadOnly = true, true
	cases := []struct {
		name        string
		disks       []instance.Disk
		here, there instance.StorageFacts
		copies      []string
		keep        bool
		auto        []string // the begin of each reason without block_migration …
		asked       []string // … with true …
		ruledOut    []string // … and with false
	}{
		{name: "none"},
		{
			name: "local ones", disks: []instance.Disk{overlay, file},
			here: instance.StorageFacts{Disks: []instance.DiskFacts{own("vda", "a"), own("vdb", "")}}, there: there("b", ""),
			copies: []string{"vda", "vdb"}, ruledOut: []string{"InvalidSharedStorage: disks vda, vdb"},
		},
		{
			name: "marked as shared, and read-only", disks: []instance.Disk{marked, readOnly},
			here: instance.StorageFacts{Disks: []instance.DiskFacts{own("vda", ""), own("vdb", "")}},
			keep: true, asked: []string{"InvalidLocalStorage"},
		},
		{
			name: "shared by identity, beside a local one", disks: []instance.Disk{overlay, file},
			here: instance.StorageFacts{Disks: []instance.DiskFacts{own("vda", "nfs"), own("vdb", "x")}}, there: there("nfs", ""),
			copies: []string{"vdb"}, keep: true, ruledOut: []string{"InvalidSharedStorage: disks vdb "},
		},
		{
			name: "a file shared by identity", disks: []instance.Disk{file},
			here: instance.StorageFacts{Disks: []instance.DiskFacts{own("vda", "nfs")}}, there: there("nfs"),
			asked: []string{"InvalidLocalStorage"},
		},
		{
			name: "the folder is one", here: instance.StorageFacts{Folder: "nfs"}, there: instance.StorageFacts{Folder: "nfs"}, keep: true,
		},
		{
			name: "a source that tells nothing", disks: []instance.Disk{file, marked},
			keep: true, auto: []string{"disk 0 (/f) is not shared, and its size"},
			asked: []string{"disk 0", "InvalidLocalStorage"}, ruledOut: []string{"disk 0"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := instance.Spec{Disks: c.disks}
			p := planDisks(s, c.here, c.there)
			if diff := cmp.Diff(c.copies, p.targets()); diff != "" || p.InFolder != c.keep {
				t.Errorf("copies (-want +got):\n%s keeps the folder: %t, want %t", diff, p.InFolder, c.keep)
			}
			for _, b := range []struct {
				block *bool
				want  []string
			}{{nil, c.auto}, {new(true), c.asked}, {new(false), c.ruledOut}} {
				got := p.reasons(s, b.block)
				if len(got) != len(b.want) {
					t.Errorf("reasons %q, want %q", got, b.want)
					continue
				}
				for i := range got {
					if !strings.HasPrefix(got[i], b.want[i]) {
						t.Errorf("reason %q, want %q…", got[i], b.want[i])
					}
				}
			}
			if got := p.disagreement(p.targets()); len(got) > 0 {
				t.Errorf("both hosts mean the same, but: %q", got)
			}
		})
	}
}

func TestDisagreementNamesBothKinds(t *testing.T) {
	p := diskPlan{Copies: []instance.DiskFacts{{Target: "vda"}}, Shared: []string{"vdb"}}
	got := p.disagreement([]string{"vdb"})
	if len(got) != 2 || !strings.Contains(got[0], "vda") || !strings.Contains(got[1], "vdb") {
		t.Errorf("disagreement = %q, want vda, which would be missing, and vdb, which would be overwritten", got)
	}
}

func TestTargetsOfPicked(t *testing.T) {
	disks := []instance.DiskFacts{{Target: "vda", CapacityBytes: 5 << 30}, {Target: "vdb", CapacityBytes: 7}}
	if diff := cmp.Diff(disks[1:], pick(disks, []string{"vdb", "vdz"})); diff != "" {
		t.Errorf("pick (-want +got):\n%s", diff)
	}
	if got := DataGB(1024, capacities(disks)); got != 2+5+2 {
		t.Errorf("DataGB of them = %v, want 9: none below 2", got)
	}
}
