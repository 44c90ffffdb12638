package green_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/green"
)

// Source of the upstream cases: neutron,
// tests/unit/agent/common/test_resource_processing_queue.py, and its source.

type update struct {
	key   string
	value int
}

// runQueue runs q until stop is called, which gives what Run returned.
func runQueue[K comparable, V any](ctx context.Context, q *green.KeyedQueue[K, V], workers int, handle func(context.Context, K, V) error) (stop func() error) {
	ctx, cancel := context.WithCancelCause(ctx)
	run := green.Spawn(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, q.Run(ctx, workers, handle)
	})
	return func() error {
		cancel(errBoom)
		_, err := run.Wait(context.WithoutCancel(ctx))
		return err
	}
}

func handled(j *journal[update], takes time.Duration) func(context.Context, string, int) error {
	return func(ctx context.Context, key string, v int) error {
		j.add(update{key, v})
		_ = green.Sleep(context.WithoutCancel(ctx), takes)
		return nil
	}
}

func wantUpdates(t *testing.T, j *journal[update], want ...update) {
	t.Helper()
	if diff := cmp.Diff(want, j.list(), cmp.AllowUnexported(update{})); diff != "" {
		t.Errorf("handled (-want +got):\n%s", diff)
	}
}

func TestKeyedQueue(t *testing.T) { conform(t, keyedQueueCases) }

