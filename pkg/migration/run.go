package migration

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// errUnknown marks an outcome that the facts do not decide.
var errUnknown = errors.New("the outcome is unknown")

// journalTries is how often a record is offered to a journal that refuses it.
const journalTries = 5

// run is one migration on its source, from Accept to the end of Run.
type run struct {
	s        *Source
	id       string // of the migration
	instance string
	begun    bool          // Run has it; guarded by Source.mu
	accepted bool          // Accept has journaled it; guarded by Source.mu
	wake     chan struct{} // one beat of the monitor, now

	limiting chan struct{} // holds a token: one change of the hypervisor's limit at a time
	saving   chan struct{} // holds a token: one change of the record at a time, in journal order; before mu

	mu      sync.Mutex
	rec     Record
	cancel  context.CancelCauseFunc // of the step that an abort may cut short; nil: none
	job     *virt.Job               // of the job-completed event
	forced  *green.Event[Action]    // somebody waits for force-complete
	slot    bool
	inForce limits // of bandwidth, MiB/s, that the hypervisor has
	stood   bool   // the guest was seen to stand still for its switch-over
	line    timeline
	resumed bool // this walk began at a phase after accept
}

func newRun(s *Source, rec Record) *run {
	rec.Migration.Policy = or(rec.Migration.Policy, s.cfg.Policy)
	r := &run{
		s: s, id: rec.Migration.UUID, instance: rec.Migration.Instance,
		rec: rec, resumed: rec.Phase != PhaseAccept, wake: make(chan struct{}, 1), saving: make(chan struct{}, 1),
		limiting: make(chan struct{}, 1), line: restored(rec.Timeline),
	}
	r.rec.Timeline = nil // the journal has it, and line
	return r
}

func (r *run) config() Config { return r.s.cfg }

// record gives a copy of the record as it stands.
func (r *run) record() Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec
}

// poke wakes the monitor.
func (r *run) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// hear takes one event of the guest.
func (r *run) hear(e virt.Event) {
	if e.Kind == virt.EventJobCompleted && e.Job != nil {
		r.mu.Lock()
		r.job = e.Job
		r.mu.Unlock()
	}
	if e.Kind == virt.EventSuspended && e.Reason == virt.ReasonMigrated {
		r.mu.Lock()
		r.stood = true
		r.mu.Unlock()
	}
	r.poke()
}

// handedOver reports whether the destination may have been told to let the guest run: it
// stood still here for its switch-over. What can't be seen may have been.
func (r *run) handedOver(ctx context.Context) bool {
	r.mu.Lock()
	stood := r.stood
	r.mu.Unlock()
	if stood {
		return true
	}
	d, err := r.look(ctx)
	sight := SightOf(d, err)
	return sight == SightUnknown || sight == SightMoving || d.Reason == virt.ReasonCanceled
}

// completedJob gives the statistics of the event, nil before it.
func (r *run) completedJob() *virt.Job {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.job
}

// save changes the record, journals it and reports it. When the journal refuses often
// enough, the record is as before; what must be written, because nothing can be undone
// any more, is offered until ctx ends.
func (r *run) save(ctx context.Context, change func(*Record)) error {
	select {
	case r.saving <- struct{}{}:
	case <-ctx.Done():
		return fault.Wrap(context.Cause(ctx), op, r.id)
	}
	defer func() { <-r.saving }()
	next := r.record()
	change(&next)
	next.UpdatedAt = time.Now()
	next.Migration.UpdatedAt = next.UpdatedAt
	retry := green.Retry{Max: journalTries - 1, First: r.s.cfg.RetryFirst, Limit: r.s.cfg.RetryLimit}
	if next.Undoing || next.Ended() || afterPerform(next.Phase) { // there is no other way to go
		retry.Max = -1
	}
	_, err := green.RetryCall(ctx, retry, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.s.ports.Journal.Save(ctx, r.withTimeline(next))
	})
	if err != nil {
		return fault.Wrap(causeOf(ctx, err), op, r.id)
	}
	r.set(next)
	return nil
}

// afterPerform reports whether a phase of the source lies behind the commit point.
func afterPerform(p Phase) bool { return p == PhaseSwitch || p == PhaseClean }

// note changes the record and reports it; it is not worth a write to the journal.
func (r *run) note(change func(*Record)) {
	r.saving <- struct{}{}
	defer func() { <-r.saving }()
	next := r.record()
	change(&next)
	next.Migration.UpdatedAt = time.Now()
	r.set(next)
}

func (r *run) set(next Record) {
	r.mu.Lock()
	r.rec = next
	r.mu.Unlock()
	r.s.ports.Reporter.Report(next.Migration)
}

