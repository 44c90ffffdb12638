package fake

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// defaultDisk is the size of a disk whose spec tells none.
const defaultDisk = 1 << 30

func capacity(d instance.Disk) uint64 {
	if d.SizeGiB <= 0 {
		return defaultDisk
	}
	return unsigned(int64(d.SizeGiB)) << 30
}

// Storage gives the facts of a definition's disks. Hosts with the same Config.Storage
// reach the same ones; without it every host has its own.
func (d *Driver) Storage(ctx context.Context, def virt.Definition) (instance.StorageFacts, error) {
	h, id := d.host, def.Spec.UUID
	return ask(ctx, d, "Storage", id, func() (instance.StorageFacts, error) {
		facts := instance.StorageFacts{}
		if h.cfg.Storage != "" {
			facts.Folder = "fake:" + h.cfg.Storage
		}
		for i, target := range domxml.Targets(def.Spec.Disks) {
			f := instance.DiskFacts{Target: target, Format: domxml.Format(def.Spec.Disks[i])}
			if h.domains[id] != nil {
				f.CapacityBytes = capacity(def.Spec.Disks[i])
			}
			if facts.Folder != "" {
				f.Identity = fmt.Sprintf("%s/%s/%s", facts.Folder, id, target)
			}
			facts.Disks = append(facts.Disks, f)
		}
		return facts, nil
	})
}

// RemoveDisks removes disks; the fake keeps none, it only refuses what a driver must.
func (d *Driver) RemoveDisks(ctx context.Context, def virt.Definition, targets []string) error {
	id := def.Spec.UUID
	_, err := ask(ctx, d, "RemoveDisks", id, func() (struct{}, error) {
		if dom := d.host.domains[id]; dom != nil && dom.active() && len(targets) > 0 {
			return struct{}{}, conflict("RemoveDisks", id, "the domain is "+string(dom.state)+": its disks are in use")
		}
		return struct{}{}, nil
	})
	return err
}

// diskTotal is what the migration copies of disks, in bytes.
func (m *migration) diskTotal() uint64 {
	total := uint64(0)
	if len(m.req.Disks) == 0 {
		return total
	}
	disks := m.dom.running.Spec.Disks
	for i, target := range domxml.Targets(disks) {
		if slices.Contains(m.req.Disks, target) {
			total += capacity(disks[i])
		}
	}
	return total
}

// disksLocked copies the disks, as libvirt does before the memory moves.
func (m *migration) disksLocked(now time.Time) {
	m.setup = now.Sub(m.began)
	if m.diskBytes == 0 {
		m.preCopyLocked(now)
		return
	}
	m.stage = stageDisks
	m.flowAt = now
	m.diskRate = m.host.cfg.bandwidth(m.req.BandwidthMiB)
	m.armLocked(seconds(float64(m.diskBytes) / m.diskRate))
}

// disk is how far the copy of the disks is.
func (m *migration) disk(now time.Time) instance.Amount {
	total := m.diskBytes
	a := instance.Amount{Total: total}
	switch {
	case m.stage == stageDisks:
		a.Processed = min(total, uint64(m.diskRate*now.Sub(m.flowAt).Seconds()))
	case m.stage > stageDisks:
		a.Processed = total
	}
	a.Remaining = total - a.Processed
	return a
}
