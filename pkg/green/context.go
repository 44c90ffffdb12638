package green

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// threadContext is the context of one thread. It ends with the thread, with
// its parent, and by Kill with the cause.
//
// The cancellable context inside is made only when somebody asks for it, for
// most threads never do and it is half the price of a spawn. Once it is made,
// Done and Value are its own, so package context sees through this type: a
// derived context costs no goroutine and finds the cause.
type threadContext struct {
	parent context.Context //nolint:containedctx // it is a context itself
	pool   *Pool           // whose task this is; nil outside a pool

	live atomic.Pointer[liveContext]

	mu    sync.Mutex // guards the making of live, ended and cause
	ended bool
	cause error
}

type liveContext struct {
	context.Context //nolint:containedctx // the lazily made half of a context

	cancel context.CancelCauseFunc
}

var _ context.Context = (*threadContext)(nil)

// Deadline is the parent's.
func (c *threadContext) Deadline() (time.Time, bool) { return c.parent.Deadline() }

// Done is closed when the thread or its parent ends, or the thread is killed.
func (c *threadContext) Done() <-chan struct{} { return c.open().Done() }

// Err is nil until Done is closed.
func (c *threadContext) Err() error {
	if l := c.live.Load(); l != nil {
		return l.Err()
	}
	c.mu.Lock()
	ended := c.ended
	c.mu.Unlock()
	if ended {
		return c.open().Err()
	}
	return c.parent.Err()
}

// Value is the parent's, and the mark of the pool that runs the thread.
func (c *threadContext) Value(key any) any {
	if k, ok := key.(poolKey); ok && c.pool != nil && k.pool == c.pool {
		return c.pool
	}
	if l := c.live.Load(); l != nil {
		return l.Value(key)
	}
	return c.parent.Value(key)
}

func (c *threadContext) open() *liveContext {
	if l := c.live.Load(); l != nil {
		return l
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.live.Load(); l != nil {
		return l
	}
	ctx, cancel := context.WithCancelCause(c.parent)
	l := &liveContext{Context: ctx, cancel: cancel}
	if c.ended {
		cancel(c.cause)
	}
	c.live.Store(l)
	return l
}

// end ends the context; the first cause stays. nil is context.Canceled.
func (c *threadContext) end(cause error) {
	c.mu.Lock()
	if !c.ended {
		c.ended, c.cause = true, cause
	}
	l := c.live.Load()
	c.mu.Unlock()
	if l != nil {
		l.cancel(cause)
	}
}
