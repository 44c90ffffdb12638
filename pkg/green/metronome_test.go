package green_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/green"
)

func TestMetronome(t *testing.T) { conform(t, metronomeCases) }

var metronomeCases = []conformCase{
	{"new, a thousand loops whose runs are short have one worker, and it ends with them", func(t *testing.T, ctx context.Context) {
		m, begun := green.NewMetronome(), time.Now()
		var all []*loop
		for i := range 1000 {
			at := time.Duration(i) * time.Millisecond / 2
			runs := 0
			all = append(all, startLoop(t, ctx, func(context.Context) error {
				want(t, "time of the run", time.Since(begun), at+time.Duration(runs*500)*ms)
				if n := m.Workers(); n > 2 { // the second came because a look and a run fell on one moment
					t.Errorf("%d workers", n)
				}
				if runs++; runs == 10 {
					return green.LoopDone("x")
				}
				return nil
			}, 500*ms, green.InitialDelay(at), green.PacedBy(m)))
		}
		want(t, "workers", m.Workers(), 1)
		for _, l := range all {
			ended(t, ctx, l, "x", nil)
		}
		synctest.Wait()
		want(t, "workers", m.Workers(), 0)
	}},
	{"new, runs that block hold up the others for a moment, and their workers go", func(t *testing.T, ctx context.Context) {
		m := green.NewMetronome()
		release := make(chan struct{})
		var stuck []*loop
		for range 100 {
			stuck = append(stuck, startLoop(t, ctx, func(context.Context) error {
				<-release
				return nil
			}, 500*ms, green.PacedBy(m)))
		}
		b := newBeats()
		quick := startLoop(t, ctx, b.until(5, green.LoopDone("x")), 500*ms, green.PacedBy(m))
		ended(t, ctx, quick, "x", nil)
		if b.at[0] > 20*ms {
			t.Errorf("the first run was held up for %v", b.at[0])
		}
		for i, at := range b.at[1:] {
			if d := at - b.at[i]; d > 502*ms {
				t.Errorf("run %d came %v after the one before", i+1, d)
			}
		}
		want(t, "workers", m.Workers() >= 100, true)
		close(release)
		synctest.Wait()
		want(t, "workers", m.Workers(), 1)
		for _, l := range stuck {
			l.Stop()
			ended(t, ctx, l, "", nil)
		}
	}},
	{"new, one that comes while all workers are blocked", func(t *testing.T, ctx context.Context) {
		m := green.NewMetronome()
		release := make(chan struct{})
		stuck := startLoop(t, ctx, func(context.Context) error { <-release; return green.LoopDone("free") }, 500*ms, green.PacedBy(m))
		_ = green.Sleep(ctx, time.Minute)
		b := newBeats()
		ended(t, ctx, startLoop(t, ctx, b.until(1, green.LoopDone("x")), 500*ms, green.PacedBy(m)), "x", nil)
		if b.at[0] > 5*ms {
			t.Errorf("it ran after %v", b.at[0])
		}
		close(release)
		ended(t, ctx, stuck, "free", nil)
	}},
	{"new, a wake-up while another run blocks", func(t *testing.T, ctx context.Context) {
		m := green.NewMetronome()
		b := newBeats()
		woken := startLoop(t, ctx, b.until(2, green.LoopDone("x")), time.Hour, green.PacedBy(m))
		_ = green.Sleep(ctx, time.Second)
		ended(t, ctx, startLoop(t, ctx, func(ctx context.Context) error {
			woken.Wake()
			_ = green.Sleep(ctx, time.Minute)
			return green.LoopDone("slow")
		}, time.Second, green.PacedBy(m)), "slow", nil)
		ended(t, ctx, woken, "x", nil)
		if d := b.at[1] - time.Second; d > 5*ms {
			t.Errorf("it ran %v after the wake-up", d)
		}
	}},
	{"new, a run that leaves by Goexit ends its loop alone", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		m := green.NewMetronome()
		b := newBeats()
		other := startLoop(t, ctx, b.until(3, green.LoopDone("x")), time.Second, green.PacedBy(m))
		gone := startLoop(t, ctx, func(context.Context) error { runtime.Goexit(); return nil }, time.Second, green.PacedBy(m))
		ended(t, ctx, gone, "", green.ErrGoexit)
		ended(t, ctx, other, "x", nil)
		b.expect(t, 0, 1000, 2000)
		log.expect(t, green.ErrGoexit)
	}},
	{"new, Run waits for the end", func(t *testing.T, ctx context.Context) {
		m := green.NewMetronome()
		b := newBeats()
		v, err := green.NewFixedIntervalLoopingCall[string](b.until(3, green.LoopDone("x"))).Run(ctx, time.Second, green.PacedBy(m))
		want(t, "Run", v, "x")
		wantErr(t, "Run", err, nil)
		b.expect(t, 0, 1000, 2000)
		away, cancel := context.WithCancelCause(ctx)
		green.SpawnAfter(ctx, time.Minute, func(context.Context) (int, error) { cancel(errBoom); return 0, nil })
		_, err = green.NewFixedIntervalLoopingCall[string](newBeats().until(99, nil)).Run(away, time.Hour, green.PacedBy(m))
		wantErr(t, "Run", err, errBoom)
	}},
	{"new, it listens to no channel", func(t *testing.T, ctx context.Context) {
		l := green.NewFixedIntervalLoopingCall[string](newBeats().until(1, nil))
		err := l.Start(ctx, time.Second, green.PacedBy(green.NewMetronome()), green.WakeOn(make(chan struct{})))
		wantErr(t, "Start", err, green.ErrLoopPaced)
	}},
	{"new, it is used again after its last loop has ended", func(t *testing.T, ctx context.Context) {
		m := green.NewMetronome()
		for range 3 {
			b := newBeats()
			ended(t, ctx, startLoop(t, ctx, b.until(2, green.LoopDone("x")), time.Second, green.PacedBy(m)), "x", nil)
			b.expect(t, 0, 1000)
			_ = green.Sleep(ctx, time.Hour)
		}
	}},
}

