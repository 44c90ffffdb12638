package vif

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// Ready waits until every port can carry traffic: its tap exists, is in its
// bridge and up (whether the other end is held is not asked), and, for a port
// with wait_for_event, its network-vif-plugged has come, be it long before. All
// ports together have PluggingTimeout (nova's vif_plugging_timeout); then, or
// when the network says that it failed, the error names every port that is not
// ready, unless PluggingNotFatal makes it a warning.
func (m *Manager) Ready(ctx context.Context, instanceID string, ports []instance.Port) error {
	wishes := make([]Tap, len(ports))
	for i, p := range ports {
		var err error
		if wishes[i], err = wish(instanceID, p); err != nil {
			return err
		}
	}
	err := m.await(ctx, ports, wishes)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fault.Wrap(context.Cause(ctx), "wait for ports", instanceID)
	case m.cfg.PluggingNotFatal:
		logkit.From(ctx).Warn("going on with ports that are not ready", logkit.Instance.Of(instanceID), logkit.Err(err))
		return nil
	}
	return fault.Wrap(err, "wait for ports", instanceID)
}

// await looks at the ports until none has a reason left. It looks at once, at
// every interval, and when an event comes.
func (m *Manager) await(ctx context.Context, ports []instance.Port, wishes []Tap) error {
	wake, stop := m.listen()
	defer stop()
	limit := max(m.cfg.PluggingTimeout, 0)
	var pending []string
	beat := func(ctx context.Context) error {
		found, err := m.lookAll(ctx, ports, wishes)
		if err != nil {
			return green.LoopDone(verdict{err})
		}
		if ctx.Err() != nil && len(pending) > 0 {
			return nil // the time ended amid this look: what was seen before stands
		}
		pending = found
		if len(pending) == 0 {
			return green.LoopDone(verdict{})
		}
		if limit == 0 {
			return green.LoopDone(verdict{fault.New(fault.Timeout, "", "", strings.Join(pending, "; "))})
		}
		return nil
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, errNotReady)
		defer cancel()
	}
	loop := green.NewFixedIntervalLoopingCall[verdict](beat)
	if err := loop.Start(ctx, m.cfg.Interval, green.WakeOn(wake)); err != nil {
		return err
	}
	// The loop ends with ctx; waiting for it without one keeps its last words from being written meanwhile.
	v, err := loop.Wait(context.WithoutCancel(ctx))
	if errors.Is(err, errNotReady) {
		return fault.Newf(fault.Timeout, "", "", "not ready after %s: %s", limit, strings.Join(pending, "; ")).
			WithHint("look for what wires the network on this host; vif_plugging_timeout bounds this wait").
			WithDetail("reasons", pending)
	}
	if err != nil {
		return err
	}
	return v.err
}

// lookAll says of each port that is not ready what it waits for. An error is final.
func (m *Manager) lookAll(ctx context.Context, ports []instance.Port, wishes []Tap) (pending []string, err error) {
	for i, p := range ports {
		reason, err := m.pending(ctx, p, wishes[i])
		if err != nil {
			return nil, err
		}
		if reason != "" {
			pending = append(pending, "port "+p.ID+": "+reason)
		}
	}
	return pending, nil
}

// verdict is how a wait ended by itself: nil for ready.
type verdict struct{ err error }

// errNotReady is the cause of the end of an await's own time.
var errNotReady = errors.New("the time for the ports to become ready is over")

// pending says what a port still waits for; empty: nothing. An error is final.
func (m *Manager) pending(ctx context.Context, p instance.Port, want Tap) (reason string, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.TryTimeout)
	defer cancel()
	have, err := m.net.Look(ctx, want.Name)
	switch {
	case errors.Is(err, fault.NotFound):
		return fmt.Sprintf("device %s does not exist", want.Name), nil
	case err != nil:
		return "can't be looked at: " + err.Error(), nil
	}
	if missing := lacks(want, have); missing != "" {
		return fmt.Sprintf("device %s lacks %s", want.Name, missing), nil
	}
	if !p.WaitForEvent || m.cfg.PluggingTimeout < 0 {
		return "", nil
	}
	switch m.lastWord(p.ID) {
	case statusCompleted:
		return "", nil
	case statusFailed:
		return "", fault.Newf(fault.Unavailable, "", p.ID, "the network says that the port could not be wired (%s failed)", EventPlugged).
			WithHint("ask the network's controller why; reset the port there and try again")
	}
	return "no " + EventPlugged + " has come", nil
}
