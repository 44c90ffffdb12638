package fake

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// The schemes of an Inbound URI.
const (
	schemeWorld = "fake"     // fake://world/HOST: a host of the same World
	schemeTCP   = "fake+tcp" // fake+tcp://127.0.0.1:PORT/HOST: a host of another process
)

// arrival is a guest on its way in.
type arrival struct {
	migration  string
	postCopy   bool
	lostLocked func() // tells the source that its guest can't arrive
}

// PrepareIncoming claims a place for a guest and says where to send it.
func (d *Driver) PrepareIncoming(ctx context.Context, in virt.Incoming) (virt.Inbound, error) {
	id, h := in.Spec.UUID, d.host
	return ask(ctx, d, "PrepareIncoming", id, func() (virt.Inbound, error) {
		if dom := h.domains[id]; dom != nil {
			switch {
			case dom.foreign:
				return virt.Inbound{}, foreign("PrepareIncoming", id)
			case dom.arriving != nil && dom.arriving.migration == in.Migration:
				return h.inbound(), nil
			case dom.active():
				return virt.Inbound{}, conflict("PrepareIncoming", id, "the guest is on this host already: it is "+string(dom.state))
			}
		}
		if c, known := h.claims[id]; known && c.Migration == in.Migration {
			return h.inbound(), nil
		}
		h.claims[id] = claim{Migration: in.Migration}
		h.countLocked(id).Prepares++
		return h.inbound(), h.changedLocked(id)
	})
}

func (h *Host) inbound() virt.Inbound {
	if h.link != nil {
		return virt.Inbound{URI: schemeTCP + "://" + h.link.address() + "/" + h.cfg.Name}
	}
	return virt.Inbound{URI: schemeWorld + "://world/" + h.cfg.Name}
}

// CancelIncoming takes a claim back, and a guest that is still arriving by it.
func (d *Driver) CancelIncoming(ctx context.Context, id, migration string) error {
	h := d.host
	_, err := ask(ctx, d, "CancelIncoming", id, func() (struct{}, error) {
		if dom := h.domains[id]; dom != nil && dom.active() {
			a := dom.arriving
			if a == nil || a.postCopy || dom.foreign {
				return struct{}{}, conflict("CancelIncoming", id, "the guest is here: it is "+string(dom.state))
			}
			if a.migration == migration {
				h.stopLocked(dom, virt.ReasonFailed, virt.ReasonFailed)
			}
		}
		if h.claims[id].Migration == migration {
			delete(h.claims, id)
		}
		return struct{}{}, h.changedLocked(id)
	})
	return err
}

// arriveLocked makes the paused domain of a guest that is expected.
func (h *Host) arriveLocked(o offer, lostLocked func()) error {
	if c, known := h.claims[o.Instance]; !known || c.Migration != o.Migration {
		return conflict("Migrate", o.Instance, "the destination does not expect this guest by this migration")
	}
	d := h.domains[o.Instance]
	if d != nil && d.active() {
		return conflict("Migrate", o.Instance, "the guest is on the destination already")
	}
	if d == nil {
		d = &domain{}
		h.domains[o.Instance] = d
	}
	d.running, d.saved = o.Def, nil
	d.brain = brain{Guest: o.Guest}
	h.activateLocked(d, virt.Paused, virt.ReasonMigrating)
	d.live = false
	d.arriving = &arrival{migration: o.Migration, lostLocked: lostLocked}
	h.tellLocked(virt.EventStarted, o.Instance, virt.ReasonMigrated)
	return nil
}

// expectedLocked finds the guest that a handover is for.
func (h *Host) expectedLocked(o handover) (*domain, error) {
	d := h.domains[o.Instance]
	if d == nil || d.arriving == nil || d.arriving.migration != o.Migration {
		return nil, fault.New(fault.NotFound, "Migrate", o.Instance, "the guest is not arriving on the destination any more")
	}
	return d, nil
}

// postCopyLocked lets a guest run here while its memory still comes.
func (h *Host) postCopyLocked(o handover) error {
	d, err := h.expectedLocked(o)
	if err != nil {
		return err
	}
	d.arriving.postCopy = true
	h.takeLocked(d, o)
	if o.Paused {
		d.state, d.reason = virt.Paused, virt.ReasonUser
		return h.changedLocked(o.Instance)
	}
	h.resumeLocked(d, time.Now(), virt.ReasonPostCopy)
	return h.changedLocked(o.Instance)
}

// takeLocked makes this host the one that the guest lives on.
func (h *Host) takeLocked(d *domain, o handover) {
	d.brain.Uptime, d.brain.Pressed, d.console = o.Uptime, o.Pressed, o.Uptime
	d.live = true
	h.countLocked(o.Instance).Arrivals++
}

// finishLocked ends an arrival: the guest is ours and runs, or stays paused.
func (h *Host) finishLocked(o handover) error {
	d, err := h.expectedLocked(o)
	if err != nil {
		return err
	}
	if !d.live {
		h.takeLocked(d, o)
	}
	d.arriving = nil
	d.def, d.persistent = d.running, true
	delete(h.claims, o.Instance)
	h.completed[o.Instance] = o.Job
	h.tellLocked(virt.EventDefined, o.Instance, "")
	if o.Paused {
		d.state, d.reason = virt.Paused, virt.ReasonUser
		h.tellLocked(virt.EventSuspended, o.Instance, virt.ReasonUser)
		return h.changedLocked(o.Instance)
	}
	h.resumeLocked(d, time.Now(), virt.ReasonMigrated)
	return h.changedLocked(o.Instance)
}

// abandonLocked is the source's end of an arrival that came to nothing. In
// post-copy the guest stands still and is not touched.
func (h *Host) abandonLocked(id, migration string) {
	d := h.domains[id]
	if d == nil || d.arriving == nil || d.arriving.migration != migration {
		return
	}
	d.arriving.lostLocked = func() {}
	if d.arriving.postCopy {
		d.brain.freeze(time.Now())
		d.state, d.reason = virt.Paused, virt.ReasonPostCopyFailed
		d.arriving = nil
		delete(h.claims, id) // it came, as far as it will
		h.tellLocked(virt.EventSuspended, id, virt.ReasonPostCopyFailed)
		return
	}
	h.stopLocked(d, virt.ReasonFailed, virt.ReasonFailed)
}

// neighbour is a destination in the same World.
type neighbour struct {
	dest                *Host
	instance, migration string
	aborted             bool
}

func (n *neighbour) begin(_ context.Context, o offer, lostLocked func()) error {
	mu := &n.dest.world.mu
	mu.Lock()
	defer mu.Unlock()
	if n.aborted {
		return fault.New(fault.Cancelled, "Migrate", o.Instance, "the job was aborted")
	}
	n.instance, n.migration = o.Instance, o.Migration
	return n.dest.arriveLocked(o, lostLocked)
}

func (n *neighbour) postCopy(_ context.Context, h handover) error {
	mu := &n.dest.world.mu
	mu.Lock()
	defer mu.Unlock()
	return n.dest.postCopyLocked(h)
}

func (n *neighbour) finish(_ context.Context, h handover) error {
	mu := &n.dest.world.mu
	mu.Lock()
	defer mu.Unlock()
	return n.dest.finishLocked(h)
}

func (n *neighbour) abortLocked() {
	n.aborted = true
	n.dest.abandonLocked(n.instance, n.migration)
}
