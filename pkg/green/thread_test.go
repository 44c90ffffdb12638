package green_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/green"
)

// spawners are Spawn and SpawnAfter, for the cases that hold for both: the
// tests of SpawnAfter inherit those of Spawn upstream (12).
var spawners = map[string]func(context.Context, func(context.Context) (int, error)) *green.Thread[int]{
	"Spawn": green.Spawn[int],
	"SpawnAfter": func(ctx context.Context, fn func(context.Context) (int, error)) *green.Thread[int] {
		return green.SpawnAfter(ctx, 100*time.Millisecond, fn)
	},
}

func TestSpawnFamily(t *testing.T) {
	for name, spawn := range spawners {
		conform(t, []conformCase{
			{name + ": greenthread_test.Spawn.test_simple", func(t *testing.T, ctx context.Context) {
				var runs atomic.Int32
				th := spawn(ctx, func(context.Context) (int, error) { return int(runs.Add(1)), nil })
				outcome(t, ctx, th, 1, nil)
				outcome(t, ctx, th, 1, nil)
				want(t, "runs", runs.Load(), 1)
			}},
			{name + ": greenthread_test.Spawn.test_link", func(t *testing.T, ctx context.Context) {
				var linked []*green.Thread[int]
				th := spawn(ctx, value(1))
				th.Link(func(x *green.Thread[int]) { linked = append(linked, x) })
				outcome(t, ctx, th, 1, nil)
				if len(linked) != 1 || linked[0] != th {
					t.Errorf("linked with %v, want once with the thread", linked)
				}
			}},
			{name + ": greenthread_test.Spawn.test_link_after_exited", func(t *testing.T, ctx context.Context) {
				th := spawn(ctx, value(1))
				outcome(t, ctx, th, 1, nil)
				called := false
				unlink := th.Link(func(x *green.Thread[int]) { called = x == th })
				want(t, "called at once", called, true)
				want(t, "unlink", unlink(), false)
			}},
		})
	}
}

func TestSpawnFamilyOutcomes(t *testing.T) {
	for name, spawn := range spawners {
		conform(t, []conformCase{
			{name + ": probe, error kept for every Wait", func(t *testing.T, ctx context.Context) {
				ctx, log := listen(ctx)
				th := spawn(ctx, failing(errBoom))
				_, first := th.Wait(ctx)
				_, second := th.Wait(ctx)
				want(t, "first", first, errBoom)
				want(t, "second", second, errBoom)
				log.expectNone(t) // the handle carries it
			}},
			{name + ": probe, three waiters", func(t *testing.T, ctx context.Context) {
				th := spawn(ctx, func(ctx context.Context) (int, error) { return 7, green.Sleep(ctx, time.Second) })
				var waiters []*green.Thread[int]
				for range 3 {
					waiters = append(waiters, green.Spawn(ctx, th.Wait))
				}
				for _, w := range waiters {
					outcome(t, ctx, w, 7, nil)
				}
			}},
			{name + ": new, panic with an error value", func(t *testing.T, ctx context.Context) {
				ctx, log := listen(ctx)
				th := spawn(ctx, panicHere)
				_, err := th.Wait(ctx)
				wantErr(t, "Wait", err, errBoom)
				p, ok := errors.AsType[*green.PanicError](err)
				if !ok || !strings.Contains(string(p.Stack), "panicHere") {
					t.Errorf("error %#v, want a PanicError whose stack names panicHere", err)
				}
				log.expect(t, errBoom)
			}},
			{name + ": new, Goexit", func(t *testing.T, ctx context.Context) {
				th := spawn(ctx, func(context.Context) (int, error) { runtime.Goexit(); return 0, nil })
				outcome(t, ctx, th, 0, green.ErrGoexit)
			}},
		})
	}
}

func panicHere(context.Context) (int, error) { panic(errBoom) }

func TestSpawnN(t *testing.T) { conform(t, spawnNCases) }

var spawnNCases = []conformCase{
	{"greenthread_test.Spawn.test_n", func(t *testing.T, ctx context.Context) {
		ran := false
		green.SpawnN(ctx, func(context.Context) error { ran = true; return nil })
		synctest.Wait()
		want(t, "ran", ran, true)
	}},
	{"hub_test.TestExceptionInMainloop.test_sleep", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		green.SpawnN(ctx, func(context.Context) error { panic(errBoom) })
		begun := time.Now()
		wantErr(t, "Sleep", green.Sleep(ctx, 10*time.Millisecond), nil)
		want(t, "slept", time.Since(begun), 10*time.Millisecond)
		log.expect(t, errBoom)
	}},
	{"debug_test.test_hub_exceptions", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		green.SpawnN(ctx, func(context.Context) error { return errBoom })
		synctest.Wait()
		log.expect(t, errBoom)
	}},
	{"probe, GreenletExit raised inside is quiet", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		green.SpawnN(ctx, func(context.Context) error { return green.ErrExit })
		outcome(t, ctx, green.Spawn(ctx, failing(green.ErrExit)), 0, green.ErrExit)
		synctest.Wait()
		log.expectNone(t)
	}},
	{"new, the end of its context is quiet, Goexit isn't", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		ending, cancel := context.WithCancelCause(ctx)
		green.SpawnN(ending, func(ctx context.Context) error { return green.Sleep(ctx, time.Hour) })
		cancel(errBoom)
		synctest.Wait()
		log.expectNone(t)
		green.SpawnN(ctx, func(context.Context) error { runtime.Goexit(); return nil })
		synctest.Wait()
		log.expect(t, green.ErrGoexit)
	}},
}

