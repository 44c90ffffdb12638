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
	"github.com/compute-agent/compute-agent/pkg/virt"
)

/*
arrival is one guest that is to come, from the first word of it to its end here:

	claim ─▶ files ─▶ plug ─▶ ready ─▶ await ─▶ activate ─▶ own ─▶ end
	  │        │        │       │        │       └── the commit point: never undone
	  └────────┴────────┴───────┴────────┴── undone: rollback, a failure, a claim that ran out ─▶ end

A rollback of a migration that nobody announced leaves an ended arrival too, so that
an announcement that comes late is refused.
*/
type arrival struct {
	d        *Dest
	id       string // of the migration
	instance string
	turn     turn // whoever has it works on the arrival

	mu     sync.Mutex
	rec    Record
	cancel context.CancelCauseFunc // of a prepare that is under way

	// With the turn only:
	slot     bool
	failed   error         // why prepare failed
	cutShort bool          // an earlier life of the agent did not end it
	pause    time.Duration // before the last try to undo that
	trouble  logkit.Repeated
	timer    *green.Thread[struct{}]
}

func newArrival(d *Dest, rec Record) *arrival {
	return &arrival{d: d, id: rec.Migration.UUID, instance: rec.Migration.Instance, rec: rec}
}

// prepareTable is what makes a host ready, and how each of it is taken back.
func prepareTable() []step[*arrival] {
	return []step[*arrival]{
		{name: PhaseClaim, do: (*arrival).claim, undo: (*arrival).unclaim},
		{name: PhaseFiles, do: (*arrival).files, undo: (*arrival).unfile},
		{name: PhasePlug, do: (*arrival).plug, undo: (*arrival).unplug},
		{name: PhaseReady, do: (*arrival).ready},
		{name: PhaseAwait, do: (*arrival).await, undo: (*arrival).unawait},
	}
}

// commitTable is what makes the guest this host's own. The ports come first: until
// they speak the guest can't be reached.
func commitTable() []step[*arrival] {
	return []step[*arrival]{
		{name: PhaseActivate, status: instance.MigrationPost, quiet: true, do: (*arrival).activate},
		{name: PhaseOwn, status: instance.MigrationPost, quiet: true, do: (*arrival).own},
	}
}

func (a *arrival) logged(ctx context.Context) context.Context {
	return logkit.With(ctx, logkit.Instance.Of(a.instance), logkit.Migration.Of(a.id), logkit.Peer.Of(a.record().Migration.Source))
}

// lock waits for the turn; unlock passes it on.
func (a *arrival) lock(ctx context.Context) error { return a.turn.take(ctx) }

func (a *arrival) unlock() { a.turn.pass() }

func (a *arrival) config() Config { return a.d.cfg }

func (a *arrival) record() Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rec
}

func (a *arrival) note(change func(*Record)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&a.rec)
}

// save changes the record and journals it; with the turn only.
func (a *arrival) save(ctx context.Context, change func(*Record)) error {
	next := a.record()
	change(&next)
	retry := green.Retry{Max: journalTries - 1, First: a.d.cfg.RetryFirst, Limit: a.d.cfg.RetryLimit}
	_, err := green.RetryCall(ctx, retry, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, a.d.ports.Journal.Save(ctx, &next, nil)
	})
	if err != nil {
		return fault.Wrap(causeOf(ctx, err), op, a.id)
	}
	a.note(func(rec *Record) { *rec = next })
	return nil
}

// supersede notes that nothing of what was brought is wanted any more.
func (a *arrival) supersede(ctx context.Context) error {
	if err := a.lock(ctx); err != nil {
		return err
	}
	defer a.unlock()
	if a.record().Superseded {
		return nil
	}
	return a.save(ctx, func(rec *Record) { rec.Superseded = true })
}

// enter implements walker.
func (a *arrival) enter(ctx context.Context, p Phase, status instance.MigrationStatus, quiet bool) error {
	change := func(rec *Record) { *rec = rec.advance(p, status, false) }
	if quiet {
		a.note(change)
		return nil
	}
	return a.save(ctx, change)
}

// retreat implements walker.
func (a *arrival) retreat(ctx context.Context, p Phase) error {
	return a.save(ctx, func(rec *Record) { *rec = rec.advance(p, "", true) })
}

// awaits reports whether the guest may come.
func (a *arrival) awaits() bool {
	rec := a.record()
	return rec.Phase == PhaseAwait && !rec.Undoing
}

// cut ends a prepare that is under way.
func (a *arrival) cut(cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cancel != nil {
		a.cancel(cause)
	}
}

