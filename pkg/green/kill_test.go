package green_test

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/green"
)

func sleeper(d time.Duration) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) { return 1, green.Sleep(ctx, d) }
}

func TestLink(t *testing.T) { conform(t, linkCases) }

var linkCases = []conformCase{
	{"probe, order of links before and after the end", func(t *testing.T, ctx context.Context) {
		var order journal[string]
		th := green.Spawn(ctx, sleeper(time.Second))
		th.Link(func(*green.Thread[int]) { order.add("a") })
		th.Link(func(*green.Thread[int]) { order.add("b") })
		outcome(t, ctx, th, 1, nil)
		th.Link(func(*green.Thread[int]) { order.add("c") })
		if diff := cmp.Diff([]string{"a", "b", "c"}, order.list()); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	}},
	{"probe, a link reads the outcome", func(t *testing.T, ctx context.Context) {
		th := green.Spawn(ctx, func(ctx context.Context) (int, error) { return 7, green.Sleep(ctx, time.Second) })
		seen := 0
		th.Link(func(x *green.Thread[int]) { seen, _ = x.Wait(ctx) })
		outcome(t, ctx, th, 7, nil)
		want(t, "seen", seen, 7)
	}},
	{"probe, Wait returns after the links, whenever it was called", func(t *testing.T, ctx context.Context) {
		linked := false
		th := green.Spawn(ctx, sleeper(time.Second))
		th.Link(func(*green.Thread[int]) { _ = green.Sleep(ctx, time.Second); linked = true })
		_ = green.Sleep(ctx, 1500*time.Millisecond) // the link is at work
		outcome(t, ctx, th, 1, nil)
		want(t, "linked", linked, true)
	}},
	{"greenthread.GreenThread._resolve_links: a link made inside a link", func(t *testing.T, ctx context.Context) {
		var order journal[string]
		th := green.Spawn(ctx, sleeper(time.Second))
		th.Link(func(x *green.Thread[int]) {
			x.Link(func(*green.Thread[int]) { order.add("inner") })
			order.add("outer")
		})
		outcome(t, ctx, th, 1, nil)
		if diff := cmp.Diff([]string{"outer", "inner"}, order.list()); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	}},
	{"probe, a link that fails doesn't stop the others", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		second := false
		th := green.Spawn(ctx, sleeper(time.Second))
		th.Link(func(*green.Thread[int]) { panic(errBoom) })
		th.Link(func(*green.Thread[int]) { second = true })
		outcome(t, ctx, th, 1, nil)
		want(t, "second link ran", second, true)
		log.expect(t, errBoom)
	}},
	{"new, a link that leaves by Goexit doesn't stop the others", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		second := false
		th := green.Spawn(ctx, sleeper(time.Second))
		th.Link(func(*green.Thread[int]) { runtime.Goexit() })
		th.Link(func(*green.Thread[int]) { second = true })
		outcome(t, ctx, th, 1, nil)
		want(t, "second link ran", second, true)
		log.expect(t, green.ErrGoexit)
	}},
	{"probe, a late link fails in its caller", func(t *testing.T, ctx context.Context) {
		th := green.Spawn(ctx, value(1))
		outcome(t, ctx, th, 1, nil)
		defer func() { want(t, "recovered", recover(), any(errBoom)) }()
		th.Link(func(*green.Thread[int]) { panic(errBoom) })
	}},
	{"probe, unlink", func(t *testing.T, ctx context.Context) {
		th := green.Spawn(ctx, sleeper(time.Second))
		unlink := th.Link(func(*green.Thread[int]) { t.Error("an unlinked function was called") })
		other := th.Link(func(*green.Thread[int]) {})
		want(t, "first", unlink(), true)
		want(t, "again", unlink(), false)
		outcome(t, ctx, th, 1, nil)
		want(t, "after the end", other(), false)
	}},
}

func TestKill(t *testing.T) { conform(t, killCases) }

