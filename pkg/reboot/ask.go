package reboot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

/*
asker asks a guest to go off, in rounds that begin at fixed times. A round tries
the methods in order until one is accepted; it runs on a thread of its own, so that
a request that hangs doesn't keep anybody from seeing that the guest is off.

	        due              accepted, refused
	idle ─────────▶ asking ────────────────────▶ idle, the next round in every
	                   └── hypervisor away ────▶ idle, the same round in again

A chain begins each round one method later and ends with the methods; otherwise
each round begins with the first one, without end.
*/
type asker struct {
	methods []virt.ShutdownMethod
	request func(ctx context.Context, how virt.ShutdownMethod) error
	wake    func() // called when a round is over
	chain   bool
	every   time.Duration // between the beginnings of two rounds
	again   time.Duration // until a round that met no hypervisor is tried again

	begin    time.Time // of the first round
	started  time.Time // of the latest round
	round    int       // the round to come, or that runs
	due      time.Time // of that round
	thread   *green.Thread[struct{}]
	answer   chan error // of the thread's round
	accepted bool       // some method was
	refusal  error      // of the last round that nobody accepted
}

// beat collects a round that is over and begins one that is due. It never waits.
// hopeless: every method was refused and none accepted before.
func (a *asker) beat(ctx context.Context) (hopeless bool) {
	now := time.Now()
	if a.begin.IsZero() {
		a.begin, a.due = now, now
	}
	if a.thread != nil {
		select {
		case err := <-a.answer:
			a.thread = nil
			a.over(now, err)
		default:
			return false
		}
	}
	if a.refusal != nil && !a.accepted && a.chain {
		return true
	}
	if a.exhausted() || now.Before(a.due) {
		return false
	}
	first := 0
	if a.chain {
		first = a.round
	}
	a.started, a.answer = now, make(chan error, 1)
	answer := a.answer
	a.thread = green.Spawn(ctx, func(ctx context.Context) (struct{}, error) {
		answer <- a.ask(ctx, first)
		a.wake() // after the answer is there: a thread's links run before it is done
		return struct{}{}, nil
	})
	return false
}

func (a *asker) exhausted() bool { return a.chain && a.round >= len(a.methods) }

// over notes how a round ended and says when the next one begins.
func (a *asker) over(now time.Time, err error) {
	if fault.Retryable(err) {
		a.due = now.Add(a.again)
		return
	}
	if err == nil {
		a.accepted = true
	} else {
		a.refusal = err
	}
	a.round++
	if a.chain { // each method gets its time
		a.due = a.started.Add(a.every)
		return
	}
	a.round = max(a.round, int(now.Sub(a.begin)/a.every)+1) // rounds that were missed are not made up
	a.due = a.begin.Add(time.Duration(a.round) * a.every)
}

// next is when the asker has something to do by itself; zero: only when its thread ends.
func (a *asker) next() time.Time {
	if a.thread != nil || a.exhausted() {
		return time.Time{}
	}
	return a.due
}

// ask tries the methods from the first on until one is accepted.
func (a *asker) ask(ctx context.Context, first int) error {
	var errs []error
	for _, how := range a.methods[min(first, len(a.methods)):] {
		err := a.request(ctx, how)
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, fmt.Errorf("%s: %w", how, err))
	}
	if len(errs) == 0 {
		return fault.New(fault.Conflict, "", "", "no method of asking is configured")
	}
	return errors.Join(errs...)
}

// stop ends a request that is on its way, so that none reaches a guest that is
// started next. It waits until the request is given up, at most limit.
func (a *asker) stop(ctx context.Context, limit time.Duration) {
	if a.thread == nil {
		return
	}
	a.thread.Kill(nil)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-a.thread.Done():
	case <-ctx.Done():
	}
}
