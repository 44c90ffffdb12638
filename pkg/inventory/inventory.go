// Package inventory counts what a host has and what is claimed of it, and says
// whether one more guest fits. It is pure: the agent brings the facts.
//
// The rules are nova's (nova.md section 8): used is the sum of what the records
// claim plus what is reserved for the host; a total times its allocation ratio
// bounds it.
package inventory

import (
	"fmt"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Config holds the reservations and ratios; the names are nova's options.
type Config struct {
	ReservedHostMemoryMiB int     // reserved_host_memory_mb, default 512
	ReservedHostCPUs      int     // reserved_host_cpus, default 0
	CPUAllocationRatio    float64 // cpu_allocation_ratio, default 16
	RAMAllocationRatio    float64 // ram_allocation_ratio, default 1.5
}

// WithDefaults fills what is zero. A negative reservation means none.
func (c Config) WithDefaults() Config {
	if c.ReservedHostMemoryMiB == 0 {
		c.ReservedHostMemoryMiB = 512
	}
	if c.CPUAllocationRatio == 0 {
		c.CPUAllocationRatio = 16
	}
	if c.RAMAllocationRatio == 0 {
		c.RAMAllocationRatio = 1.5
	}
	c.ReservedHostMemoryMiB = max(c.ReservedHostMemoryMiB, 0)
	return c
}

// Taken is what instances and claims of guests that are to come take of a host: a
// running total, for each build asks and there may be thousands.
type Taken struct{ Instances, VCPUs, MemoryMiB int }

// Add gives the total with one guest more.
func (t Taken) Add(s instance.Spec) Taken {
	return Taken{t.Instances + 1, t.VCPUs + s.VCPUs, t.MemoryMiB + s.MemoryMiB}
}

// Without gives the total with one guest less, which must have been added.
func (t Taken) Without(s instance.Spec) Taken {
	return Taken{t.Instances - 1, t.VCPUs - s.VCPUs, t.MemoryMiB - s.MemoryMiB}
}

// Count adds up what the host has and what is taken of it. foreign is the number of
// domains that are not ours: they are counted and nothing else is known of them.
func Count(c Config, h virt.Host, t Taken, foreign int) api.Resources {
	return api.Resources{
		VCPUs: h.VCPUs, VCPUsUsed: c.ReservedHostCPUs + t.VCPUs,
		MemoryMiB: h.MemoryMiB, MemoryMiBUsed: c.ReservedHostMemoryMiB + t.MemoryMiB,
		DiskGiB: h.DiskGiB, DiskFreeGiB: h.DiskFreeGiB, Foreign: foreign, Instances: t.Instances,
	}
}

// Reasons lists everything that keeps spec from fitting beside what is used; none: it fits.
func Reasons(c Config, r api.Resources, spec instance.Spec) []string {
	var why []string
	if limit := int(float64(r.VCPUs) * c.CPUAllocationRatio); r.VCPUsUsed+spec.VCPUs > limit {
		why = append(why, fmt.Sprintf("vcpus: %d wanted, %d of %d left (%d × ratio %g)",
			spec.VCPUs, max(limit-r.VCPUsUsed, 0), limit, r.VCPUs, c.CPUAllocationRatio))
	}
	if limit := int(float64(r.MemoryMiB) * c.RAMAllocationRatio); r.MemoryMiBUsed+spec.MemoryMiB > limit {
		why = append(why, fmt.Sprintf("memory: %d MiB wanted, %d of %d MiB left (%d × ratio %g, %d reserved)",
			spec.MemoryMiB, max(limit-r.MemoryMiBUsed, 0), limit, r.MemoryMiB, c.RAMAllocationRatio, c.ReservedHostMemoryMiB))
	}
	disk := 0
	for _, d := range spec.Disks {
		if d.Source.Image != "" {
			disk += d.SizeGiB
		}
	}
	if disk > r.DiskFreeGiB {
		why = append(why, fmt.Sprintf("disk: %d GiB wanted, %d GiB free", disk, r.DiskFreeGiB))
	}
	return why
}
