package fake

import (
	"context"
	"slices"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// AttachPort adds an interface to the definition and to the running guest.
func (d *Driver) AttachPort(ctx context.Context, id string, p instance.Port) error {
	return tell(ctx, d, "AttachPort", id, func(dom *domain) error {
		return dom.plug("AttachPort", id, func(ports []instance.Port) []instance.Port {
			if slices.ContainsFunc(ports, func(o instance.Port) bool { return o.ID == p.ID }) {
				return ports
			}
			return append(slices.Clone(ports), p)
		})
	})
}

// DetachPort takes an interface away; a fake guest lets go of it at once.
func (d *Driver) DetachPort(ctx context.Context, id string, p instance.Port) error {
	return tell(ctx, d, "DetachPort", id, func(dom *domain) error {
		return dom.plug("DetachPort", id, func(ports []instance.Port) []instance.Port {
			return slices.DeleteFunc(slices.Clone(ports), func(o instance.Port) bool { return o.ID == p.ID })
		})
	})
}

// plug changes the ports of the definition and of the present run. They are
// shared with whoever defined the domain, so edit must not write to its argument.
func (d *domain) plug(op, id string, edit func([]instance.Port) []instance.Port) error {
	if d.job != nil || d.arriving != nil {
		return conflict(op, id, "a migration of this guest runs")
	}
	d.def.Spec.Ports = edit(d.def.Spec.Ports)
	if d.active() {
		d.running.Spec.Ports = edit(d.running.Spec.Ports)
	}
	return nil
}
