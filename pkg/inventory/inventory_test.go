package inventory_test

import (
	"strings"
	"testing"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/inventory"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

func TestReasons(t *testing.T) {
	c := inventory.Config{CPUAllocationRatio: 2, RAMAllocationRatio: 1, ReservedHostMemoryMiB: 100}.WithDefaults()
	host := virt.Host{VCPUs: 4, MemoryMiB: 1000, DiskGiB: 10, DiskFreeGiB: 5}
	gone := instance.Spec{VCPUs: 3, MemoryMiB: 300}
	there := inventory.Taken{}.Add(gone).Add(instance.Spec{VCPUs: 4, MemoryMiB: 400}).Without(gone)
	overlay := func(gib int) []instance.Disk {
		return []instance.Disk{{Source: instance.DiskSource{Image: "/i"}, SizeGiB: gib}}
	}
	cases := []struct {
		name string
		spec instance.Spec
		want []string
	}{
		{"fits to the last", instance.Spec{VCPUs: 4, MemoryMiB: 500, Disks: overlay(5)}, nil},
		{"one cpu too many", instance.Spec{VCPUs: 5, MemoryMiB: 500}, []string{"vcpus: 5 wanted, 4 of 8 left"}},
		{"one MiB too many", instance.Spec{VCPUs: 1, MemoryMiB: 501}, []string{"memory: 501 MiB wanted, 500 of 1000 MiB left"}},
		{"disk", instance.Spec{VCPUs: 1, MemoryMiB: 1, Disks: overlay(6)}, []string{"disk: 6 GiB wanted, 5 GiB free"}},
		{"all at once", instance.Spec{VCPUs: 99, MemoryMiB: 9999, Disks: overlay(99)}, []string{"vcpus", "memory", "disk"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got := inventory.Reasons(c, inventory.Count(c, host, there, 2), tc.spec)
			if len(got) != len(tc.want) {
				t.Fatalf("Reasons = %q, want %d", got, len(tc.want))
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tc.want[i]) {
					t.Errorf("reason %d = %q, want %q…", i, got[i], tc.want[i])
				}
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	c := inventory.Config{}.WithDefaults()
	if c.ReservedHostMemoryMiB != 512 || c.CPUAllocationRatio != 16 || c.RAMAllocationRatio != 1.5 {
		t.Errorf("defaults = %+v, want nova's 512, 16, 1.5", c)
	}
	if got := (inventory.Config{ReservedHostMemoryMiB: -1}).WithDefaults().ReservedHostMemoryMiB; got != 0 {
		t.Errorf("a negative reservation = %d, want 0", got)
	}
}
