package libvirt

import (
	"context"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// power carries out fn on a domain of ours unless decide, which is shown the
// domain's state, says that it is already so (done) or refuses.
func (d *Driver) power(ctx context.Context, c call, decide func(virt.State) (done bool, err error),
	fn func(*golibvirt.Libvirt, golibvirt.Domain) error,
) error {
	return d.onDomainWithin(ctx, c, func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
		state, reason, err := lv.DomainGetState(dom, 0)
		if err != nil {
			return err
		}
		s, _ := stateOf(state, reason)
		if done, err := decide(s); done || err != nil {
			return err
		}
		return fn(lv, dom)
	})
}

func off(s virt.State) bool { return s == virt.Shutoff || s == virt.NoState || s == virt.Crashed }

func refuse(s virt.State, wanted string) error {
	return fault.Newf(fault.Conflict, "", "", "the domain is %s, not %s", s, wanted)
}

func (d *Driver) blocking(op, id string, bound time.Duration) call {
	return call{op: op, id: id, bound: bound, blocking: true}
}

// Start starts a domain that is off, without what a managed save holds.
func (d *Driver) Start(ctx context.Context, id string) error {
	return d.power(ctx, d.blocking("start", id, d.cfg.StartTimeout),
		func(s virt.State) (bool, error) { return !off(s), nil },
		func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
			_, err := lv.DomainCreateWithFlags(dom, uint32(golibvirt.DomainStartForceBoot))
			return err
		})
}

// Shutdown asks the guest to go off. The agent inside a guest may be slow, so
// the call has a connection of the blocking duty.
func (d *Driver) Shutdown(ctx context.Context, id string, how virt.ShutdownMethod) error {
	flag := golibvirt.DomainShutdownAcpiPowerBtn
	switch how {
	case virt.ShutdownACPI:
	case virt.ShutdownAgent:
		flag = golibvirt.DomainShutdownGuestAgent
	default:
		return fault.Newf(fault.InvalidArgument, "shutdown", id, "%q: use acpi or agent", how)
	}
	return d.power(ctx, d.blocking("shutdown", id, d.cfg.CallTimeout),
		func(s virt.State) (bool, error) {
			if s != virt.Running {
				return false, refuse(s, "running")
			}
			return false, nil
		},
		func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error { return lv.DomainShutdownFlags(dom, flag) })
}

// Destroy takes the power away; libvirt answers when QEMU is gone.
func (d *Driver) Destroy(ctx context.Context, id string) error {
	return d.power(ctx, call{op: "destroy", id: id, bound: d.cfg.DestroyTimeout},
		func(s virt.State) (bool, error) { return s == virt.Shutoff, nil },
		func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
			err := lv.DomainDestroyFlags(dom, golibvirt.DomainDestroyDefault)
			if isCode(err, golibvirt.ErrOperationInvalid) { // it went off by itself meanwhile
				if state, reason, serr := lv.DomainGetState(dom, 0); serr == nil {
					if s, _ := stateOf(state, reason); s == virt.Shutoff {
						return nil
					}
				}
			}
			return err
		})
}

// Pause freezes a running guest.
func (d *Driver) Pause(ctx context.Context, id string) error {
	return d.power(ctx, call{op: "pause", id: id, bound: d.cfg.CallTimeout},
		func(s virt.State) (bool, error) { return already(s, virt.Paused) },
		func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error { return lv.DomainSuspend(dom) })
}

// Unpause lets a paused guest go on.
func (d *Driver) Unpause(ctx context.Context, id string) error {
	return d.power(ctx, call{op: "unpause", id: id, bound: d.cfg.CallTimeout},
		func(s virt.State) (bool, error) { return already(s, virt.Running) },
		func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error { return lv.DomainResume(dom) })
}

// already is for moves between running and paused: done where it is wanted, a
// conflict for a guest that is off.
func already(s, wanted virt.State) (bool, error) {
	if off(s) {
		return false, refuse(s, "on")
	}
	return s == wanted, nil
}

// Save writes the memory to disk and stops the guest.
func (d *Driver) Save(ctx context.Context, id string) error {
	return d.onDomainWithin(ctx, d.blocking("save", id, d.cfg.SaveTimeout), func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
		state, reason, err := lv.DomainGetState(dom, 0)
		if err != nil {
			return err
		}
		s, _ := stateOf(state, reason)
		if !off(s) {
			return lv.DomainManagedSave(dom, 0)
		}
		if saved, err := lv.DomainHasManagedSaveImage(dom, 0); err != nil || saved != 0 {
			return err
		}
		return refuse(s, "on")
	})
}

// Restore starts from a managed save; running already is success.
func (d *Driver) Restore(ctx context.Context, id string) error {
	return d.power(ctx, d.blocking("restore", id, d.cfg.StartTimeout),
		func(s virt.State) (bool, error) { return !off(s), nil },
		func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
			saved, err := lv.DomainHasManagedSaveImage(dom, 0)
			if err != nil {
				return err
			}
			if saved == 0 {
				return fault.New(fault.Conflict, "", "", "the domain has no saved memory").WithHint("start it instead")
			}
			_, err = lv.DomainCreateWithFlags(dom, 0)
			return err
		})
}