// prepare makes everything ready, or undoes it. A host without a free slot or without
// room is left as it was, and may be asked again.
func (a *arrival) prepare(ctx context.Context) error {
	if !a.d.slots.try() {
		a.d.forget(a)
		return a.d.busy()
	}
	a.slot = true
	if !a.d.expect(a) {
		a.releaseSlot()
		a.d.forget(a)
		return fault.New(fault.Conflict, op, a.instance, "another migration of this instance to this host is under way")
	}
	logkit.From(ctx).Info("a guest is announced")
	work, cancel := context.WithCancelCause(ctx)
	a.mu.Lock()
	a.cancel = cancel
	a.mu.Unlock()
	reached, err := walk(work, a, prepareTable(), PhaseClaim)
	err = causeOf(work, err)
	a.mu.Lock()
	a.cancel = nil
	a.mu.Unlock()
	cancel(nil)
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(ctx), ErrStopping) { // taken back at the next start
		return err
	}
	a.failed = err
	// Whoever asked may be gone; what was made is taken back all the same, and again when that fails.
	lasting := context.WithoutCancel(ctx)
	clean, done := within(lasting, a.d.cfg.RollbackTimeout, "undoing what was prepared")
	defer done()
	left := a.undo(clean, reached, err)
	a.again(lasting, left)
	return errors.Join(err, left)
}

// undo takes back what was prepared up to a phase, and closes the record. What could
// not be taken back, or not be journaled, is tried again by the next Rollback, or when the
// claim runs out.
func (a *arrival) undo(ctx context.Context, reached Phase, why error) error {
	err := unwind(ctx, a, prepareTable(), reached)
	if err == nil {
		err = a.close(ctx, instance.MigrationFailed, why)
	}
	if err != nil {
		a.arm(a.d.cfg.ClaimTimeout) //nolint:contextcheck // the claim outlives the request
	}
	return err
}

// close ends the record and everything that hangs on it.
func (a *arrival) close(ctx context.Context, status instance.MigrationStatus, why error) error {
	err := a.save(ctx, func(rec *Record) {
		*rec = rec.advance(PhaseEnd, status, false)
		rec.Migration.EndedAt = rec.UpdatedAt
		if why != nil {
			rec.Migration.Fault = fault.Wire(why)
		}
	})
	if err != nil {
		return err
	}
	a.disarm() //nolint:contextcheck // the claim outlives the request
	a.releaseSlot()
	a.d.over(a)
	logkit.From(ctx).Info("the arriving migration ended here as "+string(status), logkit.Err(why))
	return nil
}

func (a *arrival) releaseSlot() {
	if a.slot {
		a.slot = false
		a.d.slots.release()
	}
}

// rollback is the source's word that the guest does not come.
func (a *arrival) rollback(ctx context.Context) error {
	rec := a.record()
	if rec.Committed {
		return fault.New(fault.Conflict, op, a.instance, "the guest runs here").WithHint("it has arrived: nothing is undone")
	}
	if rec.Ended() {
		return nil
	}
	dom, err := a.look(ctx)
	if err != nil {
		return err
	}
	if Committed(dom, rec.WasPaused, false) {
		if err := a.commit(ctx); err != nil {
			return err
		}
		return fault.New(fault.Conflict, op, a.instance, "the guest runs here").WithHint("it has arrived: nothing is undone")
	}
	return a.undo(ctx, a.reached(), fault.New(fault.Cancelled, op, a.id, "the source took the migration back"))
}

// reached is the phase from which to undo; nothing was made of a record that was not
// journaled yet, and undoing that is harmless.
func (a *arrival) reached() Phase {
	if p := a.record().Phase; indexOf(prepareTable(), p) >= 0 {
		return p
	}
	return PhaseAwait
}

// unseen is a guest for which the hypervisor could not be asked: no word on it, where the zero
// Domain says that there is none.
func unseen() virt.Domain { return virt.Domain{State: virt.NoState} }

// look asks the hypervisor for the guest of this migration. None, or one that another
// migration brought, is the zero Domain; with an error it is unseen.
func (a *arrival) look(ctx context.Context) (virt.Domain, error) {
	ctx, cancel := within(ctx, a.d.cfg.HypervisorWait, "the hypervisor's answer")
	defer cancel()
	dom, err := a.d.ports.Hypervisor.Lookup(ctx, a.instance)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return virt.Domain{}, nil
	case err != nil:
		return unseen(), causeOf(ctx, err)
	case dom.Migration != a.id:
		return virt.Domain{}, nil
	}
	return dom, nil
}

