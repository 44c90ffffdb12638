package libvirt

import (
	"context"
	"errors"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// detachPoll is how often a domain is asked whether the guest has let go.
const detachPoll = 250 * time.Millisecond

// AttachPort gives a domain an interface on the port's tap, which must be there:
// in its definition and, when it is on, in the guest. There already is success.
func (d *Driver) AttachPort(ctx context.Context, id string, p instance.Port) error {
	nic := domxml.Interface(p)
	xml, err := nic.Marshal()
	if err != nil {
		return fault.Wrap(err, "attach_port", id)
	}
	return d.onDomain(ctx, "attach_port", id, func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
		in, err := wherePort(lv, dom, p.MAC)
		if err != nil {
			return err
		}
		if flags := in.lacking(); flags != 0 {
			return lv.DomainAttachDeviceFlags(dom, xml, uint32(flags)) //nolint:gosec // two bits
		}
		return nil
	})
}

// DetachPort takes an interface away, from the definition at once and from a
// running guest when the guest lets go of it: it is asked DetachAttempts times,
// DetachTimeout apart (nova.md 4.5). Gone already is success.
func (d *Driver) DetachPort(ctx context.Context, id string, p instance.Port) error {
	const op = "detach_port"
	retry := green.Retry{
		Max:       d.cfg.DetachAttempts - 1,
		Retryable: func(err error) bool { return errors.Is(err, errHeld) && ctx.Err() == nil },
	}
	_, err := green.RetryCall(ctx, retry, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, d.detachOnce(ctx, op, id, p)
	})
	if errors.Is(err, errHeld) {
		return fault.Newf(fault.Timeout, op, id, "the guest did not let go of %s after %d requests", p.MAC, d.cfg.DetachAttempts).
			Because(err).WithHint("look at the guest's console; the interface is out of the definition and goes with the next hard reboot")
	}
	return err
}

// errHeld is a guest that still uses an interface.
var errHeld = errors.New("the interface is still in use")

func (d *Driver) detachOnce(ctx context.Context, op, id string, p instance.Port) error {
	var in presence
	err := d.onDomain(ctx, op, id, func(lv *golibvirt.Libvirt, dom golibvirt.Domain) (err error) {
		if in, err = wherePort(lv, dom, p.MAC); err != nil {
			return err
		}
		return in.detach(lv, dom)
	})
	if err != nil || in.live == "" {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, d.cfg.DetachTimeout, errHeld)
	defer cancel()
	for {
		still, err := d.holds(ctx, op, id, p.MAC)
		if err != nil || !still {
			return err
		}
		if green.Sleep(ctx, detachPoll) != nil {
			return fromHeld(context.Cause(ctx), op, id)
		}
	}
}

func fromHeld(cause error, op, id string) error {
	if errors.Is(cause, errHeld) {
		return cause
	}
	return fromLibvirt(cause, op, id)
}

// holds reports whether the running guest still has the interface.
func (d *Driver) holds(ctx context.Context, op, id, mac string) (bool, error) {
	in, err := control(ctx, d, op, id, func(lv *golibvirt.Libvirt) (presence, error) {
		dom, err := lookup(lv, id)
		if err != nil {
			return presence{}, err
		}
		return wherePort(lv, dom, mac)
	})
	return in.live != "", err
}

// presence is where a domain has an interface: its element in the running guest
// and in the definition, empty where it is not.
type presence struct {
	live, kept string
	on         bool // the domain runs
	persistent bool
}

func wherePort(lv *golibvirt.Libvirt, dom golibvirt.Domain, mac string) (in presence, err error) {
	state, reason, err := lv.DomainGetState(dom, 0)
	if err != nil {
		return in, err
	}
	s, _ := stateOf(state, reason)
	in.on = s != virt.Shutoff
	persistent, err := lv.DomainIsPersistent(dom)
	if err != nil {
		return in, err
	}
	in.persistent = persistent != 0
	read := func(flags golibvirt.DomainXMLFlags) (string, error) {
		xml, err := lv.DomainGetXMLDesc(dom, flags)
		if err != nil {
			return "", err
		}
		return domxml.FindInterface(xml, strings.ToLower(mac))
	}
	if in.on {
		if in.live, err = read(0); err != nil {
			return in, err
		}
	}
	if in.persistent {
		in.kept, err = read(golibvirt.DomainXMLInactive)
	}
	return in, err
}

// lacking gives the flags of where the interface has to be added.
func (in presence) lacking() (flags golibvirt.DomainDeviceModifyFlags) {
	if in.on && in.live == "" {
		flags |= golibvirt.DomainDeviceModifyLive
	}
	if in.persistent && in.kept == "" {
		flags |= golibvirt.DomainDeviceModifyConfig
	}
	return flags
}

// detach takes the interface out of the definition and asks the guest to let go.
// A guest that was asked before and has not answered is not asked wrongly: libvirt
// refuses while the first request is pending, which is as good.
func (in presence) detach(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
	if in.kept != "" {
		err := lv.DomainDetachDeviceFlags(dom, in.kept, uint32(golibvirt.DomainDeviceModifyConfig))
		if err != nil && !isCode(err, golibvirt.ErrDeviceMissing) {
			return err
		}
	}
	if in.live == "" {
		return nil
	}
	err := lv.DomainDetachDeviceFlags(dom, in.live, uint32(golibvirt.DomainDeviceModifyLive))
	if isCode(err, golibvirt.ErrDeviceMissing) || isPending(err) {
		return nil
	}
	return err
}

// isPending knows the refusal of a second request while the first is with the guest.
func isPending(err error) bool {
	return err != nil && strings.Contains(err.Error(), "already in the process of unplug")
}