var keyedQueueCases = []conformCase{
	{"test_resource_processing_queue.test_i_am_primary, test_primary: one handler per key at a time", func(t *testing.T, ctx context.Context) {
		var q green.KeyedQueue[string, int]
		var got journal[update]
		stop := runQueue(ctx, &q, 4, handled(&got, time.Second))
		q.Add("a", 0, 1)
		q.Add("b", 0, 1)
		synctest.Wait()
		q.Add("a", 0, 2) // two workers are free, but the key isn't
		q.Add("b", 0, 2)
		synctest.Wait()
		want(t, "handlers begun", len(got.list()), 2)
		_ = green.Sleep(ctx, 1500*time.Millisecond)
		want(t, "handlers begun", len(got.list()), 4)
		wantErr(t, "Run", stop(), errBoom)
	}},
	{"test_resource_processing_queue source: priority, then order of Add", func(t *testing.T, ctx context.Context) {
		var q green.KeyedQueue[string, int]
		var got journal[update]
		q.Add("c", 2, 1)
		q.Add("a", 0, 2)
		q.Add("b", 1, 3)
		q.Add("b2", 1, 4)
		stop := runQueue(ctx, &q, 1, handled(&got, time.Second))
		_ = green.Sleep(ctx, time.Minute)
		wantErr(t, "Run", stop(), errBoom)
		wantUpdates(t, &got, update{"a", 2}, update{"b", 3}, update{"b2", 4}, update{"c", 1})
	}},
	{"new, Add on a waiting key: its place, the newest value, the better priority", func(t *testing.T, ctx context.Context) {
		var q green.KeyedQueue[string, int]
		var got journal[update]
		q.Add("early", 5, 1)
		q.Add("x", 1, 2)
		q.Add("y", 1, 3)
		q.Add("x", 9, 4) // a worse priority changes the value only
		q.Add("z", 1, 5)
		q.Add("early", 1, 6) // moves up, ahead of x: it came first
		stop := runQueue(ctx, &q, 1, handled(&got, 0))
		synctest.Wait()
		wantErr(t, "Run", stop(), errBoom)
		wantUpdates(t, &got, update{"early", 6}, update{"x", 4}, update{"y", 3}, update{"z", 5})
	}},
	{"new, Offer on a waiting key: nothing, on another one as Add", func(t *testing.T, ctx context.Context) {
		var q green.KeyedQueue[string, int]
		var got journal[update]
		q.Offer("x", 1, 1)
		q.Offer("x", 0, 2)
		q.Add("y", 1, 3)
		q.Offer("y", 0, 4)
		stop := runQueue(ctx, &q, 1, func(ctx context.Context, key string, v int) error {
			if v == 1 {
				q.Offer("x", 1, 5) // it is in work, and does not wait
			}
			return handled(&got, 0)(ctx, key, v)
		})
		synctest.Wait()
		wantErr(t, "Run", stop(), errBoom)
		wantUpdates(t, &got, update{"x", 1}, update{"y", 3}, update{"x", 5})
	}},
	{"new, Add on a key in work: once more, with the newest", func(t *testing.T, ctx context.Context) {
		for _, workers := range []int{0, 1, 8} {
			var q green.KeyedQueue[string, int]
			var got journal[update]
			stop := runQueue(ctx, &q, workers, handled(&got, time.Second))
			q.Add("a", 0, 1)
			synctest.Wait()
			q.Add("a", 0, 2)
			q.Add("a", 0, 3)
			_ = green.Sleep(ctx, time.Minute)
			wantErr(t, "Run", stop(), errBoom)
			wantUpdates(t, &got, update{"a", 1}, update{"a", 3})
		}
	}},
	{"new, a key that was added in work takes its place by Add and priority", func(t *testing.T, ctx context.Context) {
		var q green.KeyedQueue[string, int]
		var got journal[update]
		stop := runQueue(ctx, &q, 1, handled(&got, time.Second))
		q.Add("a", 0, 1)
		synctest.Wait()
		q.Add("b", 3, 2)
		q.Add("a", 9, 3)
		q.Add("c", 3, 4)
		q.Add("a", 3, 5)
		_ = green.Sleep(ctx, time.Minute)
		wantErr(t, "Run", stop(), errBoom)
		wantUpdates(t, &got, update{"a", 1}, update{"b", 2}, update{"a", 5}, update{"c", 4})
	}},
	{"new, a failed handler is reported; adding again is the caller's choice", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		var q green.KeyedQueue[string, int]
		calls := 0
		stop := runQueue(ctx, &q, 2, func(_ context.Context, key string, tries int) error {
			if calls++; tries > 0 {
				q.Add(key, 0, tries-1)
			}
			return errBoom
		})
		q.Add("a", 0, 5)
		synctest.Wait()
		want(t, "calls", calls, 6)
		want(t, "reports", len(log.all()), 6)
		wantErr(t, "Run", stop(), errBoom)
	}},
	{"new, when the context ends handlers finish and the rest stays queued", func(t *testing.T, ctx context.Context) {
		for _, workers := range []int{-1, 1} {
			var q green.KeyedQueue[string, int]
			var got journal[update]
			stop := runQueue(ctx, &q, workers, handled(&got, time.Second))
			q.Add("a", 0, 1)
			synctest.Wait()
			q.Add("a", 0, 2)
			begun := time.Now()
			wantErr(t, "Run", stop(), errBoom)
			want(t, "Run waited for the handler", time.Since(begun), time.Second)
			q.Add("b", 0, 3)
			wantUpdates(t, &got, update{"a", 1})
			stop = runQueue(ctx, &q, 1, handled(&got, time.Second))
			_ = green.Sleep(ctx, time.Minute)
			wantErr(t, "Run", stop(), errBoom)
			wantUpdates(t, &got, update{"a", 1}, update{"a", 2}, update{"b", 3})
		}
	}},
	{"new, a handler that panics or leaves by Goexit frees its key and its worker", func(t *testing.T, ctx context.Context) {
		for _, workers := range []int{0, 1} {
			ctx, log := listen(ctx)
			var q green.KeyedQueue[string, int]
			var got journal[update]
			stop := runQueue(ctx, &q, workers, func(ctx context.Context, key string, v int) error {
				got.add(update{key, v})
				_ = green.Sleep(ctx, time.Second)
				switch v {
				case 1:
					panic(errBoom)
				case 2:
					runtime.Goexit()
				}
				return nil
			})
			for v := 1; v <= 3; v++ {
				q.Add("a", 0, v)
				_ = green.Sleep(ctx, time.Millisecond)
				q.Add("a", 0, v+1)
				_ = green.Sleep(ctx, 2*time.Second)
			}
			wantErr(t, "Run", stop(), errBoom)
			wantUpdates(t, &got, update{"a", 1}, update{"a", 2}, update{"a", 2}, update{"a", 3}, update{"a", 3}, update{"a", 4})
			if errs := log.all(); len(errs) != 3 || !errors.Is(errs[0], errBoom) || !errors.Is(errs[1], green.ErrGoexit) {
				t.Errorf("reports = %v", errs)
			}
		}
	}},
	{"new, without workers each key has a goroutine of its own, and only while it has work", func(t *testing.T, ctx context.Context) {
		var q green.KeyedQueue[string, struct{}]
		var busy atomic.Int32
		stop := runQueue(ctx, &q, 0, func(ctx context.Context, _ string, _ struct{}) error {
			busy.Add(1)
			return green.Sleep(ctx, time.Minute)
		})
		for i := range 1000 {
			q.Add(fmt.Sprintf("%08x-0000-4000-8000-000000000000", i), 0, struct{}{})
		}
		synctest.Wait()
		want(t, "keys in work", busy.Load(), 1000)
		before := runtime.NumGoroutine()
		_ = green.Sleep(ctx, 2*time.Minute)
		if gone := before - runtime.NumGoroutine(); gone < 900 { // the count is of the whole process
			t.Errorf("%d goroutines ended with their keys' work, want about 1000", gone)
		}
		wantErr(t, "Run", stop(), errBoom)
	}},
	{"new, two Runs share a queue, and one may end", func(t *testing.T, ctx context.Context) {
		var q green.KeyedQueue[string, int]
		var got journal[update]
		first := runQueue(ctx, &q, 2, handled(&got, 0))
		second := runQueue(ctx, &q, 2, handled(&got, 0))
		synctest.Wait()
		wantErr(t, "first Run", first(), errBoom)
		for i := range 100 {
			q.Add(fmt.Sprint(i), 0, i)
		}
		synctest.Wait()
		want(t, "handled", len(got.list()), 100)
		wantErr(t, "second Run", second(), errBoom)
	}},
}