// enter implements walker. The border between perform and switch is where an abort
// comes too late; before perform a requested abort goes first.
func (r *run) enter(ctx context.Context, p Phase, status instance.MigrationStatus, quiet bool) error {
	change := func(rec *Record) { *rec = rec.advance(p, status, false) }
	logkit.From(ctx).Debug("migration enters a phase", logkit.Phase.Of(string(p)))
	if quiet {
		r.note(change)
		return nil
	}
	return r.save(ctx, change)
}

// retreat implements walker.
func (r *run) retreat(ctx context.Context, p Phase) error {
	return r.save(ctx, func(rec *Record) { *rec = rec.advance(p, "", true) })
}

// conduct is Run, once the migration is registered.
func (r *run) conduct(ctx context.Context, accepted bool) (instance.Migration, error) {
	rec := r.record()
	ctx = logkit.With(ctx, logkit.Instance.Of(r.instance), logkit.Migration.Of(r.id), logkit.Peer.Of(rec.Migration.Dest))
	from := rec.Phase
	switch {
	case rec.Ended():
		return rec.Migration, nil
	case rec.Undoing:
		var why error
		if rec.Migration.Fault != nil { // a nil *Error is no nil error
			why = rec.Migration.Fault
		}
		return r.giveUp(ctx, from, rec.Verdict, why)
	case from == PhasePrepare:
		return r.giveUp(ctx, from, VerdictFailed, fault.New(fault.Unavailable, op, r.id, "the agent was restarted while the destination prepared").
			WithHint("start the migration again"))
	case from == PhaseAccept && accepted, from == PhaseCheck:
		from = PhaseQueue // after a restart from check too: the slot went with it
	case from == PhasePerform && rec.PausedByUs:
		r.recallPause(ctx)
	}
	logkit.From(ctx).Info("live migration begins", logkit.Phase.Of(string(from)))
	reached, err := walk(ctx, r, sourceTable(), from)
	return r.conclude(ctx, reached, err)
}

// recallPause takes the mark of a pause back that was journaled and not done before the
// agent died: the guest runs here. With the mark no policy would pause it again.
func (r *run) recallPause(ctx context.Context) {
	d, err := r.look(ctx)
	if err != nil || d.State != virt.Running {
		return
	}
	logkit.From(ctx).Warn("the guest was to be paused before the restart, and runs")
	r.note(func(rec *Record) { rec.PausedByUs, rec.Migration.Mode = false, instance.ModePreCopy })
}

// conclude ends a walk that went forward.
func (r *run) conclude(ctx context.Context, reached Phase, err error) (instance.Migration, error) {
	switch {
	case ctx.Err() != nil && err != nil:
		return r.record().Migration, context.Cause(ctx)
	case err == nil:
		return r.finish(ctx, VerdictCompleted, nil)
	case errors.Is(err, errUnknown), afterPerform(reached):
		return r.freeze(ctx, err)
	case fault.KindOf(err) == fault.Cancelled:
		return r.giveUp(ctx, reached, VerdictCancelled, err)
	default:
		return r.giveUp(ctx, reached, VerdictFailed, err)
	}
}

// giveUp undoes what was done up to a phase; the guest stays here.
func (r *run) giveUp(ctx context.Context, reached Phase, v Verdict, why error) (instance.Migration, error) {
	logkit.From(ctx).Warn("live migration is undone", logkit.Phase.Of(string(reached)), logkit.Err(why))
	err := r.save(ctx, func(rec *Record) {
		*rec = rec.advance(reached, "", true)
		rec.Verdict = v
		rec.Migration.Fault = fault.Wire(why)
	})
	if err == nil {
		err = unwind(ctx, r, sourceTable(), reached)
	}
	switch {
	case ctx.Err() != nil:
		return r.record().Migration, context.Cause(ctx)
	case errors.Is(err, errUnknown):
		return r.judgeAgain(ctx, errors.Join(why, err))
	default:
		return r.finish(ctx, v, errors.Join(why, err))
	}
}

// judgeAgain is what follows when the undoing of a migration met facts that speak against
// it, such as a destination that has the guest: its answer was missing when the outcome was
// judged. When the facts prove now that the guest is there, the migration goes on to its
// end; else it is frozen.
func (r *run) judgeAgain(ctx context.Context, why error) (instance.Migration, error) {
	v, running, err := r.settle(ctx, nil)
	if ctx.Err() != nil {
		return r.record().Migration, context.Cause(ctx)
	}
	if err != nil || running || v != VerdictCompleted {
		return r.freeze(ctx, errors.Join(why, err))
	}
	logkit.From(ctx).Warn("the migration is not undone: the guest has arrived", logkit.Err(why))
	err = r.save(ctx, func(rec *Record) {
		*rec = rec.advance(PhaseSwitch, instance.MigrationPost, false)
		rec.Verdict, rec.Migration.Fault = VerdictNone, nil
	})
	if err != nil {
		return r.freeze(ctx, errors.Join(why, err))
	}
	reached, err := walk(ctx, r, sourceTable(), PhaseSwitch)
	return r.conclude(ctx, reached, err)
}