var killCases = []conformCase{
	{"probe, kill before start runs the links", func(t *testing.T, ctx context.Context) {
		linked := false
		th := green.SpawnAfter(ctx, time.Second, never(t))
		th.Link(func(x *green.Thread[int]) { _, err := x.Wait(ctx); linked = errors.Is(err, errBoom) })
		want(t, "Kill", th.Kill(errBoom), true)
		want(t, "linked when Kill returned", linked, true)
		outcome(t, ctx, th, 0, errBoom)
	}},
	{"probe, kill with an own cause before start", func(t *testing.T, ctx context.Context) {
		th := green.SpawnAfter(ctx, time.Second, never(t))
		th.Kill(errBoom)
		_, err := th.Wait(ctx)
		want(t, "Wait", err, errBoom)
	}},
	{"greenthread_test.Spawn.test_kill: the default cause", func(t *testing.T, ctx context.Context) {
		th := green.Spawn(ctx, sleeper(time.Hour))
		want(t, "Kill", th.Kill(nil), true)
		outcome(t, ctx, th, 0, green.ErrKilled)
	}},
	{"probe, clean-up of the victim is done when Wait returns", func(t *testing.T, ctx context.Context) {
		cleaned := false
		th := green.Spawn(ctx, func(ctx context.Context) (int, error) {
			defer func() { cleaned = true }()
			return 0, green.Sleep(ctx, time.Hour)
		})
		synctest.Wait()
		th.Kill(errBoom)
		outcome(t, ctx, th, 0, errBoom)
		want(t, "cleaned", cleaned, true)
	}},
	{"api_test.test_killing_dormant", func(t *testing.T, ctx context.Context) {
		var states journal[string]
		th := green.Spawn(ctx, func(ctx context.Context) (int, error) {
			states.add("start")
			if green.Sleep(ctx, time.Hour) != nil {
				states.add("except")
			}
			_ = green.Sleep(context.WithoutCancel(ctx), time.Second)
			states.add("finished")
			return 9, nil
		})
		synctest.Wait()
		th.Kill(nil)
		synctest.Wait()
		want(t, "dead after kill", isDone(th.Done()), false)
		outcome(t, ctx, th, 9, nil)
		if diff := cmp.Diff([]string{"start", "except", "finished"}, states.list()); diff != "" {
			t.Errorf("states (-want +got):\n%s", diff)
		}
	}},
	{"probe, a thread kills itself", func(t *testing.T, ctx context.Context) {
		self := make(chan *green.Thread[int], 1)
		th := green.Spawn(ctx, func(ctx context.Context) (int, error) {
			(<-self).Kill(errBoom)
			return 0, context.Cause(ctx)
		})
		self <- th
		outcome(t, ctx, th, 0, errBoom)
	}},
	{"probe, a dead thread can't be killed or cancelled", func(t *testing.T, ctx context.Context) {
		th := green.Spawn(ctx, value(3))
		outcome(t, ctx, th, 3, nil)
		want(t, "Kill", th.Kill(errBoom), false)
		want(t, "Cancel", th.Cancel(errBoom), false)
		outcome(t, ctx, th, 3, nil)
	}},
	{"new, the result rules of a killed thread", func(t *testing.T, ctx context.Context) {
		own := errors.New("own")
		for name, c := range map[string]struct {
			returns func(context.Context) error
			want    error
		}{
			"context.Canceled becomes the cause": {func(ctx context.Context) error { return ctx.Err() }, errBoom},
			"the cause stays":                    {context.Cause, errBoom},
			"an own error stays":                 {func(context.Context) error { return own }, own},
		} {
			th := green.Spawn(ctx, func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, c.returns(ctx) })
			synctest.Wait()
			th.Kill(errBoom)
			th.Kill(own) // the first cause stays
			if _, err := th.Wait(ctx); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
	}},
	{"new, a panic of a killed thread stays a panic", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		th := green.Spawn(ctx, func(ctx context.Context) (int, error) { <-ctx.Done(); panic(ctx.Err()) })
		synctest.Wait()
		th.Kill(errBoom)
		_, err := th.Wait(ctx)
		if _, ok := errors.AsType[*green.PanicError](err); !ok {
			t.Errorf("Wait: %v, want a PanicError", err)
		}
		log.expect(t, context.Canceled)
	}},
}

type key struct{}

// The context of a thread: everything that package context promises must hold
// for it, though it is made only when asked for.
func TestThreadContext(t *testing.T) { conform(t, threadContextCases) }

var threadContextCases = []conformCase{
	{"new, it ends with the thread, asked for before or after", func(t *testing.T, ctx context.Context) {
		var early, late context.Context
		var child context.Context
		var stop context.CancelFunc
		outcome(t, ctx, green.Spawn(ctx, func(ctx context.Context) (int, error) {
			early = ctx
			child, stop = context.WithTimeout(ctx, time.Hour)
			return 0, ctx.Err()
		}), 0, nil)
		defer stop()
		outcome(t, ctx, green.Spawn(ctx, func(ctx context.Context) (int, error) { late = ctx; return 0, nil }), 0, nil)
		for name, c := range map[string]context.Context{"early": early, "late": late, "child": child} {
			wantErr(t, name, c.Err(), context.Canceled)
			want(t, name+" done", isDone(c.Done()), true)
		}
	}},
	{"new, it ends with its parent, and the cause is found", func(t *testing.T, ctx context.Context) {
		parent, cancel := context.WithCancelCause(ctx)
		th := green.Spawn(parent, func(ctx context.Context) (int, error) {
			child, stop := context.WithCancel(ctx)
			defer stop()
			<-child.Done()
			return 0, context.Cause(child)
		})
		lazy := green.Spawn(parent, func(ctx context.Context) (int, error) {
			for ctx.Err() == nil {
				_ = green.Sleep(context.WithoutCancel(ctx), time.Second)
			}
			return 0, context.Cause(ctx)
		})
		synctest.Wait()
		cancel(errBoom)
		outcome(t, ctx, th, 0, errBoom)
		outcome(t, ctx, lazy, 0, errBoom)
	}},
	{"new, values and deadline are the parent's", func(t *testing.T, ctx context.Context) {
		parent, cancel := context.WithTimeout(context.WithValue(ctx, key{}, 5), time.Hour)
		defer cancel()
		limit, _ := parent.Deadline()
		outcome(t, ctx, green.Spawn(parent, func(ctx context.Context) (bool, error) {
			before := ctx.Value(key{})
			_ = ctx.Done()
			got, ok := ctx.Deadline()
			return before == 5 && ctx.Value(key{}) == 5 && ok && got.Equal(limit), nil
		}), true, nil)
	}},
	{"new, a child context starts no goroutine", func(t *testing.T, ctx context.Context) {
		outcome(t, ctx, green.Spawn(ctx, func(ctx context.Context) (bool, error) {
			before := runtime.NumGoroutine()
			for range 100 {
				child, cancel := context.WithCancel(ctx)
				defer cancel()
				_ = child.Err()
			}
			return runtime.NumGoroutine() <= before, nil
		}), true, nil)
	}},
	{"new, a thread whose parent has ended runs, to see so for itself", func(t *testing.T, ctx context.Context) {
		ended, cancel := context.WithCancelCause(ctx)
		cancel(errBoom)
		th := green.Spawn(ended, func(ctx context.Context) (bool, error) { return ctx.Err() != nil, nil })
		outcome(t, ctx, th, true, nil)
	}},
}
