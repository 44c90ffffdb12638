package fake

import (
	"context"
	"fmt"
	"time"

	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Start boots a domain that is off; a save is discarded.
func (d *Driver) Start(ctx context.Context, id string) error {
	return tell(ctx, d, "Start", id, func(dom *domain) error {
		if dom.active() {
			return nil
		}
		dom.saved = nil
		d.host.bootLocked(dom)
		d.host.countLocked(id).Starts++
		return nil
	})
}

// bootLocked starts a domain from power-on.
func (h *Host) bootLocked(d *domain) {
	now := time.Now()
	d.running = d.def
	d.brain = brain{Guest: h.cfg.Guest.of(d.def.Spec), Since: now}
	d.console = 0
	h.activateLocked(d, virt.Running, virt.ReasonBooted)
	h.tellLocked(virt.EventResumed, d.def.Spec.UUID, virt.ReasonUnpaused)
	h.tellLocked(virt.EventStarted, d.def.Spec.UUID, virt.ReasonBooted)
}

// activateLocked gives a domain its process.
func (h *Host) activateLocked(d *domain, s virt.State, r virt.Reason) {
	d.id, d.state, d.reason, d.live = h.nextID, s, r, true
	h.nextID++
}

// stopLocked takes the process away; a domain without a definition is gone then.
func (h *Host) stopLocked(d *domain, r, event virt.Reason) {
	id := d.running.Spec.UUID
	if d.button != nil {
		d.button.Stop()
	}
	m, a := d.job, d.arriving
	if m != nil && m.stage == stageFinishing { // it has left already: only its end comes early
		m.departLocked()
		return
	}
	if d.live {
		h.countLocked(id).Stops++
	}
	d.brain.freeze(time.Now())
	d.brain.Pressed = false
	d.id, d.state, d.reason, d.live, d.torn = -1, virt.Shutoff, r, false, nil
	if m != nil {
		m.sourceDiedLocked()
	}
	if a != nil {
		d.arriving = nil
		if a.postCopy { // it had come: nobody cancels its place any more
			delete(h.claims, id)
		}
		a.lostLocked()
	}
	if !d.persistent {
		delete(h.domains, id)
	}
	h.tellLocked(virt.EventStopped, id, event)
}

// Shutdown presses the power button, or asks the guest's agent.
func (d *Driver) Shutdown(ctx context.Context, id string, how virt.ShutdownMethod) error {
	return tell(ctx, d, "Shutdown", id, func(dom *domain) error {
		if dom.state != virt.Running || dom.arriving != nil {
			return conflict("Shutdown", id, "the guest does not run: it is "+string(dom.state))
		}
		d.host.countLocked(id).Shutdowns++
		switch how {
		case virt.ShutdownACPI:
			if dom.brain.Guest.ACPI == ACPIAnswers && dom.brain.up(time.Now()) {
				d.host.pressLocked(dom)
			}
			return nil
		case virt.ShutdownAgent:
			if !dom.brain.Guest.Agent || !dom.brain.up(time.Now()) {
				return conflict("Shutdown", id, "no guest agent answers")
			}
			d.host.pressLocked(dom)
			return nil
		}
		return conflict("Shutdown", id, fmt.Sprintf("unknown method %q", how))
	})
}

// pressLocked lets the guest go off after its time; once is enough.
func (h *Host) pressLocked(d *domain) {
	if !d.brain.Pressed {
		d.brain.Pressed = true
		h.armLocked(d)
	}
}

// armLocked starts the clock of a guest that was asked to go off. A guest that
// stands still when it fires answers when it runs again.
func (h *Host) armLocked(d *domain) {
	if !d.brain.Pressed {
		return
	}
	id := d.id
	d.button = time.AfterFunc(d.brain.Guest.ACPIAfter, func() {
		h.world.mu.Lock()
		defer h.world.mu.Unlock()
		if d.id == id && d.state == virt.Running && d.live {
			guest := d.running.Spec.UUID
			h.powerOffLocked(d)
			_ = h.changedLocked(guest) // kept for the next call
		}
	})
}

// powerOffLocked is the guest going off in good order.
func (h *Host) powerOffLocked(d *domain) {
	d.state, d.reason = virt.ShuttingDown, virt.ReasonUnknown
	h.tellLocked(virt.EventShutdown, d.running.Spec.UUID, "guest")
	h.stopLocked(d, virt.ReasonShutdown, virt.ReasonShutdown)
}

// Destroy takes the power away.
func (d *Driver) Destroy(ctx context.Context, id string) error {
	return tell(ctx, d, "Destroy", id, func(dom *domain) error {
		if !dom.active() {
			return nil
		}
		d.host.stopLocked(dom, virt.ReasonDestroyed, virt.ReasonDestroyed)
		return nil
	})
}

// Pause freezes a running guest.
func (d *Driver) Pause(ctx context.Context, id string) error {
	return tell(ctx, d, "Pause", id, func(dom *domain) error {
		if err := dom.steady("Pause", id); err != nil || dom.state == virt.Paused {
			return err
		}
		now := time.Now()
		if dom.job != nil {
			dom.job.settleLocked(now)
		}
		dom.brain.freeze(now)
		dom.state, dom.reason = virt.Paused, virt.ReasonUser
		d.host.countLocked(id).Pauses++
		d.host.tellLocked(virt.EventSuspended, id, virt.ReasonUser)
		return nil
	})
}

// Unpause lets a paused guest go on.
func (d *Driver) Unpause(ctx context.Context, id string) error {
	return tell(ctx, d, "Unpause", id, func(dom *domain) error {
		if err := dom.steady("Unpause", id); err != nil || dom.state == virt.Running {
			return err
		}
		now := time.Now()
		if dom.job != nil {
			dom.job.settleLocked(now)
		}
		dom.live = true // a source whose migration ended unknown may be let go on: the caller's word
		d.host.resumeLocked(dom, now, virt.ReasonUnpaused)
		d.host.countLocked(id).Unpauses++
		return nil
	})
}

func (h *Host) resumeLocked(d *domain, now time.Time, r virt.Reason) {
	d.brain.run(now)
	d.state, d.reason = virt.Running, r
	h.tellLocked(virt.EventResumed, d.running.Spec.UUID, r)
	h.armLocked(d)
}

// steady refuses to freeze or thaw what is off, or between two hosts.
func (d *domain) steady(op, id string) error {
	switch {
	case !d.active():
		return conflict(op, id, "the domain is "+string(d.state))
	case d.arriving != nil:
		return conflict(op, id, "the guest is still arriving")
	case d.handing():
		return conflict(op, id, "the guest is just leaving")
	case d.reason == virt.ReasonPostCopyFailed || d.reason == virt.ReasonPostCopy:
		return conflict(op, id, "the guest's memory is in two places")
	}
	return nil
}

// Save writes the memory to disk and stops.
func (d *Driver) Save(ctx context.Context, id string) error {
	return tell(ctx, d, "Save", id, func(dom *domain) error {
		if err := dom.steady("Save", id); err != nil {
			return err
		}
		if dom.job != nil {
			return conflict("Save", id, "a migration of this guest runs")
		}
		if !dom.live {
			return conflict("Save", id, "the outcome of a migration is not known: the guest may live elsewhere")
		}
		kept := dom.brain
		kept.freeze(time.Now())
		d.host.stopLocked(dom, virt.ReasonSaved, virt.ReasonSaved)
		dom.saved = &kept
		d.host.countLocked(id).Saves++
		return nil
	})
}

// Restore starts from the save.
func (d *Driver) Restore(ctx context.Context, id string) error {
	return tell(ctx, d, "Restore", id, func(dom *domain) error {
		if dom.active() {
			return conflict("Restore", id, "the domain is "+string(dom.state))
		}
		if dom.saved == nil {
			return conflict("Restore", id, "the domain has no saved memory")
		}
		dom.running, dom.brain, dom.saved = dom.def, *dom.saved, nil
		d.host.activateLocked(dom, virt.Running, "restored")
		d.host.tellLocked(virt.EventStarted, id, "restored")
		d.host.resumeLocked(dom, time.Now(), "restored")
		c := d.host.countLocked(id)
		c.Restores++
		c.Starts++
		return nil
	})
}