func TestSpawnAfter(t *testing.T) { conform(t, spawnAfterCases) }

var spawnAfterCases = []conformCase{
	{"greenthread_test.SpawnAfter.test_basic", func(t *testing.T, ctx context.Context) {
		begun := time.Now()
		outcome(t, ctx, green.SpawnAfter(ctx, 100*time.Millisecond, value(3)), 3, nil)
		want(t, "took", time.Since(begun), 100*time.Millisecond)
	}},
	{"greenthread_test.SpawnAfter.test_cancel", func(t *testing.T, ctx context.Context) {
		th := green.SpawnAfter(ctx, 100*time.Millisecond, never(t))
		want(t, "Cancel", th.Cancel(nil), true)
		want(t, "done", isDone(th.Done()), true)
		outcome(t, ctx, th, 0, green.ErrKilled)
		_ = green.Sleep(ctx, time.Second)
	}},
	{"greenthread_test.SpawnAfter.test_cancel_already_started", func(t *testing.T, ctx context.Context) {
		th := green.SpawnAfter(ctx, 0, func(ctx context.Context) (int, error) {
			return 22, green.Sleep(ctx, 100*time.Millisecond)
		})
		synctest.Wait()
		want(t, "Cancel", th.Cancel(nil), false)
		outcome(t, ctx, th, 22, nil)
	}},
	{"greenthread_test.SpawnAfterLocal.test_timer_fired", func(t *testing.T, ctx context.Context) {
		var fired atomic.Bool
		outer := green.Spawn(ctx, func(ctx context.Context) (int, error) {
			green.SpawnAfter(ctx, 100*time.Millisecond, setting(&fired))
			return 0, green.Sleep(ctx, 200*time.Millisecond)
		})
		outcome(t, ctx, outer, 0, nil)
		want(t, "fired", fired.Load(), true)
	}},
	{"greenthread_test.SpawnAfterLocal.test_timer_cancelled_upon_greenlet_exit", func(t *testing.T, ctx context.Context) {
		var local *green.Thread[int]
		outer := green.Spawn(ctx, func(ctx context.Context) (int, error) {
			local = green.SpawnAfter(ctx, 100*time.Millisecond, never(t))
			return 0, nil
		})
		outcome(t, ctx, outer, 0, nil)
		begun := time.Now()
		outcome(t, ctx, local, 0, context.Canceled)
		want(t, "Wait took", time.Since(begun), 0)
		_ = green.Sleep(ctx, time.Second)
	}},
	{"probe, the owner of a local timer is killed", func(t *testing.T, ctx context.Context) {
		locals := make(chan *green.Thread[int], 1)
		outer := green.Spawn(ctx, func(ctx context.Context) (int, error) {
			locals <- green.SpawnAfter(ctx, 100*time.Millisecond, never(t))
			return 0, green.Sleep(ctx, time.Hour)
		})
		local := <-locals
		outer.Kill(errBoom)
		outcome(t, ctx, local, 0, errBoom)
		outcome(t, ctx, outer, 0, errBoom)
	}},
	{"probe, spawn_after outlives its spawner", func(t *testing.T, ctx context.Context) {
		var fired atomic.Bool
		outcome(t, ctx, green.Spawn(ctx, func(ctx context.Context) (int, error) {
			green.SpawnAfter(context.WithoutCancel(ctx), 100*time.Millisecond, setting(&fired))
			return 0, nil
		}), 0, nil)
		_ = green.Sleep(ctx, 200*time.Millisecond)
		want(t, "fired", fired.Load(), true)
	}},
	{"new, a context that has ended already", func(t *testing.T, ctx context.Context) {
		ctx, cancel := context.WithCancelCause(ctx)
		cancel(errBoom)
		th := green.SpawnAfter(ctx, time.Second, never(t))
		want(t, "done", isDone(th.Done()), true)
		outcome(t, context.WithoutCancel(ctx), th, 0, errBoom)
	}},
	{"hub_test.TestScheduleCall.test_ordering", func(t *testing.T, ctx context.Context) {
		var order journal[int]
		var threads []*green.Thread[int]
		for _, n := range []int{3, 1, 2} {
			threads = append(threads, green.SpawnAfter(ctx, time.Duration(n)*time.Second, func(context.Context) (int, error) {
				order.add(n)
				return n, nil
			}))
		}
		for _, th := range threads {
			_, _ = th.Wait(ctx)
		}
		if diff := cmp.Diff([]int{1, 2, 3}, order.list()); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	}},
}