// new: 200,000 updates of 3 keys through 8 workers, really in parallel: the
// structure without a lock lost some. The last value of each key is handled,
// none is handled twice, never two at once.
func TestKeyedQueueUnderLoad(t *testing.T) {
	for _, workers := range []int{0, 8} {
		var q green.KeyedQueue[int, int]
		var inWork [3]atomic.Int32
		var newest [3]atomic.Int64
		var last [3]int // guarded by the queue's promise, which -race checks
		stop := runQueue(t.Context(), &q, workers, func(_ context.Context, key, v int) error {
			if inWork[key].Add(1) != 1 {
				t.Error("two at once")
			}
			if v <= last[key] {
				t.Errorf("key %d: %d after %d", key, v, last[key])
			}
			last[key] = v
			newest[key].Store(int64(v))
			inWork[key].Add(-1)
			return nil
		})
		const updates = 200_000
		for v := 1; v <= updates; v++ {
			q.Add(v%3, v%7, v)
		}
		for key := range 3 { // until the last value of each came through
			for deadline := time.Now().Add(time.Minute); newest[key].Load() <= updates-3; runtime.Gosched() {
				if time.Now().After(deadline) {
					t.Fatalf("key %d: %d is the last that was handled", key, newest[key].Load())
				}
			}
		}
		wantErr(t, "Run", stop(), errBoom)
	}
}

// Whatever is added when, with any number of workers: never two at once for a
// key, the last value of each key is handled, values of a key come in the
// order of Add, and nothing is handled that was not added.
func TestKeyedQueueProperty(t *testing.T) {
	type step struct{ key, priority, pause int }
	rapid.Check(t, func(rt *rapid.T) {
		workers := rapid.IntRange(0, 4).Draw(rt, "workers")
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{rapid.IntRange(0, 4).Draw(rt, "key"), rapid.IntRange(-2, 2).Draw(rt, "priority"), rapid.IntRange(0, 3).Draw(rt, "pause")}
		}), 1, 80).Draw(rt, "steps")
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			var q green.KeyedQueue[int, int]
			var inWork [5]atomic.Int32
			var last, added [5]int
			stop := runQueue(ctx, &q, workers, func(ctx context.Context, key, v int) error {
				if inWork[key].Add(1) != 1 {
					t.Errorf("key %d: two at once", key)
				}
				if v <= last[key] {
					t.Errorf("key %d: %d after %d", key, v, last[key])
				}
				_ = green.Sleep(context.WithoutCancel(ctx), time.Duration(1+key)*time.Millisecond)
				last[key] = v
				inWork[key].Add(-1)
				return nil
			})
			for i, s := range steps {
				q.Add(s.key, s.priority, i+1)
				added[s.key] = i + 1
				if s.pause > 0 {
					_ = green.Sleep(ctx, time.Duration(s.pause)*time.Millisecond)
				}
			}
			_ = green.Sleep(ctx, time.Hour)
			wantErr(t, "Run", stop(), errBoom)
			if last != added {
				t.Errorf("last handled %v, last added %v", last, added)
			}
		})
	})
}

// The order of one worker against a model: the lowest priority first, then the
// earliest Add of what waits.
func TestKeyedQueueOrderProperty(t *testing.T) {
	type entry struct{ priority, seq, value int }
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(rt, "adds")
		keys := rapid.IntRange(1, 100).Draw(rt, "keys")
		levels := rapid.IntRange(1, 5).Draw(rt, "levels")
		model := map[string]*entry{}
		var q green.KeyedQueue[string, int]
		for i := range n {
			key, priority := fmt.Sprint(rapid.IntRange(1, keys).Draw(rt, "key")), rapid.IntRange(1, levels).Draw(rt, "priority")
			q.Add(key, priority, i)
			if e := model[key]; e != nil {
				e.priority, e.value = min(e.priority, priority), i
			} else {
				model[key] = &entry{priority, i, i}
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var got []update
		_ = q.Run(ctx, 1, func(_ context.Context, key string, v int) error {
			got = append(got, update{key, v})
			if len(got) == len(model) {
				cancel()
			}
			return nil
		})
		for i, u := range got {
			e := model[u.key]
			if e.value != u.value {
				rt.Errorf("%v handled, want value %d", u, e.value)
			}
			if i == 0 {
				continue
			}
			if b := model[got[i-1].key]; b.priority > e.priority || b.priority == e.priority && b.seq > e.seq {
				rt.Errorf("%v before %v", *b, *e)
			}
		}
	})
}

// new: keys that move from a level that is never served to a better one leave
// nothing behind there.
func TestKeyedQueueMovesLeaveNothing(t *testing.T) {
	var q green.KeyedQueue[int, int]
	q.Add(-1, 9, 0) // waits for ever: the level isn't empty
	round := func() {
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 50_000 {
			q.Add(i, 9, i)
			q.Add(i, 1, i)
		}
		left := 50_000
		_ = q.Run(ctx, 1, func(context.Context, int, int) error {
			if left--; left == 0 {
				cancel()
			}
			return nil
		})
	}
	round()
	before := heap()
	round()
	round()
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("100,000 moves left %d bytes", grown)
	}
	runtime.KeepAlive(&q)
}
