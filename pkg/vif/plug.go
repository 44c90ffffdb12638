package vif

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// Plug makes the taps of the ports, final but silent. Each port is tried again
// by itself on any transient error (nova plugs all of them anew and retries one
// kind of error only). When one fails for good, or ctx ends, what this call made
// is removed again; what was there before stays. A port that is plugged already
// is mended where it differs.
func (m *Manager) Plug(ctx context.Context, instanceID string, ports []instance.Port) error {
	var mine []instance.Port
	for _, p := range ports {
		made, err := m.plugPort(ctx, instanceID, p, m.cfg.MaxRetry)
		if made {
			mine = append(mine, p)
		}
		if err != nil {
			m.undo(ctx, instanceID, mine)
			m.note(instanceID, p, instance.PortFailed, err)
			return err
		}
	}
	return nil
}

// undo removes what a failed Plug made, last first. It outlives ctx, and what it
// can't remove is logged: the next Plug or Unplug of the port meets it.
func (m *Manager) undo(ctx context.Context, instanceID string, made []instance.Port) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.UndoTimeout)
	defer cancel()
	for _, p := range slices.Backward(made) {
		if err := m.unplugPort(ctx, instanceID, p); err != nil {
			logkit.From(ctx).Warn("a port that was plugged in vain stays behind",
				logkit.Instance.Of(instanceID), logkit.Port.Of(p.ID), logkit.Err(err))
		}
	}
}

// plugPort plugs one port in its turn, with at most retries tries after the first;
// made tells that a device was made, also beside an error.
func (m *Manager) plugPort(ctx context.Context, instanceID string, p instance.Port, retries int) (made bool, err error) {
	want, err := wish(instanceID, p)
	if err != nil {
		return false, err
	}
	release, err := m.turns.take(ctx, p.ID)
	if err != nil {
		return false, err
	}
	defer release()
	return m.plugInTurn(ctx, want, p, retries)
}

// plugInTurn is plugPort for a caller that has the port's turn.
func (m *Manager) plugInTurn(ctx context.Context, want Tap, p instance.Port, retries int) (made bool, err error) {
	instanceID := want.Instance
	m.note(instanceID, p, instance.PortPlugging, nil)
	err = m.patiently(ctx, "plug", p.ID, retries, func(ctx context.Context) error {
		did, err := m.net.Make(ctx, want)
		made = made || did
		return err
	})
	if err != nil {
		m.note(instanceID, p, instance.PortFailed, err)
		return made, err
	}
	m.note(instanceID, p, instance.PortPlugged, nil)
	return made, nil
}

// patiently calls fn until it succeeds, fails for good or uses up its tries. Its
// error says how many there were and how the last one failed.
func (m *Manager) patiently(ctx context.Context, op, port string, retries int, fn func(context.Context) error) error {
	tries := 0
	r := green.Retry{
		Max: retries, First: m.cfg.RetryFirst, Limit: m.cfg.RetryLimit, Jitter: 0.2, Retryable: transient,
		OnRetry: func(try int, err error, sleep time.Duration) {
			logkit.From(ctx).Warn(fmt.Sprintf("%s will be tried again (%d of %d) in %s", op, try, retries, sleep.Round(time.Millisecond)),
				logkit.Port.Of(port), logkit.Err(err))
		},
	}
	_, err := green.RetryCall(ctx, r, func(ctx context.Context) (struct{}, error) {
		tries++
		ctx, cancel := context.WithTimeout(ctx, m.cfg.TryTimeout)
		defer cancel()
		return struct{}{}, fn(ctx)
	})
	if err == nil {
		return nil
	}
	kind := fault.KindOf(err)
	if ctx.Err() != nil {
		kind = fault.KindOf(context.Cause(ctx))
	}
	e := fault.Newf(kind, op, port, "gave up after try %d of at most %d", tries, retries+1).Because(err)
	e.Hint, e.Details = fault.HintOf(err), fault.DetailsOf(err)
	return e
}

// transient tells which errors another try may mend: all but those that somebody has to do something about.
func transient(err error) bool {
	switch fault.KindOf(err) {
	case fault.InvalidArgument, fault.Unauthorized, fault.Conflict, fault.PreconditionFailed, fault.UnsupportedMethod,
		fault.UnsupportedVersion, fault.Expired:
		return false
	case fault.NotFound, fault.Busy, fault.Timeout, fault.Unavailable, fault.Internal, fault.Cancelled:
		return true // not found: the device went away between two steps
	default:
		return true
	}
}

// Unplug removes the taps; what is gone already is success. All ports are tried
// before the first error is returned.
func (m *Manager) Unplug(ctx context.Context, instanceID string, ports []instance.Port) error {
	var errs []error
	for _, p := range ports {
		if err := m.unplugPort(ctx, instanceID, p); err != nil {
			errs = append(errs, err)
			continue
		}
		m.forget(p.ID)
	}
	return together("unplug", instanceID, errs)
}

func (m *Manager) unplugPort(ctx context.Context, instanceID string, p instance.Port) error {
	release, err := m.turns.take(ctx, p.ID)
	if err != nil {
		return err
	}
	defer release()
	err = m.patiently(ctx, "unplug", p.ID, m.cfg.MaxRetry, func(ctx context.Context) error {
		return m.net.Remove(ctx, p.Device(), p.ID)
	})
	if errors.Is(err, fault.Conflict) {
		// The name is somebody else's, so ours is gone: that was asked for.
		logkit.From(ctx).Warn("left a device alone that is not ours", logkit.Instance.Of(instanceID), logkit.Port.Of(p.ID), logkit.Err(err))
		err = nil
	}
	if err != nil {
		return err
	}
	m.note(instanceID, p, instance.PortUnplugged, nil)
	return nil
}

// Activate lets the ports speak: the guest runs here now. It looks at each and
// mends what is not in its place, once for all of them before it is patient with
// those that won't: the guest's outage ends here, and one bad port must not make
// the good ones wait. QEMU itself announces the guest's addresses.
func (m *Manager) Activate(ctx context.Context, instanceID string, ports []instance.Port) error {
	var late []instance.Port
	for _, p := range ports {
		if m.speaks(ctx, instanceID, p) {
			continue
		}
		if _, err := m.plugPort(ctx, instanceID, p, 0); err != nil {
			late = append(late, p)
		}
	}
	var errs []error
	for _, p := range late {
		if _, err := m.plugPort(ctx, instanceID, p, m.cfg.MaxRetry); err != nil {
			errs = append(errs, err)
		}
	}
	return together("activate", instanceID, errs)
}

// speaks reports whether the tap is in its place.
func (m *Manager) speaks(ctx context.Context, instanceID string, p instance.Port) bool {
	want, err := wish(instanceID, p)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.TryTimeout)
	defer cancel()
	have, err := m.net.Look(ctx, want.Name)
	return err == nil && lacks(want, have) == ""
}

// together makes one error of the ports' errors; the kind is the first one's.
func together(op, instanceID string, errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	return fault.Wrap(errors.Join(errs...), op, instanceID)
}
