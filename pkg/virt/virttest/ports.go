package virttest

import (
	"fmt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

func hasPorts(r Rig) bool {
	_, can := r.Source.(Ports)
	return can && r.Port != nil
}

func testPorts(b *bench) {
	b.t.Helper()
	host, can := b.Source.(Ports)
	if !can {
		b.t.Fatal("the source can't attach ports")
	}
	p := b.Port()
	b.wants(fault.NotFound, "AttachPort", host.AttachPort(b.ctx, instance.NewUUID(), p))
	b.wants(fault.NotFound, "DetachPort", host.DetachPort(b.ctx, instance.NewUUID(), p))

	id := b.booted()
	b.ok("DetachPort of what was never there", host.DetachPort(b.ctx, id, p))
	for range 2 {
		b.ok("AttachPort", host.AttachPort(b.ctx, id, p))
		b.waitNIC(id, p, true)
	}
	for range 2 {
		b.ok("DetachPort", host.DetachPort(b.ctx, id, p))
		b.waitNIC(id, p, false)
	}
	b.ok("Destroy", b.Source.Destroy(b.ctx, id))
	b.ok("AttachPort to a guest that is off", host.AttachPort(b.ctx, id, p))
	b.ok("Start", b.Source.Start(b.ctx, id))
	b.waitNIC(id, p, true)
	b.ok("Destroy", b.Source.Destroy(b.ctx, id))
	b.ok("DetachPort from a guest that is off", host.DetachPort(b.ctx, id, p))
	b.ok("Start", b.Source.Start(b.ctx, id))
	b.waitNIC(id, p, false)
}

// waitNIC waits until the running guest has the port's device, or has it no more.
func (b *bench) waitNIC(id string, p instance.Port, want bool) {
	b.t.Helper()
	b.eventually(fmt.Sprintf("%s is in the guest: %t", p.Device(), want), func() (bool, string) {
		s, err := b.Source.Stats(b.ctx, id)
		_, has := s.Nics[p.Device()]
		return err == nil && has == want, fmt.Sprintf("%v, %v", s.Nics, err)
	})
}
