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
	begun    bool                                      // Run has it; guarded by Source.mu
	accepted bool                                      // Accept has journaled it; guarded by Source.mu
	monitor  *monitor                                  // of perform; its beats use it, and before and after them the walk
	beats    *green.FixedIntervalLoopingCall[struct{}] // of the monitor

	limiting turn // one change of the hypervisor's limit at a time
	saving   turn // one change of the record at a time, in journal order; before mu

	mu      sync.Mutex
	at      standing             // of rec
	job     *virt.Job            // of the job-completed event
	forced  *green.Event[Action] // somebody waits for force-complete
	inForce limits               // of bandwidth, MiB/s, that the hypervisor has
	newer   newer                // what of rec has changed since it was saved or noted
	line    timeline
	rec     *Record                 // as it was saved or noted last: the journal may have the same, nobody changes it
	cancel  context.CancelCauseFunc // of the step that an abort may cut short; nil: none
	slot    bool
	stood   bool          // the guest was seen to stand still for its switch-over
	hurried chan struct{} // the next try of a recovery, now; nil: nobody has waited or hurried yet
	resumed bool          // this walk began in perform: the job is the hypervisors' already
}

// newer is what a beat changes of the record. It is not worth a copy of the whole.
type newer struct {
	progress instance.Progress
	told     time.Time // when it was reported: Migration.UpdatedAt
}

func newRun(s *Source, rec Record) *run {
	rec.Migration.Policy = or(rec.Migration.Policy, s.cfg.Policy)
	r := &run{
		s: s, id: rec.Migration.UUID, instance: rec.Migration.Instance,
		resumed: rec.Phase == PhasePerform, line: restored(rec.Timeline),
	}
	rec.Timeline = nil // the journal has it, and line
	r.setLocked(&rec)
	r.beats = green.NewFixedIntervalLoopingCall[struct{}](func(ctx context.Context) error { return r.monitor.beat(ctx) })
	return r
}

func (r *run) config() Config { return r.s.cfg }

// record gives a copy of the record as it stands.
func (r *run) record() Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := *r.rec
	r.newer.into(&rec.Migration)
	return rec
}

func (n *newer) into(m *instance.Migration) { m.Progress, m.UpdatedAt = n.progress, n.told }

// setLocked makes rec the record; the caller lets go of it.
func (r *run) setLocked(rec *Record) {
	r.rec, r.newer = rec, newer{rec.Migration.Progress, rec.Migration.UpdatedAt}
	r.at = standing{aborted: rec.AbortRequested, postCopy: rec.PostCopy, paused: rec.PausedByUs, limit: ownLimit(&r.s.cfg, rec, rec.PostCopy)}
}

// poke has the monitor look at the job now.
func (r *run) poke() { r.beats.Wake() }

// hurry ends the pause of a recovery, this one or the next.
func (r *run) hurry() {
	select {
	case r.hurries() <- struct{}{}:
	default:
	}
}

// hurries is where hurry is heard.
func (r *run) hurries() chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hurried == nil {
		r.hurried = make(chan struct{}, 1)
	}
	return r.hurried
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
// stood still here for its switch-over, or has said that it owns it. What can't be seen may
// have been.
func (r *run) handedOver(ctx context.Context) bool {
	r.mu.Lock()
	stood := r.stood || r.rec.OwnedThere
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
	if err := r.saving.take(ctx); err != nil {
		return fault.Wrap(err, op, r.id)
	}
	defer r.saving.pass()
	next := r.record()
	change(&next)
	next.UpdatedAt = time.Now()
	next.Migration.UpdatedAt = next.UpdatedAt
	retry := green.Retry{Max: journalTries - 1, First: r.s.cfg.RetryFirst, Limit: r.s.cfg.RetryLimit}
	if next.Undoing || next.Ended() || afterPerform(next.Phase) { // there is no other way to go
		retry.Max = -1
	}
	_, err := green.RetryCall(ctx, retry, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.s.ports.Journal.Save(ctx, &next, r.lineOf(&next))
	})
	if err != nil {
		return fault.Wrap(causeOf(ctx, err), op, r.id)
	}
	r.set(&next)
	return nil
}

