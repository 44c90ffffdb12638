package green_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/green"
)

func TestPoolResize(t *testing.T) { conform(t, poolResizeCases) }

var poolResizeCases = []conformCase{
	{"greenpool_test.test_resize", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		a, b := spawnIn(t, ctx, p, sleeper(time.Second)), spawnIn(t, ctx, p, sleeper(time.Second))
		counts(t, "full", p, 2, 0, 0)
		p.Resize(1)
		outcome(t, ctx, a, 1, nil)
		outcome(t, ctx, b, 1, nil)
		counts(t, "shrunken, released", p, 0, 1, 0)
		p.Resize(2)
		counts(t, "grown", p, 0, 2, 0)
	}},
	{"probe, size 0 and then 1", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(0)
		ran := false
		green.SpawnN(ctx, func(ctx context.Context) error {
			return p.SpawnN(ctx, func(context.Context) error { ran = true; return nil })
		})
		synctest.Wait()
		counts(t, "size 0", p, 0, 0, 1)
		p.Resize(1)
		synctest.Wait()
		want(t, "ran", ran, true)
	}},
	{"probe, growing starts all who wait at once", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(1)
		for range 3 {
			green.SpawnN(ctx, func(ctx context.Context) error { return p.SpawnN(ctx, napping(time.Second)) })
		}
		synctest.Wait()
		counts(t, "one runs", p, 1, 0, 2)
		p.Resize(3)
		counts(t, "grown", p, 3, 0, 0)
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
	}},
	{"probe, WaitAll waits for who is queued", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		var ran atomic.Int32
		for range 5 {
			green.SpawnN(ctx, func(ctx context.Context) error {
				return p.SpawnN(ctx, func(ctx context.Context) error { ran.Add(1); return green.Sleep(ctx, time.Second) })
			})
		}
		synctest.Wait()
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
		want(t, "ran", ran.Load(), 5)
	}},
	{"probe, shrinking below what runs", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(3)
		for range 3 {
			spawnNIn(t, ctx, p, napping(time.Second))
		}
		p.Resize(1)
		counts(t, "shrunken", p, 3, -2, 0)
		p.Resize(3)
		counts(t, "grown back", p, 3, 0, 0)
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
	}},
}

func TestPoolSpawnerGivesUp(t *testing.T) { conform(t, poolSpawnerGivesUpCases) }

var poolSpawnerGivesUpCases = []conformCase{
	{"greenpool_test.test_pool_spawn_times_out", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(1)
		busy := spawnIn(t, ctx, p, sleeper(time.Minute))
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := green.PoolSpawn(short, p, never(t))
		wantErr(t, "PoolSpawn", err, context.DeadlineExceeded)
		wantErr(t, "PoolSpawn", err, green.ErrWaitGivenUp)
		counts(t, "given up", p, 1, 0, 0)
		outcome(t, ctx, busy, 1, nil)
		counts(t, "ended", p, 0, 1, 0)
	}},
	{"probe, the only spawner of a pool of 0 gives up: WaitAll returns", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(0)
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		green.SpawnN(ctx, func(context.Context) error { _ = p.SpawnN(short, napping(0)); return nil })
		synctest.Wait()
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
	}},
	{"new, given up at the instant of the grant", func(t *testing.T, ctx context.Context) {
		for range 1000 {
			p := green.NewPool(1)
			blocked, unblock := context.WithCancel(ctx)
			spawnNIn(t, ctx, p, func(context.Context) error { <-blocked.Done(); return nil })
			short, giveUp := context.WithCancel(ctx)
			var ran atomic.Bool
			queued := green.Spawn(ctx, func(context.Context) (bool, error) {
				err := p.SpawnN(short, func(context.Context) error { ran.Store(true); return nil })
				return err == nil, nil
			})
			synctest.Wait()
			green.SpawnN(ctx, func(context.Context) error { giveUp(); return nil })
			unblock()
			accepted, _ := queued.Wait(ctx)
			wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
			counts(t, "after", p, 0, 1, 0)
			want(t, "ran iff it was accepted", ran.Load(), accepted)
		}
	}},
}

// Never more than size tasks run, and none is lost, whatever is spawned,
// killed, given up and resized meanwhile.
func TestPoolProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(1, 5).Draw(rt, "size")
		steps := rapid.SliceOfN(rapid.IntRange(0, 9), 1, 60).Draw(rt, "steps")
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			p := green.NewPool(size)
			var running, most, began, accepted atomic.Int32
			task := func(ctx context.Context) (int, error) {
				began.Add(1)
				now := running.Add(1)
				defer running.Add(-1)
				for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
				}
				return 0, green.Sleep(ctx, time.Millisecond)
			}
			for i, step := range steps {
				limit, cancel := context.WithTimeout(ctx, time.Duration(step)*time.Millisecond+time.Microsecond)
				defer cancel()
				green.SpawnN(ctx, func(context.Context) error {
					if i%2 == 0 {
						if p.SpawnN(limit, func(ctx context.Context) error { _, _ = task(context.WithoutCancel(ctx)); return nil }) == nil {
							accepted.Add(1)
						}
						return nil
					}
					th, err := green.PoolSpawn(limit, p, func(context.Context) (int, error) { return task(context.WithoutCancel(ctx)) })
					if err == nil {
						accepted.Add(1)
						if step == 3 && th.Cancel(nil) {
							began.Add(1) // never will
						}
					}
					return nil
				})
				if step == 7 {
					_ = green.Sleep(ctx, time.Millisecond)
				}
			}
			synctest.Wait()
			wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
			synctest.Wait()
			counts(t, "in the end", p, 0, size, 0)
			want(t, "begun", began.Load(), accepted.Load())
			if most.Load() > int32(size) {
				t.Errorf("%d ran at once in a pool of %d", most.Load(), size)
			}
		})
	})
}
