package green

import (
	"context"
	"time"
)

// threadContext is a thread, seen as its own context. It ends with the thread,
// with its parent, and by Kill with the cause.
//
// The cancellable context inside is made only when somebody asks for it, for
// most threads never do and it is half the price of a spawn. Once it is made,
// Done and Value are its own, so package context sees through this type: a
// derived context costs no goroutine and finds the cause.
type threadContext core

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
	if c.hasEnded() {
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

// open makes the live context if there is none. What it calls goes deep, on a
// stack that is to stay small: so it makes the context before it takes the
// lock, and lets go of its own if another was quicker.
func (c *threadContext) open() *liveContext {
	if l := c.live.Load(); l != nil {
		return l
	}
	l := &liveContext{}
	l.Context, l.cancel = context.WithCancelCause(c.parent)
	if c.live.CompareAndSwap(nil, l) {
		if c.hasEnded() {
			l.cancel(c.err)
		}
		return l
	}
	l.cancel(nil)
	return c.live.Load()
}

func (c *threadContext) hasEnded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// end ends the context of a settled thread. Its cause is the thread's error,
// or context.Canceled if it has none.
func (c *threadContext) end() {
	c.mu.Lock()
	c.ended = true
	l := c.live.Load()
	c.mu.Unlock()
	if l != nil {
		l.cancel(c.err)
	}
}

// await waits for done or for end, and tells whether it was done. It is a
// function of its own so that the frame of a select isn't on the small stack
// of a young goroutine while a context is opened or a timer made: that made
// one stack in ten grow, and a parked thread keeps its stack.
//
//go:noinline
func await(done, end <-chan struct{}) bool {
	if end == nil {
		<-done
		return true
	}
	select {
	case <-done:
		return true
	case <-end:
		return false
	}
}

// awaitTime is await for the channel of a timer.
//
//go:noinline
func awaitTime(due <-chan time.Time, end <-chan struct{}) bool {
	select {
	case <-due:
		return true
	case <-end:
		return false
	}
}
