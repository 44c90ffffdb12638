package migration

import (
	"context"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// bound is a context that ends after a limit. Its timer, and the place in its parent's
// table of children, are made only when somebody asks for Done: a driver that answers
// out of its own memory never does, and a thousand monitors look at their jobs two
// thousand times a second.
//
//	made ──Done, a look after the deadline──▶ live (a real context) ──▶ ended
//	  └──────────────── end ────────────────────────────────────────────▲
type bound struct {
	context.Context //nolint:containedctx // the parent: this is a context

	limit    time.Duration
	deadline time.Time
	what     string

	mu     sync.Mutex      // guards what follows
	live   context.Context //nolint:containedctx // its other half
	cancel context.CancelFunc
	over   bool // its work is done
}

// within bounds ctx; the cause of its end names what took too long.
func within(ctx context.Context, limit time.Duration, what string) (context.Context, context.CancelFunc) {
	b := newBound(ctx, limit, what)
	return b, b.end
}

func newBound(ctx context.Context, limit time.Duration, what string) *bound {
	return &bound{Context: ctx, limit: limit, deadline: time.Now().Add(limit), what: what}
}

// again is the same bound for the next call, once the last one has ended: itself where
// nobody had asked for its Done, so that a call at each beat makes nothing. Nobody may
// have kept it.
func (b *bound) again() *bound {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.live != nil {
		return newBound(b.Context, b.limit, b.what)
	}
	b.deadline, b.over = time.Now().Add(b.limit), false
	return b
}

// Deadline implements [context.Context]: the earlier one of the parent's and its own.
func (b *bound) Deadline() (time.Time, bool) {
	if d, ok := b.Context.Deadline(); ok && d.Before(b.deadline) {
		return d, true
	}
	return b.deadline, true
}

// Done implements [context.Context].
func (b *bound) Done() <-chan struct{} { return b.open().Done() }

// Err implements [context.Context].
func (b *bound) Err() error {
	b.mu.Lock()
	quiet := b.live == nil && !b.over
	b.mu.Unlock()
	if quiet && time.Now().Before(b.deadline) {
		return b.Context.Err()
	}
	return b.open().Err()
}

// Value implements [context.Context]; with it package context finds the cause and sees
// through this type, so that a derived context costs no goroutine.
func (b *bound) Value(key any) any {
	b.mu.Lock()
	live := b.live
	b.mu.Unlock()
	if live != nil {
		return live.Value(key)
	}
	return b.Context.Value(key)
}

// open gives the real context, made now if it was not.
func (b *bound) open() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.live != nil:
	case b.over:
		b.live, b.cancel = context.WithCancel(b.Context)
		b.cancel()
	default:
		b.live, b.cancel = context.WithDeadlineCause(b.Context, b.deadline,
			fault.Newf(fault.Timeout, op, "", "%s took longer than %v", b.what, b.limit))
	}
	return b.live
}

// end is the bound's cancel function.
func (b *bound) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	if b.cancel != nil {
		b.cancel()
	}
}
