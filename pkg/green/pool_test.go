package green_test

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/green"
)

func spawnIn[T any](t *testing.T, ctx context.Context, p *green.Pool, fn func(context.Context) (T, error)) *green.Thread[T] {
	t.Helper()
	th, err := green.PoolSpawn(ctx, p, fn)
	if err != nil {
		t.Fatalf("PoolSpawn: %v", err)
	}
	return th
}

func spawnNIn(t *testing.T, ctx context.Context, p *green.Pool, fn func(context.Context) error) {
	t.Helper()
	if err := p.SpawnN(ctx, fn); err != nil {
		t.Fatalf("SpawnN: %v", err)
	}
}

func napping(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error { return green.Sleep(ctx, d) }
}

// counts compares Running, Free and Waiting.
func counts(t *testing.T, when string, p *green.Pool, running, free, waiting int) {
	t.Helper()
	got := [3]int{p.Running(), p.Free(), p.Waiting()}
	if got != [3]int{running, free, waiting} {
		t.Errorf("%s: running, free, waiting = %v, want %v", when, got, [3]int{running, free, waiting})
	}
}

func TestPool(t *testing.T) { conform(t, poolCases) }

var poolCases = []conformCase{
	{"greenpool_test.test_spawn", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(4)
		var threads []*green.Thread[int]
		for i := range 10 {
			threads = append(threads, spawnIn(t, ctx, p, func(ctx context.Context) (int, error) {
				return i, green.Sleep(ctx, time.Millisecond)
			}))
		}
		for i, th := range threads {
			outcome(t, ctx, th, i, nil)
		}
	}},
	{"greenpool_test.test_spawn_n", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(4)
		var got journal[int]
		for i := range 10 {
			spawnNIn(t, ctx, p, func(ctx context.Context) error { got.add(i); return green.Sleep(ctx, time.Millisecond) })
		}
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
		if diff := cmp.Diff([]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, slices.Sorted(slices.Values(got.list()))); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}},
	{"greenpool_test.test_multiple_coros", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		var e green.Event[int]
		var got journal[string]
		spawnNIn(t, ctx, p, func(ctx context.Context) error {
			got.add("cons1")
			_, err := e.Wait(ctx)
			got.add("cons2")
			return err
		})
		spawnNIn(t, ctx, p, func(context.Context) error { got.add("prod"); return e.Send(1) })
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
		if l := got.list(); len(l) != 3 || l[2] != "cons2" {
			t.Errorf("got %v, want cons2 last of three", l)
		}
	}},
	{"greenpool_test.test_timer_cancel", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		outcome(t, ctx, spawnIn(t, ctx, p, func(ctx context.Context) (int, error) {
			green.SpawnAfter(ctx, time.Second, never(t))
			return 1, nil
		}), 1, nil)
		_ = green.Sleep(ctx, time.Minute)
	}},
	{"greenpool_test.test_pool_smash", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(1)
		tokens := make(chan int) // nobody gives one
		smashed := spawnIn(t, ctx, p, func(ctx context.Context) (int, error) {
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			select {
			case v := <-tokens:
				return v, nil
			case <-short.Done():
				return 0, short.Err()
			}
		})
		outcome(t, ctx, smashed, 0, context.DeadlineExceeded)
		outcome(t, ctx, spawnIn(t, ctx, p, value(2)), 2, nil)
	}},
	{"greenpool_test.test_spawn_n_2: a task's failure is reported and harms nothing", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		p := green.NewPool(2)
		spawnNIn(t, ctx, p, func(context.Context) error { return errBoom })
		synctest.Wait()
		counts(t, "after an error", p, 0, 2, 0)
		log.expect(t, errBoom)
		spawnNIn(t, ctx, p, func(context.Context) error { runtime.Goexit(); return nil })
		spawnNIn(t, ctx, p, func(context.Context) error { panic(errBoom) })
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
		counts(t, "after Goexit and a panic", p, 0, 2, 0)
		outcome(t, ctx, spawnIn(t, ctx, p, value(2)), 2, nil)
	}},
	{"greenpool_test.test_spawn_n_2: Free across spawn and end", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		counts(t, "fresh", p, 0, 2, 0)
		th := spawnIn(t, ctx, p, sleeper(time.Second))
		counts(t, "one runs", p, 1, 1, 0)
		outcome(t, ctx, th, 1, nil)
		counts(t, "as soon as Wait returned", p, 0, 2, 0)
		spawnNIn(t, ctx, p, napping(time.Second))
		spawnNIn(t, ctx, p, napping(2*time.Second))
		begun := time.Now()
		spawnNIn(t, ctx, p, napping(time.Second))
		want(t, "third waited", time.Since(begun), time.Second)
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
	}},
	{"greenpool_test.test_waitall_on_nothing", func(t *testing.T, ctx context.Context) {
		var p green.Pool
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
	}},
	{"greenpool_test.test_recursive_waitall", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		th := spawnIn(t, ctx, p, func(ctx context.Context) (int, error) { return 0, p.WaitAll(ctx) })
		outcome(t, ctx, th, 0, green.ErrInsidePool)
		var inside error
		spawnNIn(t, ctx, p, func(ctx context.Context) error { inside = p.WaitAll(ctx); return nil })
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
		wantErr(t, "WaitAll inside", inside, green.ErrInsidePool)
	}},
	{"greenpool_test.test_greenpool_type_check", func(t *testing.T, _ context.Context) {
		want(t, "size", green.NewPool(0).Size(), 0)
		want(t, "size", green.NewPool(1).Size(), 1)
		defer func() {
			if recover() == nil {
				t.Error("NewPool(-1) didn't panic")
			}
		}()
		green.NewPool(-1)
	}},
	{"greenpool.GreenPool: default size", func(t *testing.T, _ context.Context) {
		var p green.Pool
		want(t, "Free", p.Free(), 1000)
		want(t, "Size", p.Size(), 1000)
	}},
	{"probe, kill of pool threads gives their slots back", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		a, b := spawnIn(t, ctx, p, sleeper(time.Hour)), spawnIn(t, ctx, p, sleeper(time.Hour))
		a.Kill(nil)
		outcome(t, ctx, a, 0, green.ErrKilled)
		counts(t, "one killed", p, 1, 1, 0)
		b.Kill(nil)
		outcome(t, ctx, b, 0, green.ErrKilled)
		counts(t, "both killed", p, 0, 2, 0)
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
	}},
	{"probe, a link finds the slot free", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(1)
		th := spawnIn(t, ctx, p, sleeper(time.Second))
		free := -1
		th.Link(func(*green.Thread[int]) { free = p.Free(); _ = green.Sleep(ctx, time.Second) })
		begun := time.Now()
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
		want(t, "Free in the link", free, 1)
		want(t, "WaitAll took", time.Since(begun), 2*time.Second)
	}},
	{"probe, WaitAll, SpawnN, WaitAll", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		for range 3 {
			begun := time.Now()
			spawnNIn(t, ctx, p, napping(time.Second))
			wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
			want(t, "took", time.Since(begun), time.Second)
		}
	}},
	{"new, WaitAll given up", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		th := spawnIn(t, ctx, p, sleeper(time.Minute))
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := p.WaitAll(short)
		wantErr(t, "WaitAll", err, green.ErrWaitGivenUp)
		wantErr(t, "WaitAll", err, context.DeadlineExceeded)
		outcome(t, ctx, th, 1, nil)
	}},
	{"new, a context that has ended spawns nothing", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		ended, cancel := context.WithCancelCause(ctx)
		cancel(errBoom)
		wantErr(t, "SpawnN", p.SpawnN(ended, func(context.Context) error { t.Error("ran"); return nil }), errBoom)
		counts(t, "after", p, 0, 2, 0)
	}},
}

