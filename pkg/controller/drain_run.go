package controller

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// schedule is which instance has its turn when. One thread drives it, run; turns are
// threads of their own, and tell their end through results.
type schedule struct {
	drain   *Drain
	seen    map[string]bool
	begun   bool
	waiting []*departure // in the order in which they are to leave
	turns   int          // threads under way
	results chan attempt
	until   *time.Timer // the drain's own limit
}

func (d *Drain) newSchedule() *schedule {
	return &schedule{drain: d, seen: map[string]bool{}, results: make(chan attempt), until: time.AfterFunc(d.opts.Timeout, d.Stop)}
}

func (s *schedule) close() { s.until.Stop() }

func (s *schedule) add(p *departure) {
	s.waiting = append(s.waiting, p)
	s.drain.report(p.event(DrainWaiting))
}

// run gives every instance that waits its turns until each has its outcome, or the
// drain is stopped and nothing moves any more, or ctx ends.
func (s *schedule) run(ctx context.Context) error {
	stop := s.drain.stop
	for {
		next := s.launch(ctx)
		if s.turns == 0 && len(s.waiting) == 0 {
			return nil
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			s.gather()
			return context.Cause(ctx)
		case <-stop:
			stop = nil
			s.giveUp()
		case a := <-s.results:
			s.turns--
			s.take(a)
		case <-timer.C:
		}
		timer.Stop()
	}
}

// launch begins the turns that are due: those that only follow a migration at once,
// the others as far as there is room beside them. It gives the time until the next.
func (s *schedule) launch(ctx context.Context) time.Duration {
	next := time.Hour
	s.waiting = slices.DeleteFunc(s.waiting, func(p *departure) bool {
		wait := time.Until(p.due)
		if wait > 0 {
			next = min(next, wait)
			return false
		}
		if p.migration == "" && s.turns >= s.drain.opts.Parallel {
			return false
		}
		s.turns++
		dest := "" // chosen here, so that the instances get theirs in their order
		if p.migration == "" {
			dest = s.drain.targets.pick(p.Spec, p.failed)
		}
		green.SpawnN(ctx, func(ctx context.Context) error {
			s.results <- s.drain.turn(ctx, p, dest)
			return nil
		})
		return true
	})
	return next
}

// take decides what follows from a turn.
func (s *schedule) take(a attempt) {
	p, e := a.departure, a.event
	switch {
	case e.State.Ended():
		s.drain.report(e)
		return
	case e.State == DrainMoving: // somebody else has begun to move it
		p.migration, p.busySince = e.Migration.UUID, time.Time{}
	case e.State == DrainBusy:
		if p.busySince.IsZero() {
			p.busySince = time.Now()
		}
		if time.Since(p.busySince)+a.retry > s.drain.opts.BusyTimeout {
			s.drain.report(p.event(DrainStayed, e.Reasons...))
			return
		}
		p.due = time.Now().Add(a.retry)
	default: // it failed on that destination, or has come back
		p.migration, p.busySince = "", time.Time{}
		if e.Dest != "" {
			p.failed[e.Dest] = strings.Join(e.Reasons, ", ")
		}
	}
	if s.drain.stopped() && p.migration == "" {
		s.drain.report(s.unbegun(p, e.Reasons))
		return
	}
	s.drain.report(e)
	s.waiting = append(s.waiting, p)
}

// giveUp ends all that has not begun.
func (s *schedule) giveUp() {
	d := s.drain
	d.mu.Lock()
	d.ended.Stopped = true
	d.mu.Unlock()
	s.waiting = slices.DeleteFunc(s.waiting, func(p *departure) bool {
		if p.migration != "" {
			return false
		}
		d.report(s.unbegun(p, nil))
		return true
	})
}

func (s *schedule) unbegun(p *departure, reasons []string) DrainEvent {
	return p.event(DrainStayed, append([]string{notBegun}, reasons...)...)
}

// gather waits for the turns that ctx has ended, so that no thread is left behind,
// and counts what did not get its turn.
func (s *schedule) gather() {
	for ; s.turns > 0; s.turns-- {
		a := <-s.results
		if !a.event.State.Ended() {
			a.event = a.event.stayed()
		}
		s.drain.report(a.event)
	}
	for _, p := range s.waiting {
		s.drain.report(s.unbegun(p, nil))
	}
	s.waiting = nil
}

func (e DrainEvent) stayed() DrainEvent {
	e.State = DrainStayed
	return e
}

// record is the newest state of a migration that one thread writes and another reads.
type record struct {
	mu sync.Mutex
	m  instance.Migration
}

func (r *record) put(m instance.Migration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.m = m
}

func (r *record) last() instance.Migration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.m
}
