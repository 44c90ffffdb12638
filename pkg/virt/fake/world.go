package fake

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// World is a set of hosts that reach one another, in one process. One lock
// guards them all, so that [World.Audit] sees one instant; what is done under it
// takes microseconds and never waits.
type World struct {
	ctx context.Context //nolint:containedctx // the life of the machines, given to what they start

	mu    sync.Mutex
	hosts map[string]*Host
}

// NewWorld makes an empty world. ctx is given to the green threads that deliver
// events and serve links; its end is no power cut.
func NewWorld(ctx context.Context) *World {
	return &World{ctx: ctx, hosts: map[string]*Host{}}
}

// Host finds a host by name; nil if there is none.
func (w *World) Host(name string) *Host {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hosts[name]
}

func (w *World) add(h *Host) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hosts[h.cfg.Name] != nil {
		return fault.New(fault.Conflict, "new_host", h.cfg.Name, "this world has a host of that name already")
	}
	w.hosts[h.cfg.Name] = h
	return nil
}

// Finding is an instance that does not run on exactly one host.
type Finding struct {
	Instance string
	Running  []string // hosts on which it lives: runs or is paused. Two: a split brain
	Defined  []string // hosts that know it at all
}

// Audit gives the instances of this world, foreign ones left out, that live on
// more or fewer than one host, by UUID. A guest that is off is one of them. A
// guest at its switch-over lives on the source until the destination has it; one
// whose finish was never confirmed lives where it was resumed.
func (w *World) Audit() []Finding {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[string]*Finding{}
	leaving := map[string]string{} // sources at their switch-over
	for name, h := range w.hosts {
		for id, d := range h.domains {
			if d.foreign {
				continue
			}
			f := all[id]
			if f == nil {
				f = &Finding{Instance: id}
				all[id] = f
			}
			f.Defined = append(f.Defined, name)
			switch {
			case d.live && d.handing():
				leaving[id] = name
			case d.live:
				f.Running = append(f.Running, name)
			}
		}
	}
	var out []Finding
	for id, f := range all {
		if source, switching := leaving[id]; switching && len(f.Running) == 0 {
			f.Running = append(f.Running, source)
		}
		if len(f.Running) != 1 {
			slices.Sort(f.Running)
			slices.Sort(f.Defined)
			out = append(out, *f)
		}
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Instance, b.Instance) })
	return out
}