func never(t *testing.T) func(context.Context) (int, error) {
	return func(context.Context) (int, error) { t.Error("a function ran that must not"); return 0, nil }
}

func setting(b *atomic.Bool) func(context.Context) (int, error) {
	return func(context.Context) (int, error) { b.Store(true); return 0, nil }
}

// hub_test.TestTimerCleanup: book-keeping of timers stays bounded.
func TestSpawnAfterCancelLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	run := func() {
		for range 100_000 {
			if !green.SpawnAfter(ctx, time.Hour, value(1)).Cancel(nil) {
				t.Fatal("Cancel = false")
			}
		}
	}
	run() // what the runtime keeps for itself
	before, goroutines := heap(), runtime.NumGoroutine()
	run()
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("100,000 cancelled SpawnAfters left %d bytes", grown)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// new: 10,000 threads under one cancellable parent leave no children in it.
func TestEndedThreadsLeaveTheirParent(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	run := func() {
		for range 10_000 {
			th := green.Spawn(ctx, func(ctx context.Context) (bool, error) { return ctx.Done() != nil, nil })
			outcome(t, t.Context(), th, true, nil)
		}
	}
	run()
	before := heap()
	run()
	if grown := heap() - before; grown > 256<<10 {
		t.Errorf("10,000 ended threads left %d bytes with their parent", grown)
	}
}

func TestSleep(t *testing.T) { conform(t, sleepCases) }

var sleepCases = []conformCase{
	{"hub_test, isolated/zero_second_sleep: Sleep(0) lets others run", func(t *testing.T, ctx context.Context) {
		turns := make(chan int, 1)
		green.SpawnN(ctx, func(context.Context) error { turns <- 1; return nil })
		for len(turns) == 0 {
			wantErr(t, "Sleep(0)", green.Sleep(ctx, 0), nil)
		}
	}},
	{"new, Sleep(0) and Sleep(1) report a context that has ended", func(t *testing.T, ctx context.Context) {
		ctx, cancel := context.WithCancelCause(ctx)
		cancel(errBoom)
		want(t, "Sleep(0)", green.Sleep(ctx, 0), errBoom)
		want(t, "Sleep(1)", green.Sleep(ctx, 1), errBoom)
	}},
	{"probe, a negative sleep is one of 0", func(t *testing.T, ctx context.Context) {
		begun := time.Now()
		wantErr(t, "Sleep(-1)", green.Sleep(ctx, -time.Second), nil)
		want(t, "slept", time.Since(begun), 0)
	}},
	{"new, cancelled at half time", func(t *testing.T, ctx context.Context) {
		begun := time.Now()
		ctx, cancel := context.WithCancelCause(ctx)
		time.AfterFunc(time.Second, func() { cancel(errBoom) })
		want(t, "Sleep", green.Sleep(ctx, 2*time.Second), errBoom)
		want(t, "slept", time.Since(begun), time.Second)
	}},
	{"new, without an end", func(t *testing.T, ctx context.Context) {
		begun := time.Now()
		wantErr(t, "Sleep", green.Sleep(context.WithoutCancel(ctx), time.Second), nil)
		want(t, "slept", time.Since(begun), time.Second)
	}},
}

func TestWait(t *testing.T) { conform(t, waitCases) }

var waitCases = []conformCase{
	{"new, a Wait given up is told apart", func(t *testing.T, ctx context.Context) {
		th := green.Spawn(ctx, func(ctx context.Context) (int, error) { return 5, green.Sleep(ctx, time.Minute) })
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := th.Wait(short)
		wantErr(t, "Wait", err, green.ErrWaitGivenUp)
		wantErr(t, "Wait", err, context.DeadlineExceeded)
		outcome(t, ctx, th, 5, nil)
	}},
	{"probe, a thread that waits for itself", func(t *testing.T, ctx context.Context) {
		self := make(chan *green.Thread[int], 1)
		th := green.Spawn(ctx, func(ctx context.Context) (int, error) {
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := (<-self).Wait(short)
			return 0, err
		})
		self <- th
		outcome(t, ctx, th, 0, green.ErrWaitGivenUp)
	}},
	{"probe, state flags", func(t *testing.T, ctx context.Context) {
		th := green.SpawnAfter(ctx, time.Second, func(ctx context.Context) (int, error) { return 0, green.Sleep(ctx, time.Second) })
		want(t, "pending: done", isDone(th.Done()), false)
		_ = green.Sleep(ctx, 1500*time.Millisecond)
		want(t, "running: done", isDone(th.Done()), false)
		want(t, "running: Cancel", th.Cancel(nil), false)
		outcome(t, ctx, th, 0, nil)
		want(t, "ended: done", isDone(th.Done()), true)
	}},
}