func TestPoolInside(t *testing.T) { conform(t, poolInsideCases) }

var poolInsideCases = []conformCase{
	{"greenpool_test.test_reentrant", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(1)
		outcome(t, ctx, spawnIn(t, ctx, p, func(ctx context.Context) (int, error) {
			inner, err := green.PoolSpawn(ctx, p, value(7))
			if err != nil {
				return 0, err
			}
			return inner.Wait(ctx)
		}), 7, nil)
		ran := false
		spawnNIn(t, ctx, p, func(ctx context.Context) error {
			return p.SpawnN(ctx, func(context.Context) error { ran = true; return nil })
		})
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
		want(t, "inner ran", ran, true)
	}},
	{"probe, an inline call that fails", func(t *testing.T, ctx context.Context) {
		ctx, _ = listen(ctx)
		p := green.NewPool(1)
		outcome(t, ctx, spawnIn(t, ctx, p, func(ctx context.Context) (bool, error) {
			failed := spawnIn(t, ctx, p, failing(errBoom))
			panicked := spawnIn(t, ctx, p, func(context.Context) (int, error) { panic(errBoom) })
			want(t, "done", isDone(failed.Done()) && isDone(panicked.Done()), true)
			outcome(t, ctx, failed, 0, errBoom)
			outcome(t, ctx, panicked, 0, errBoom)
			return true, nil
		}), true, nil)
	}},
	{"probe, inside with a free slot: a real thread", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		outcome(t, ctx, spawnIn(t, ctx, p, func(ctx context.Context) (int, error) {
			inner := spawnIn(t, ctx, p, sleeper(time.Second))
			want(t, "inner is done", isDone(inner.Done()), false)
			want(t, "Running", p.Running(), 2)
			return inner.Wait(ctx)
		}), 1, nil)
	}},
	{"probe, Running during an inline call", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(1)
		spawnNIn(t, ctx, p, func(ctx context.Context) error {
			return p.SpawnN(ctx, func(context.Context) error { counts(t, "inline", p, 1, 0, 0); return nil })
		})
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
	}},
	{"new, the mark is per pool", func(t *testing.T, ctx context.Context) {
		outer, inner := green.NewPool(1), green.NewPool(1)
		busy := spawnIn(t, ctx, inner, sleeper(time.Second))
		begun := time.Now()
		outcome(t, ctx, spawnIn(t, ctx, outer, func(ctx context.Context) (int, error) {
			return spawnIn(t, ctx, inner, value(5)).Wait(ctx)
		}), 5, nil)
		want(t, "waited for the other pool", time.Since(begun), time.Second)
		outcome(t, ctx, busy, 1, nil)
		// and a task of both is inside both
		spawnNIn(t, ctx, outer, func(ctx context.Context) error {
			return inner.SpawnN(ctx, func(ctx context.Context) error {
				wantErr(t, "outer.WaitAll", outer.WaitAll(ctx), green.ErrInsidePool)
				wantErr(t, "inner.WaitAll", inner.WaitAll(ctx), green.ErrInsidePool)
				return nil
			})
		})
		wantErr(t, "WaitAll", outer.WaitAll(ctx), nil)
		wantErr(t, "WaitAll", inner.WaitAll(ctx), nil)
	}},
}