// freeze ends the walk without an outcome: nothing more is done until people, or a
// later look at the facts, decide.
func (r *run) freeze(ctx context.Context, why error) (instance.Migration, error) {
	e := fault.WrapAs(fault.Internal, why, op, r.id)
	if f := new(fault.Error); errors.As(e, &f) && f.Hint == "" {
		e = f.WithHint("nothing was destroyed, and nothing more is done until the facts are clear; decide: compute-agent migration resolve %s", r.id)
	}
	logkit.From(ctx).Error("live migration has an unknown outcome", logkit.Err(e))
	err := r.save(ctx, func(rec *Record) {
		rec.Verdict = VerdictUnknown
		rec.Migration.Status = instance.MigrationError
		rec.Migration.Fault = fault.Wire(e)
		rec.Migration.Result = r.result(*rec, e)
	})
	return r.record().Migration, errors.Join(e, err)
}

// statusOf is the end that nova's tools know.
func (v Verdict) statusOf() instance.MigrationStatus {
	switch v {
	case VerdictCompleted:
		return instance.MigrationCompleted
	case VerdictFailed:
		return instance.MigrationFailed
	case VerdictCancelled:
		return instance.MigrationCancelled
	case VerdictUnknown, VerdictNone:
		return instance.MigrationError
	}
	return instance.MigrationError
}

// finish closes the record.
func (r *run) finish(ctx context.Context, v Verdict, why error) (instance.Migration, error) {
	err := r.save(ctx, func(rec *Record) {
		*rec = rec.advance(PhaseEnd, v.statusOf(), false)
		rec.Verdict = v
		rec.Migration.EndedAt = time.Now()
		rec.Migration.Fault = fault.Wire(why)
		rec.Migration.Result = r.result(*rec, why)
		if v == VerdictCompleted {
			rec.Migration.Progress.Percent = 100
			rec.Migration.Progress.Memory.Remaining = 0
		}
	})
	m := r.record().Migration
	if err != nil {
		return m, errors.Join(why, err)
	}
	logkit.From(ctx).Info("live migration ended as "+string(v), logkit.Took.Of(m.EndedAt.Sub(m.StartedAt)), logkit.Err(why))
	return m, why
}

// result collects what is known at the end.
func (r *run) result(rec Record, why error) *instance.Result {
	res := instance.Result{TotalMS: time.Since(rec.Migration.StartedAt).Milliseconds()}
	if rec.Migration.Result != nil {
		res.DowntimeMS = rec.Migration.Result.DowntimeMS
	}
	p := rec.Migration.Progress
	res.Bytes, res.Iterations = p.Memory.Processed+p.Disk.Processed, p.Iteration
	if j := r.completedJob(); j != nil {
		res.Bytes, res.Iterations = j.Memory.Processed+j.Disk.Processed, j.Iteration
		if j.Downtime > 0 && j.Type == JobCompleted {
			res.DowntimeMS = j.Downtime.Milliseconds()
		}
	}
	res.Timeline = r.remembered()
	if len(res.Timeline) == 0 && rec.Migration.Result != nil { // of a walk before a restart
		res.Timeline = rec.Migration.Result.Timeline
	}
	res.ThrottlePercent = throttled(res.Timeline)
	switch {
	case why != nil:
		res.Reason = why.Error()
	case rec.AbortRequested:
		res.Reason = "completed: the abort came too late"
	}
	return &res
}

func (r *run) takeSlot() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slot = true
}

// releaseSlot gives the outbound slot back, if it is held.
func (r *run) releaseSlot() {
	r.mu.Lock()
	held := r.slot
	r.slot = false
	r.mu.Unlock()
	if held {
		r.s.slots.release()
	}
}

// peerArgs tells the destination of the guest.
func (r *run) peerArgs() api.PeerMigrateArgs {
	rec := r.record()
	return api.PeerMigrateArgs{
		Migration:  r.id,
		Generation: rec.Migration.Generation,
		Source:     rec.Migration.Source,
		Instance:   rec.Instance,
		Storage:    rec.Storage,
		Copies:     targetsOf(rec.Copies),
		TLS:        r.s.cfg.NativeTLS,
		PostCopy:   r.canPostCopy(),
		CPU:        rec.CPU,
	}
}