// afterPerform reports whether a phase of the source lies behind the commit point.
func afterPerform(p Phase) bool { return p == PhaseSwitch || p == PhaseClean }

// note changes the record and reports it; it is not worth a write to the journal.
func (r *run) note(change func(*Record)) {
	r.saving.wait()
	defer r.saving.pass()
	next := r.record()
	change(&next)
	next.Migration.UpdatedAt = time.Now()
	r.set(&next)
}

// progress keeps what a beat saw, and reports it if told. Percent never falls. While
// somebody else changes the record it does nothing: the next beat is near.
func (r *run) progress(p instance.Progress, tell bool) {
	if !r.saving.try() {
		return
	}
	defer r.saving.pass()
	r.mu.Lock()
	p.Percent = max(p.Percent, r.newer.progress.Percent)
	r.newer.progress = p
	if tell {
		r.newer.told = time.Now()
	}
	r.mu.Unlock()
	if tell {
		r.report()
	}
}

// report tells of the migration as it stands.
func (r *run) report() { r.s.ports.Reporter.Report(r.shown()) }

// standing is what of the record each beat asks for.
type standing struct {
	aborted, postCopy, paused bool
	limit                     uint64 // its own, of bandwidth, in MiB/s
}

// standing gives it, and whether somebody waits for force-complete.
func (r *run) standing() (at standing, forced bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at, r.forced != nil
}

func (r *run) set(next *Record) {
	r.mu.Lock()
	r.setLocked(next)
	r.mu.Unlock()
	r.s.ports.Reporter.Report(next.Migration)
}

// enter implements walker. The border between perform and switch is where an abort
// comes too late; before perform a requested abort goes first.
func (r *run) enter(ctx context.Context, p Phase, status instance.MigrationStatus, quiet bool) error {
	change := func(rec *Record) { *rec = rec.advance(p, status, false) }
	return aside(ctx, func(ctx context.Context) error {
		logkit.From(ctx).Debug("migration enters a phase", logkit.Phase.Of(string(p)))
		if quiet {
			r.note(change)
			return nil
		}
		return r.save(ctx, change)
	})
}

// retreat implements walker.
func (r *run) retreat(ctx context.Context, p Phase) error {
	return r.save(ctx, func(rec *Record) { *rec = rec.advance(p, "", true) })
}

// conduct is Run, once the migration is registered. What it calls before and after the
// walk keeps its copies of the record to itself: the walk waits for minutes, with the
// stack under it.
func (r *run) conduct(ctx context.Context, accepted bool) error {
	ctx = r.named(ctx)
	from, over, err := r.outsetAside(ctx, accepted)
	if over || err != nil {
		return err
	}
	reached, err := walk(ctx, r, r.s.table, from)
	return aside(ctx, func(ctx context.Context) error { return r.conclude(ctx, reached, err) })
}

// named gives the migration's log its name.
func (r *run) named(ctx context.Context) context.Context {
	return logkit.With(ctx, logkit.Instance.Of(r.instance), logkit.Migration.Of(r.id), logkit.Peer.Of(r.dest()))
}

func (r *run) outsetAside(ctx context.Context, accepted bool) (from Phase, over bool, err error) {
	err = aside(ctx, func(ctx context.Context) (err error) {
		from, over, err = r.outset(ctx, accepted)
		return err
	})
	return from, over, err
}

