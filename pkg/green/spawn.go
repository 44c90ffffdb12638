package green

import (
	"context"
	"runtime"
	"time"
)

// Spawn starts fn on a goroutine of its own and gives the handle that carries
// its outcome. fn's context ends with the thread, by Kill, and with ctx; fn
// runs even if ctx has ended already, so that clean-up in it is not skipped.
func Spawn[T any](ctx context.Context, fn func(context.Context) (T, error)) *Thread[T] {
	t := newThread(ctx, nil, fn)
	go t.run()
	return t
}

// SpawnN starts fn on a goroutine of its own, without a handle. fn gets ctx
// itself. An error other than ErrExit and the end of ctx is reported, as is a
// panic (see WithLogger).
func SpawnN(ctx context.Context, fn func(context.Context) error) {
	go runUnseen(ctx, fn)
}

// SpawnAfter is Spawn after d has passed. Until then it is a timer and no
// goroutine. Kill and Cancel before that stop the timer; if ctx ends before
// that, the thread never begins and Wait gives the cause. Between threads
// that are due at the same instant there is no order.
func SpawnAfter[T any](ctx context.Context, d time.Duration, fn func(context.Context) (T, error)) *Thread[T] {
	t := newThread(ctx, nil, fn)
	if ctx.Err() != nil {
		t.Cancel(context.Cause(ctx))
		return t
	}
	t.mu.Lock() // the timer may fire before extra is set
	defer t.mu.Unlock()
	t.extra = &extra{timer: time.AfterFunc(d, t.runDelayed)}
	if ctx.Done() != nil {
		t.extra.detach = context.AfterFunc(ctx, func() { t.Cancel(context.Cause(ctx)) })
	}
	return t
}

// Sleep waits for d, or until ctx ends, whose cause it then gives. A d of 0 or
// less lets others run and looks at ctx.
func Sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		runtime.Gosched()
		return context.Cause(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	end := ctx.Done()
	if end == nil {
		time.Sleep(d) //nolint:forbidigo // this is what green.Sleep stands on
		return nil
	}
	timer := time.NewTimer(d)
	if awaitTime(timer.C, end) {
		return nil
	}
	timer.Stop()
	return context.Cause(ctx)
}

func newThread[T any](ctx context.Context, pool *Pool, fn func(context.Context) (T, error)) *Thread[T] {
	t := &Thread[T]{fn: fn}
	t.parent, t.pool = ctx, pool
	return t
}

// runUnseen runs fn for which nobody holds a handle.
func runUnseen(ctx context.Context, fn func(context.Context) error) {
	returned := false
	defer func() {
		if !returned {
			if r := recover(); r != nil {
				_ = abnormal(ctx, r) // reported there
			} else {
				report(ctx, "spawned function did not return", ErrGoexit)
			}
		}
	}()
	err := fn(ctx)
	returned = true
	reportUnseen(ctx, "spawned function failed", err)
}
