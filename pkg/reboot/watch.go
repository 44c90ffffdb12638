package reboot

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// watch hears a guest's events. They only make its owner look sooner: one that is lost costs an interval.
type watch struct {
	id       string
	wake     chan struct{}
	rebooted atomic.Bool // the guest reset itself
	cancel   func()
}

// watch begins to listen; stop it.
func (r *Rebooter) watch(id string) *watch {
	w := &watch{id: id, wake: make(chan struct{}, 1)}
	w.cancel = r.machine.Subscribe(func(e virt.Event) {
		if e.Domain != id && e.Kind != virt.EventConnected {
			return
		}
		if e.Kind == virt.EventRebooted {
			w.rebooted.Store(true)
		}
		w.signal()
	})
	return w
}

func (w *watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // a look is due already
	}
}

// ending is how a wait for a guest to go off ended.
type ending struct {
	sight  sight
	reason string
}

// goingOff waits for a guest that is asked to go off. Its beat is a fixed interval; it
// also beats at once on events, on the asker's times and at the end of the window.
type goingOff struct {
	r     *Rebooter
	watch *watch
	judge func(virt.Domain) (sight, string)
	asker *asker
	end   time.Time // the window's
	alarm *time.Timer
	last  string // what was seen last
}

// goOff asks the guest and waits, at most window, until its judge has seen enough.
func (r *Rebooter) goOff(ctx context.Context, w *watch, window time.Duration, a *asker, judge func(virt.Domain) (sight, string)) (ending, error) {
	a.methods, a.wake = r.cfg.Methods, w.signal
	a.again = r.cfg.ShutdownRetryInterval
	a.request = func(ctx context.Context, how virt.ShutdownMethod) error {
		ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
		defer cancel()
		return r.machine.Shutdown(ctx, w.id, how)
	}
	g := &goingOff{r: r, watch: w, judge: judge, asker: a, end: time.Now().Add(window), alarm: time.AfterFunc(window, w.signal)}
	defer g.alarm.Stop()
	loop := green.NewFixedIntervalLoopingCall[ending](g.beat)
	if err := loop.Start(ctx, r.cfg.Interval, green.WakeOn(w.wake)); err != nil {
		return ending{}, err
	}
	e, err := loop.Wait(ctx)
	if ctx.Err() != nil {
		return ending{}, context.Cause(ctx)
	}
	a.stop(ctx, r.cfg.CallTimeout)
	return e, err
}

// beat looks at the guest once. An error of a look is not the guest's end: it looks again.
func (g *goingOff) beat(ctx context.Context) error {
	d, err := g.look(ctx)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the loop ends with ctx and says so
	}
	saw := waiting
	switch {
	case errors.Is(err, fault.NotFound):
		return green.LoopDone(ending{unable, "its domain is gone"})
	case err != nil:
		g.last = "it could not be looked at: " + err.Error()
	default:
		saw, g.last = g.judge(d)
	}
	if saw != waiting {
		return green.LoopDone(ending{saw, g.last})
	}
	if !time.Now().Before(g.end) {
		return green.LoopDone(ending{late, g.last})
	}
	if err == nil && d.State == virt.Running && g.asker.beat(ctx) {
		return green.LoopDone(ending{unable, "no way to ask it was accepted: " + g.asker.refusal.Error()})
	}
	g.arm()
	return nil
}

// shortestLook is the time that a look gets at the end of a window, or in one of no length.
const shortestLook = time.Second

// look asks the hypervisor, not longer than the window lasts.
func (g *goingOff) look(ctx context.Context) (virt.Domain, error) {
	limit := min(g.r.cfg.CallTimeout, max(time.Until(g.end), shortestLook))
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return g.r.machine.Lookup(ctx, g.watch.id)
}

// arm sets the alarm for whatever comes next: a round of asking or the end. A round
// that is due and could not begin, because the guest could not be seen or stands still,
// waits for the next interval: the alarm would ring without end.
func (g *goingOff) arm() {
	at := g.end
	if next := g.asker.next(); next.After(time.Now()) && next.Before(at) {
		at = next
	}
	g.alarm.Reset(time.Until(at))
}

// launch starts the guest and waits until it runs, both within StartTimeout. A
// guest that goes off or vanishes meanwhile is an error at once.
func (r *Rebooter) launch(ctx context.Context, w *watch) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.cfg.StartTimeout,
		fault.Newf(fault.Timeout, "start", w.id, "the guest does not run %s after its start", r.cfg.StartTimeout))
	defer cancel()
	if err := r.machine.Start(ctx, w.id); err != nil {
		return outcome(ctx, err)
	}
	var last string
	loop := green.NewFixedIntervalLoopingCall[verdict](func(ctx context.Context) error {
		call, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
		defer cancel()
		d, err := r.machine.Lookup(call, w.id)
		switch {
		case ctx.Err() != nil:
			return nil // the loop ends with ctx and says so
		case errors.Is(err, fault.NotFound):
			return green.LoopDone(verdict{fault.New(fault.NotFound, "start", w.id, "the domain vanished after its start")})
		case err != nil:
			last = err.Error()
		case d.State == virt.Running:
			return green.LoopDone(verdict{})
		case !d.Active():
			return green.LoopDone(verdict{fault.Newf(fault.Internal, "start", w.id, "the guest went off right after its start (%s, %s)", d.State, d.Reason).
				WithHint("its console log tells why: compute-agent instance console-log %s", w.id)})
		default:
			last = "it is " + string(d.State)
		}
		return nil
	})
	if err := loop.Start(ctx, r.cfg.Interval, green.WakeOn(w.wake)); err != nil {
		return err
	}
	v, err := loop.Wait(context.WithoutCancel(ctx)) // it ends with ctx; then last is nobody else's any more
	if err != nil {
		if err = outcome(ctx, err); last != "" {
			return fmt.Errorf("%w (%s)", err, last)
		}
		return err
	}
	return v.err
}

// verdict is how a wait ended by itself: nil for well.
type verdict struct{ err error }

// outcome gives the cause of ctx's end in place of what a call made of it.
func outcome(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
