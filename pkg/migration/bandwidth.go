package migration

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
)

// limitAgain is when a limit that the hypervisor did not take is offered again.
const limitAgain = 5 * time.Second

/*
The limit of a job, in MiB/s, is the migration's own (the request's, or the host's), and
of that not more than its share of the host's budget:

	begin of perform     with the request to the hypervisor
	another one begins   every monitor that has another share now sets it, at once
	or ends
	on request           journaled, then set before the answer
	the mode changes     told again: until the guest is seen in it, nobody knows which of the two
	                     limits of a hypervisor was set
	post-copy            its own option: a guest that waits for its memory is not to be
	                     slowed by what was meant for pre-copy; but a limit that somebody
	                     asks for while the job runs, and the budget, hold there too.
	                     QEMU limits only what is sent ahead, never a page asked for.
*/

// ownLimit is a migration's own limit in one mode or the other.
func ownLimit(c *Config, rec *Record, postCopy bool) uint64 {
	switch {
	case rec.Limited:
		return rec.Args.BandwidthMiB
	case postCopy:
		return c.PostCopyBandwidthMiB
	}
	return or(rec.Args.BandwidthMiB, c.BandwidthMiB)
}

// limit is what the job may use in one mode or the other.
func (r *run) limit(rec *Record, postCopy bool) uint64 {
	return r.s.budget.of(r, ownLimit(&r.s.cfg, rec, postCopy))
}

// applyLimit tells the hypervisor the limit, unless it has it. One at a time.
func (r *run) applyLimit(ctx context.Context) error {
	if err := r.limiting.take(ctx); err != nil {
		return fault.Wrap(err, op, r.id)
	}
	defer r.limiting.pass()
	rec := r.record()
	r.s.budget.update(r, ownLimit(&r.s.cfg, &rec, rec.PostCopy))
	want := r.limit(&rec, rec.PostCopy)
	if r.hasLimit(rec.PostCopy, want) {
		return nil
	}
	ctx, cancel := within(ctx, r.s.cfg.HypervisorWait, "the hypervisor's answer")
	defer cancel()
	if err := causeOf(ctx, r.s.ports.Hypervisor.SetBandwidth(ctx, r.instance, want)); err != nil {
		return fault.Wrap(err, "set_bandwidth", r.instance)
	}
	r.noteLimit(rec.PostCopy, want)
	logkit.From(ctx).Info("the migration's bandwidth is limited anew", logkit.Key("mib").Of(want))
	return nil
}

// limits is what a hypervisor keeps: a limit for each of the two modes.
type limits struct{ preCopy, postCopy uint64 }

func (l *limits) of(postCopy bool) *uint64 {
	if postCopy {
		return &l.postCopy
	}
	return &l.preCopy
}

// hasLimit reports whether the hypervisor has that limit already.
func (r *run) hasLimit(postCopy bool, limit uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return *r.inForce.of(postCopy) == limit
}

func (r *run) noteLimit(postCopy bool, limit uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*r.inForce.of(postCopy) = limit
}

// unknownLimit is none that anybody asks for.
const unknownLimit = ^uint64(0)

// noteLimits keeps what the hypervisor has of both modes.
func (r *run) noteLimits(l limits) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inForce = l
}

// forgetLimits says that nobody knows what the hypervisor has: the job is in its other mode
// now, and what was told about then may have gone to either. It waits for what is being told.
func (r *run) forgetLimits(ctx context.Context) {
	if r.limiting.take(ctx) == nil {
		defer r.limiting.pass()
	}
	r.noteLimits(limits{unknownLimit, unknownLimit})
}

// limitsFound is what the hypervisor has of a job that went on without us: what it was begun
// with, if there was no reason to change it; else it is not known.
func (r *run) limitsFound() limits {
	if r.record().Limited || r.s.budget.total > 0 {
		return limits{unknownLimit, unknownLimit}
	}
	req := r.request()
	return limits{req.BandwidthMiB, req.PostCopyMiB}
}

// limited reports whether the hypervisor has the limit that the job is to have now. It is
// asked at each beat and copies nothing.
func (r *run) limited() bool {
	r.mu.Lock()
	own, has := r.at.limit, *r.inForce.of(r.at.postCopy)
	r.mu.Unlock()
	r.s.budget.update(r, own)
	return r.s.budget.of(r, own) == has
}

// throttle gives the job its limit. An error is told and not fatal.
func (m *monitor) throttle(ctx context.Context) {
	if !m.limitedAt.IsZero() && time.Since(m.limitedAt) < limitAgain {
		return
	}
	if err := m.r.applyLimit(ctx); err != nil {
		m.limitedAt = time.Now()
		logkit.From(ctx).Warn("the migration's bandwidth could not be limited anew", logkit.Err(err))
	}
}

// setBandwidth changes the migration's own limit; 0 lifts it. It is in the journal, and
// in force if memory moves, when it returns.
func (r *run) setBandwidth(ctx context.Context, mib uint64) error {
	const method = "live_migration_set_bandwidth"
	var refused error
	err := r.save(ctx, func(rec *Record) {
		if rec.Undoing || afterPerform(rec.Phase) || rec.Ended() {
			refused = fault.Newf(fault.Conflict, method, r.id, "too late: no memory will move, the migration is in phase %s", rec.Migration.Phase)
			return
		}
		rec.Args.BandwidthMiB, rec.Limited = mib, true
	})
	if err != nil || refused != nil {
		return fault.Wrap(first(err, refused), method, r.id)
	}
	if r.record().Phase != PhasePerform {
		return nil // it begins with it
	}
	err = r.applyLimit(ctx)
	if fault.KindOf(err) == fault.Conflict { // the job is about to begin, or has just ended: the monitor sees to it
		return nil
	}
	return fault.Wrap(err, method, r.id)
}

// first gives the first error that is one.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
