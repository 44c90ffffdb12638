package migration

import (
	"context"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
)

/*
An abort is a mark in the record, so that no restart loses it. What it does depends
on where it finds the migration:

	accept  queue  check  prepare │ perform                  │ switch  clean │ end
	the step is cut short,        │ the job is aborted, as   │ conflict: too │ not_found
	then all is undone            │ often as it takes; in    │ late          │
	                              │ post-copy: conflict      │               │

While things are being undone an abort is already on its way: success.
*/

// abort asks for the end. The mark is in the journal when it returns.
func (r *run) abort(ctx context.Context, reason string) error {
	var refused error
	err := r.save(ctx, func(rec *Record) {
		switch {
		case rec.Undoing, rec.AbortRequested:
		case rec.PostCopy:
			refused = fault.New(fault.Conflict, "live_migration_abort", r.id, "the migration is in post-copy: there is no way back").
				WithHint("wait for its end")
		case afterPerform(rec.Phase) || rec.Ended():
			refused = fault.New(fault.Conflict, "live_migration_abort", r.id, "too late: the guest has already switched over to "+rec.Migration.Dest).
				WithHint("migrate it back if you want it here")
		default:
			rec.AbortRequested, rec.AbortReason = true, reason
		}
	})
	if err != nil {
		return err
	}
	if refused != nil {
		return refused
	}
	r.mu.Lock()
	if r.cancel != nil {
		r.cancel(r.abortedLocked())
	}
	r.mu.Unlock()
	r.poke()
	return nil
}

// abortAsked reports whether somebody wants the end.
func (r *run) abortAsked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.AbortRequested
}

// aborted is the error of a migration that was aborted.
func (r *run) aborted() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.abortedLocked()
}

func (r *run) abortedLocked() error {
	return fault.New(fault.Cancelled, op, r.id, "aborted "+or(r.rec.AbortReason, "on request"))
}

// abortable makes a step that ends at once when an abort is asked for.
func abortable(do func(*run, context.Context) error) func(*run, context.Context) error {
	return func(r *run, ctx context.Context) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		r.mu.Lock()
		asked := r.rec.AbortRequested
		r.cancel = cancel
		r.mu.Unlock()
		defer func() {
			r.mu.Lock()
			r.cancel = nil
			r.mu.Unlock()
		}()
		if asked {
			return r.aborted()
		}
		err := do(r, ctx)
		if r.abortAsked() {
			return r.aborted()
		}
		return err
	}
}

// force asks the monitor to bring the migration to its end, and waits until it did.
func (r *run) force(ctx context.Context) error {
	const method = "live_migration_force_complete"
	r.mu.Lock()
	if r.rec.Phase != PhasePerform || r.rec.Undoing {
		phase := r.rec.Migration.Phase
		r.mu.Unlock()
		return fault.Newf(fault.Conflict, method, r.id, "no memory moves: the migration is in phase %s", phase)
	}
	if r.forced == nil {
		r.forced = &green.Event[Action]{}
	}
	done := r.forced
	r.mu.Unlock()
	r.poke()
	ctx, cancel := within(ctx, r.s.cfg.ForceWait, "the switch that force-complete asks for")
	defer cancel()
	_, err := done.Wait(ctx)
	return fault.Wrap(causeOf(ctx, err), method, r.id)
}

// forceAsked gives the event of whoever waits for force-complete; nil: nobody.
func (r *run) forceAsked() *green.Event[Action] {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.forced
}

// answerForce tells whoever waits what was done.
func (r *run) answerForce(a Action, err error) {
	r.mu.Lock()
	done := r.forced
	r.forced = nil
	r.mu.Unlock()
	if done == nil {
		return
	}
	if err != nil {
		_ = done.SendError(err) // the only sender
		return
	}
	_ = done.Send(a) // the only sender
}