// outset is where the walk begins; over: it has ended already.
func (r *run) outset(ctx context.Context, accepted bool) (from Phase, over bool, err error) {
	rec := r.record()
	from = rec.Phase
	switch {
	case rec.Ended():
		return from, true, nil
	case rec.Undoing:
		var why error
		if rec.Migration.Fault != nil { // a nil *Error is no nil error
			why = rec.Migration.Fault
		}
		err = r.giveUp(ctx, from, rec.Verdict, why)
		return from, true, err
	case from == PhasePrepare:
		err = r.giveUp(ctx, from, VerdictFailed, fault.New(fault.Unavailable, op, r.id, "the agent was restarted while the destination prepared").
			WithHint("start the migration again"))
		return from, true, err
	case from == PhaseAccept && accepted, from == PhaseCheck:
		from = PhaseQueue // after a restart from check too: the slot went with it
	case from == PhasePerform && rec.PausedByUs:
		r.recallPause(ctx)
	}
	logkit.From(ctx).Info("live migration begins", logkit.Phase.Of(string(from)))
	return from, false, nil
}

// shown gives the migration as it stands.
func (r *run) shown() instance.Migration {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.rec.Migration
	r.newer.into(&m)
	return m
}

// copied is shown for whoever has little room on his stack.
//
//go:noinline
func (r *run) copied() *instance.Migration {
	m := r.shown()
	return &m
}

// dest is the other host.
func (r *run) dest() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.Migration.Dest
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
func (r *run) conclude(ctx context.Context, reached Phase, err error) error {
	switch {
	case ctx.Err() != nil && err != nil:
		return context.Cause(ctx)
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
func (r *run) giveUp(ctx context.Context, reached Phase, v Verdict, why error) error {
	logkit.From(ctx).Warn("live migration is undone", logkit.Phase.Of(string(reached)), logkit.Err(why))
	err := r.save(ctx, func(rec *Record) {
		*rec = rec.advance(reached, "", true)
		rec.Verdict = v
		rec.Migration.Fault = fault.Wire(why)
	})
	if err == nil {
		err = unwind(ctx, r, r.s.table, reached)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
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
func (r *run) judgeAgain(ctx context.Context, why error) error {
	v, running, err := r.settle(ctx, nil)
	if ctx.Err() != nil {
		return context.Cause(ctx)
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
	reached, err := walk(ctx, r, r.s.table, PhaseSwitch)
	return r.conclude(ctx, reached, err)
}

// freeze ends the walk without an outcome: nothing more is done until people, or a
// later look at the facts, decide.
func (r *run) freeze(ctx context.Context, why error) error {
	e := fault.WrapAs(fault.Internal, why, op, r.id)
	if f := new(fault.Error); errors.As(e, &f) && f.Hint == "" {
		e = f.WithHint("nothing was destroyed, and nothing more is done until the facts are clear; decide: compute-agent migration resolve %s", r.id)
	}
	logkit.From(ctx).Error("live migration has an unknown outcome", logkit.Err(e))
	err := r.save(ctx, func(rec *Record) {
		if !rec.Undoing { // else it goes on being undone as what it was, when it does
			rec.Verdict = VerdictUnknown
		}
		rec.Migration.Status = instance.MigrationError
		rec.Migration.Fault = fault.Wire(e)
		rec.Migration.Result = r.result(*rec, e)
	})
	return errors.Join(e, err)
}

// finish closes the record.
func (r *run) finish(ctx context.Context, v Verdict, why error) error {
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
	if err != nil {
		return errors.Join(why, err)
	}
	m := r.shown()
	logkit.From(ctx).Info("live migration ended as "+string(v), logkit.Took.Of(m.EndedAt.Sub(m.StartedAt)), logkit.Err(why))
	return why
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
	_, compression := r.s.cfg.streams(rec.Args.ParallelConnections, rec.Args.Compression, r.canPostCopy())
	return api.PeerMigrateArgs{
		Migration:   r.id,
		Generation:  rec.Migration.Generation,
		Source:      rec.Migration.Source,
		Instance:    rec.Instance,
		Storage:     rec.Storage,
		Copies:      targetsOf(rec.Copies),
		TLS:         r.s.cfg.NativeTLS,
		PostCopy:    r.canPostCopy(),
		Compression: compression,
		CPU:         rec.CPU,
	}
}
