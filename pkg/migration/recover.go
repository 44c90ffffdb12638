package migration

import (
	"context"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

const methodRecover = "live_migration_recover"

/*
recovery takes up a post-copy whose connection broke. The guest's memory is in two
places then, and only the same two QEMUs can put it together again:

	post-copy runs ──▶ broken: the hypervisor says postcopy_failed
	     ▲                │
	     │                │ a pause (RetryFirst, growing to RetryLimit); it ends at once on
	     │                │ request and when the hypervisor is connected anew
	     └─── resume ◀────┤
	                      ├─▶ error at once: the destination answers that it has no such guest
	                      └─▶ error after RecoverTimeout: TakeUp, on request, begins again
*/
type recovery struct {
	since time.Time // of the break; zero: none
	pause time.Duration
}

// tear notes that post-copy is broken. While the hypervisor's call has not returned its
// other end has not noticed yet, and can't be given a new connection.
func (m *monitor) tear(ctx context.Context) {
	if m.recovery.since.IsZero() {
		m.recovery.since = time.Now()
		logkit.From(ctx).Error("post-copy is broken: the guest's memory is on two hosts; it is taken up again as soon as both have noticed")
	}
	m.torn = true
}

// givenUp reports whether a broken post-copy is left to perform: nobody moves it, or the
// call has not returned for so long that it never will. (A QEMU that waits for a page while it
// holds its big lock answers libvirt no more.)
func (m *monitor) givenUp() bool {
	return m.torn && (m.worker == nil || time.Since(m.recovery.since) > m.r.s.cfg.RecoverTimeout)
}

// broken reports whether the guest's memory is in two places and nothing moves it. A
// hypervisor that can't be asked is asked again, for RecoverTimeout at most and until the
// destination says that there is nothing to take up; settle judges without it then.
func (r *run) broken(ctx context.Context) (bool, error) {
	c, since := r.s.cfg, time.Now()
	for pause := c.RetryFirst; r.record().PostCopy; pause = min(pause+c.RetryFirst, c.RetryLimit) {
		d, err := r.look(ctx)
		if sight := SightOf(d, err); sight != SightUnknown {
			return sight == SightLost, nil
		}
		logkit.From(ctx).Warn("nobody can see whether post-copy is broken; it is looked at again", logkit.Err(err))
		if res, err := r.post(ctx, false); err == nil && needless(res) || time.Since(since) > c.RecoverTimeout {
			return false, nil
		}
		if err := r.pauseUntilHurried(ctx, pause); err != nil {
			return false, err
		}
	}
	return false, nil
}

// takeUp waits for its turn and resumes a broken post-copy; w is the worker of the try
// before. Its error says that the recovery is given up. No worker: there is nothing to take
// up. Post-copy is not broken, or nobody wants the memory that is left here ([needless]).
func (r *run) takeUp(ctx context.Context, rec *recovery, w *worker) (*worker, error) {
	if broken, err := r.broken(ctx); !broken {
		return nil, err
	}
	c, dest, said := r.s.cfg, r.record().Migration.Dest, w.err()
	if rec.since.IsZero() {
		rec.since = time.Now()
		logkit.From(ctx).Error("post-copy is broken: the guest's memory is on two hosts; it is taken up again", logkit.Err(said))
	}
	res, err := r.post(ctx, false)
	switch {
	case err != nil: // it is asked again
	case needless(res):
		return nil, nil
	case hopeless(res):
		return nil, r.splitForGood("%s answers that the guest is %s there: its memory can't be put together any more", dest, sightIn(res))
	}
	if time.Since(rec.since) > c.RecoverTimeout {
		return nil, errors.Join(r.splitForGood("post-copy to %s is broken and could not be taken up within %v", dest, c.RecoverTimeout), said)
	}
	if err := r.pauseUntilHurried(ctx, rec.pause); err != nil {
		return nil, err
	}
	rec.pause = min(rec.pause+c.RetryFirst, c.RetryLimit)
	req := r.request()
	next := &worker{}
	r.spawnWorker(ctx, next, func(ctx context.Context) error { return r.s.ports.Hypervisor.ResumePostCopy(ctx, req) })
	return next, nil
}

// needless reports whether the destination's answer leaves nothing to take up: its guest runs
// outside post-copy, with all of its memory or started anew; or the owner has put it off; or
// it lives elsewhere by now, or nowhere. A guest that is paused may hide post-copy behind that.
func needless(res api.OwnedResult) bool {
	sight := sightIn(res)
	return res.Owned && (res.Superseded || sight == SightRunning || sight == SightOff)
}

// hopeless reports whether the other half of the guest's memory is gone.
func hopeless(res api.OwnedResult) bool {
	sight := sightIn(res)
	return !needless(res) && (sight == SightAbsent || sight == SightOff)
}

// splitForGood is the outcome of a guest whose memory stays in two places.
func (r *run) splitForGood(format string, args ...any) error {
	f := fault.Newf(fault.Internal, op, r.id, format, args...).
		WithHint("when both hosts reach each other: compute-agent migration recover %s", r.id)
	return errors.Join(errUnknown, f)
}

// pauseUntilHurried sleeps, or less when somebody asks for the next try or the hypervisor is
// connected anew. Who asked before a try that waits for nothing has it with that.
func (r *run) pauseUntilHurried(ctx context.Context, d time.Duration) error {
	hurried := r.hurries()
	if d == 0 {
		select {
		case <-hurried:
		default:
		}
	}
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	sleep := green.Spawn(wait, func(ctx context.Context) (struct{}, error) { return struct{}{}, green.Sleep(ctx, d) })
	select {
	case <-sleep.Done():
	case <-hurried:
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// Recover takes up a broken post-copy at once, without its pause. Conflict when the
// migration is not in post-copy; not_found when it is in nobody's hands: TakeUp is for
// those.
func (s *Source) Recover(_ context.Context, instanceID, migrationID string) error {
	r, err := s.find(methodRecover, instanceID, migrationID)
	if err != nil {
		return err
	}
	if !r.record().PostCopy {
		return fault.New(fault.Conflict, methodRecover, r.id, "the migration is not in post-copy: there is nothing to take up")
	}
	r.poke()
	r.hurry()
	return nil
}

// TakeUp ends the freeze of a migration whose post-copy is broken, and gives the record
// with which Run goes on. Conflict when the guest's memory is not in two places.
func (s *Source) TakeUp(ctx context.Context, rec Record) (Record, error) {
	facts, _, err := s.Look(ctx, rec)
	if err != nil {
		return rec, err
	}
	if !rec.PostCopy || facts.Source != SightLost {
		return rec, fault.Newf(fault.Conflict, methodRecover, rec.Migration.UUID, "there is no broken post-copy to take up: on %s the guest is %s",
			rec.Migration.Source, facts.Source).WithHint("compute-agent migration resolve %s shows the facts of both hosts", rec.Migration.UUID)
	}
	r, err := s.thaw(methodRecover, &rec)
	if err != nil {
		return rec, err
	}
	defer s.drop(r)
	err = r.save(ctx, func(rec *Record) {
		*rec = rec.advance(PhasePerform, instance.MigrationRunning, false)
		rec.Settling, rec.Verdict, rec.Migration.Fault = true, VerdictNone, nil
	})
	return r.withTimeline(), err
}