// since looks at what became of a guest that is owned here and is not the domain any more
// that this migration brought: it was started anew. A later migration's is not told of. anew:
// it lives, here or by now elsewhere, and nothing of what was brought is wanted. Of one that
// is off that is not said: it may have crashed.
func (a *arrival) since(ctx context.Context, brought virt.Domain) (dom virt.Domain, anew bool) {
	if !a.record().Committed || brought.State != "" {
		return brought, false
	}
	ctx, cancel := within(ctx, a.d.cfg.HypervisorWait, "the hypervisor's answer")
	defer cancel()
	dom, err := a.d.ports.Hypervisor.Lookup(ctx, a.instance)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return unseen(), false
	}
	if err != nil || dom.Generation != a.record().Migration.Generation {
		return virt.Domain{}, false
	}
	switch SightOf(dom, nil) {
	case SightRunning:
		return dom, dom.State != virt.Crashed
	case SightPaused:
		return dom, true
	case SightOff:
		return dom, false
	case SightLeft, SightMoving, SightPostCopy, SightLost: // of a later migration's way, which says nothing of this one
		return virt.Domain{}, true
	case SightUnknown, SightAbsent:
	}
	return unseen(), false
}

// heard acts on an event. RESUMED is the fact itself: asking again would lengthen the
// guest's outage.
func (a *arrival) heard(ctx context.Context, e virt.Event) error {
	switch rec := a.record(); {
	case rec.Ended():
		return nil
	case e.Kind == virt.EventResumed && (e.Reason == virt.ReasonMigrated || e.Reason == virt.ReasonPostCopy) && a.awaits():
		return a.commit(ctx)
	}
	_, err := a.lookAndCommit(ctx, false)
	if rec := a.record(); err == nil && rec.Undoing && !rec.Ended() {
		return a.undo(ctx, a.reached(), a.failed)
	}
	return err
}

// again sees to it that what went wrong is tried again soon, and says so.
func (a *arrival) again(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil || a.record().Ended() {
		return
	}
	a.trouble.Warn(ctx, "an arriving migration can't go on; it will be tried again", err, logkit.Phase.Of(string(a.record().Phase)))
	pause := a.d.cfg.RetryLimit
	if a.cutShort { // the source waits for it, and the hypervisor has often just not been reached yet
		a.pause = min(a.pause+a.d.cfg.RetryFirst, pause)
		pause = a.pause
	}
	a.arm(pause) //nolint:contextcheck // the claim outlives the request
}

// lookAndCommit takes the guest when the facts say that it has arrived; also one that
// came while its claim was being undone, before the hypervisor was told to refuse it.
func (a *arrival) lookAndCommit(ctx context.Context, sourceEnded bool) (virt.Domain, error) {
	dom, err := a.look(ctx)
	switch rec := a.record(); {
	case err != nil:
		return dom, err
	case rec.Committed && !rec.Ended():
		return dom, a.commit(ctx)
	case (a.awaits() || rec.Undoing) && Committed(dom, rec.WasPaused || rec.PausedByUs, sourceEnded):
		return dom, a.commit(ctx)
	}
	return dom, nil
}

// commit makes the guest this host's own, once. When it is called again only what was
// left to do is done: a guest that has moved on meanwhile must not be owned anew.
func (a *arrival) commit(ctx context.Context) error {
	began := time.Now()
	if a.record().Committed {
		if dom, err := a.look(ctx); err != nil {
			return err
		} else if dom.State == "" {
			return a.close(ctx, instance.MigrationCompleted, nil)
		}
	} else if _, err := walk(ctx, a, commitTable(), PhaseActivate); err != nil {
		a.note(func(rec *Record) { *rec = rec.advance(PhaseAwait, "", false) }) // the next look tries again
		return err
	}
	a.note(func(rec *Record) { rec.Committed = true })
	if rec := a.record(); rec.PausedByUs && !rec.WasPaused {
		if err := a.goOn(ctx); err != nil {
			return err
		}
	}
	logkit.From(ctx).Info("the guest has arrived and is owned here", logkit.Took.Of(time.Since(began)))
	return a.close(ctx, instance.MigrationCompleted, nil)
}

// resume goes on from the journal.
func (a *arrival) resume(ctx context.Context) error {
	rec := a.record()
	if rec.Ended() {
		a.d.over(a)
		return nil
	}
	a.d.slots.seize()
	a.slot = true
	a.d.expect(a)
	switch {
	case rec.Committed, indexOf(commitTable(), rec.Phase) >= 0:
		return a.commit(ctx)
	case rec.Phase == PhaseAwait && !rec.Undoing:
		a.arm(max(a.d.cfg.ClaimTimeout-time.Since(rec.UpdatedAt), a.d.cfg.RetryFirst)) //nolint:contextcheck // the claim outlives the request
		_, err := a.lookAndCommit(ctx, false)
		return err
	default:
		a.cutShort, a.failed = true, fault.New(fault.Unavailable, op, a.id, "the destination's agent was restarted while it prepared")
		return a.expireOnce(ctx, rec)
	}
}
