package migration

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// step is one row of a phase table: what the phase does and how it is undone. Both
// are idempotent, for a restart repeats the one that was under way.
type step[W walker] struct {
	name   Phase
	status instance.MigrationStatus // that the source shows meanwhile; empty: unchanged
	quiet  bool                     // it has no side effect, so entering it is not journaled
	limit  func(Config) time.Duration
	do     func(w W, ctx context.Context) error
	undo   func(w W, ctx context.Context) error // nil: nothing to undo
}

// walker is who walks a phase table.
type walker interface {
	// enter makes the record say that a phase begins, before any of its side effects.
	enter(ctx context.Context, p Phase, status instance.MigrationStatus, quiet bool) error
	// retreat makes the record say that a phase is being undone.
	retreat(ctx context.Context, p Phase) error
	config() Config
}

// walk does the steps of a table from one on, and gives the phase in which it
// stopped; with err == nil that is the last one.
func walk[W walker](ctx context.Context, w W, table []step[W], from Phase) (reached Phase, err error) {
	for i := max(indexOf(table, from), 0); i < len(table); i++ {
		s := &table[i]
		reached = s.name
		if err := w.enter(ctx, s.name, s.status, s.quiet); err != nil {
			return reached, err
		}
		if err := s.run(ctx, w); err != nil {
			return reached, err
		}
	}
	return reached, nil
}

// unwind undoes the steps of a table from one on, backward. A step that can't be
// undone does not keep the others from it, but the record stays at the first of them,
// so that the next unwind begins there; the errors are joined. It stops when ctx ends.
func unwind[W walker](ctx context.Context, w W, table []step[W], from Phase) error {
	var errs []error
	for i := indexOf(table, from); i >= 0; i-- {
		s := table[i]
		if s.undo == nil {
			continue
		}
		if len(errs) == 0 {
			if err := w.retreat(ctx, s.name); err != nil {
				return err
			}
		}
		if err := s.undo(w, ctx); err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return errors.Join(errs...)
}

func indexOf[W walker](table []step[W], p Phase) int {
	return slices.IndexFunc(table, func(s step[W]) bool { return s.name == p })
}

// run does a step within its limit.
func (s *step[W]) run(ctx context.Context, w W) error {
	if s.limit != nil {
		return s.runWithin(ctx, w)
	}
	return causeOf(ctx, s.do(w, ctx))
}

func (s *step[W]) runWithin(ctx context.Context, w W) error {
	ctx, cancel := within(ctx, s.limit(w.config()), "phase "+string(s.name))
	defer cancel()
	return causeOf(ctx, s.do(w, ctx))
}

// aside runs fn on a stack of its own, which goes with it. The thread that conducts a
// migration waits for minutes in perform with the stack that it has grown before, and
// there are thousands of them: what goes deep before that is done aside.
func aside(ctx context.Context, fn func(context.Context) error) error {
	_, err := green.Spawn(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) }).Wait(context.WithoutCancel(ctx))
	return err
}

// causeOf prefers the reason of ctx's end over the error of whatever noticed it.
func causeOf(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