// Whatever loops with whatever intervals share a metronome, and are woken and stopped
// whenever: each runs when it would with a goroutine of its own.
func TestMetronomeIsNoDifferent(t *testing.T) {
	play := func(seed uint64, paced bool) (told []string) {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			if paced {
				ctx = context.WithValue(ctx, metronomeKey{}, green.NewMetronome())
			}
			random := rand.New(rand.NewPCG(seed, 1))
			begun := time.Now()
			runs := make([][]time.Duration, 20)
			var all []*loop
			for i := range runs {
				last := 1 + random.IntN(30)
				every := time.Duration(1+random.IntN(50))*10*ms + time.Duration(i)*time.Microsecond
				l := startLoop(t, ctx, func(context.Context) error {
					runs[i] = append(runs[i], time.Since(begun))
					if len(runs[i]) == last {
						return green.LoopDone("x")
					}
					return nil
				}, every, green.InitialDelay(time.Duration(random.IntN(1000))*ms))
				all = append(all, l)
				for n := range random.IntN(4) {
					at := time.Duration(random.IntN(5000))*ms + time.Duration(100*i+n+1)*time.Nanosecond
					do := l.Wake
					if random.IntN(6) == 0 {
						do = l.Stop
					}
					time.AfterFunc(at, do)
				}
			}
			for i, l := range all {
				v, err := l.Wait(t.Context())
				told = append(told, fmt.Sprint(i, v, err, runs[i]))
			}
		})
		return told
	}
	for seed := range uint64(100) {
		if diff := cmp.Diff(play(seed, false), play(seed, true)); diff != "" {
			t.Fatalf("seed %d (-own goroutines +metronome):\n%s", seed, diff)
		}
	}
}

// Loops that are started, woken, stopped and cancelled from many sides all end.
func TestMetronomeUnderPressure(t *testing.T) {
	m := green.NewMetronome()
	crowd := green.NewPool(16)
	for i := range 2000 {
		_ = crowd.SpawnN(t.Context(), func(ctx context.Context) error {
			ctx, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			runs := 0
			l := startLoop(t, ctx, func(context.Context) error {
				runs++
				return nil
			}, time.Duration(i%3)*time.Millisecond, green.PacedBy(m))
			l.Wake()
			runtime.Gosched()
			end := errBoom
			if i%2 == 0 {
				end = nil
				l.Stop()
			} else {
				cancel(end)
			}
			if _, err := l.Wait(t.Context()); !errors.Is(err, end) {
				t.Errorf("the end: %v, want %v", err, end)
			}
			return nil
		})
	}
	if err := crowd.WaitAll(t.Context()); err != nil {
		t.Error(err)
	}
}
