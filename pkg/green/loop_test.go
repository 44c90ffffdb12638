package green_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/green"
)

// beats records when a looped function ran, since it was made, and gives err
// at the last of n runs.
type beats struct {
	begun time.Time
	at    []time.Duration
}

func newBeats() *beats { return &beats{begun: time.Now()} }

func (b *beats) until(n int, last error, takes ...time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		i := len(b.at)
		b.at = append(b.at, time.Since(b.begun))
		if i < len(takes) {
			if err := green.Sleep(ctx, takes[i]); err != nil {
				return err
			}
		}
		if len(b.at) == n {
			return last
		}
		return nil
	}
}

func (b *beats) expect(t *testing.T, ms ...int) {
	t.Helper()
	var got []int
	for _, d := range b.at {
		got = append(got, int(d/time.Millisecond))
	}
	if diff := cmp.Diff(ms, got); diff != "" {
		t.Errorf("beats in ms (-want +got):\n%s", diff)
	}
}

type loop = green.FixedIntervalLoopingCall[string]

func startLoop(t *testing.T, ctx context.Context, fn func(context.Context) error, every time.Duration, opts ...green.LoopOption) *loop {
	t.Helper()
	l := green.NewFixedIntervalLoopingCall[string](fn)
	if err := start(ctx, l, every, opts...); err != nil {
		t.Fatalf("Start: %v", err)
	}
	return l
}

// start starts a loop in the way that is being tested.
func start[T any](ctx context.Context, l *green.FixedIntervalLoopingCall[T], every time.Duration, opts ...green.LoopOption) error {
	return l.Start(ctx, every, pacing(ctx, opts)...)
}

type metronomeKey struct{}

// pacing adds the metronome of a test that has one.
func pacing(ctx context.Context, opts []green.LoopOption) []green.LoopOption {
	if m, ok := ctx.Value(metronomeKey{}).(*green.Metronome); ok {
		return append(opts, green.PacedBy(m))
	}
	return opts
}

// bothWays runs cases with loops that have a goroutine of their own, and with loops that
// share a metronome.
func bothWays(t *testing.T, cases []conformCase) {
	conform(t, cases)
	for _, c := range cases {
		conform(t, []conformCase{{c.source + ", paced", func(t *testing.T, ctx context.Context) {
			c.run(t, context.WithValue(ctx, metronomeKey{}, green.NewMetronome()))
		}}})
	}
}

func ended(t *testing.T, ctx context.Context, l *loop, wantV string, wantE error) {
	t.Helper()
	for range 2 { // the outcome stays
		v, err := l.Wait(ctx)
		want(t, "Wait", v, wantV)
		wantErr(t, "Wait", err, wantE)
	}
}

const ms = time.Millisecond

func TestLoop(t *testing.T) { bothWays(t, loopCases) }

var loopCases = []conformCase{
	{"loopingcall FixedInterval.test_return_true", func(t *testing.T, ctx context.Context) {
		ended(t, ctx, startLoop(t, ctx, newBeats().until(1, green.LoopDone("yes")), time.Second), "yes", nil)
	}},
	{"loopingcall FixedInterval.test_return_false", func(t *testing.T, ctx context.Context) {
		l := green.NewFixedIntervalLoopingCall[bool](newBeats().until(1, green.LoopDone(false)))
		wantErr(t, "Start", start(ctx, l, time.Second), nil)
		v, err := l.Wait(ctx)
		want(t, "Wait", v, false)
		wantErr(t, "Wait", err, nil)
	}},
	{"loopingcall FixedInterval.test_do_not_stop_on_exception", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		n := 0
		l := startLoop(t, ctx, func(context.Context) error {
			switch n++; n {
			case 1:
				return errBoom
			case 2:
				panic(errBoom)
			}
			return green.LoopDone("done")
		}, time.Second, green.ContinueOnError())
		ended(t, ctx, l, "done", nil)
		want(t, "reports", len(log.all()), 2)
	}},
	{"loopingcall FixedInterval.test_no_double_start", func(t *testing.T, ctx context.Context) {
		l := startLoop(t, ctx, newBeats().until(3, green.LoopDone("x")), time.Second)
		wantErr(t, "Start", start(ctx, l, time.Second), green.ErrLoopRunning)
		ended(t, ctx, l, "x", nil)
	}},
	{"loopingcall FixedInterval.test_no_double_stop", func(t *testing.T, ctx context.Context) {
		l := startLoop(t, ctx, newBeats().until(99, nil), time.Second)
		l.Stop()
		l.Stop()
		ended(t, ctx, l, "", nil)
		l.Stop()
	}},
	{"loopingcall FixedInterval.test_interval_adjustment", func(t *testing.T, ctx context.Context) {
		ctx, _ = listen(ctx)
		b := newBeats()
		l := startLoop(t, ctx, b.until(4, green.LoopDone("x"), 990*ms, 2000*ms, 1010*ms), 1010*ms)
		ended(t, ctx, l, "x", nil)
		b.expect(t, 0, 1010, 3010, 4020)
	}},
	{"loopingcall FixedInterval.test_looping_call_timed_out", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		ended(t, ctx, startLoop(t, ctx, b.until(99, nil), 100*ms, green.LoopTimeout(300*ms)), "", green.ErrLoopTimeout)
		b.expect(t, 0, 100, 200, 300, 400)
	}},
	{"probe, a timeout doesn't shorten a sleep", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		ended(t, ctx, startLoop(t, ctx, b.until(99, nil), 100*ms, green.LoopTimeout(250*ms)), "", green.ErrLoopTimeout)
		b.expect(t, 0, 100, 200, 300)
	}},
	{"probe, timeout: a long run, the initial delay, errors", func(t *testing.T, ctx context.Context) {
		ctx, _ = listen(ctx)
		b := newBeats()
		ended(t, ctx, startLoop(t, ctx, b.until(99, nil, 5*time.Second), 100*ms, green.LoopTimeout(time.Second)), "", green.ErrLoopTimeout)
		b.expect(t, 0)
		b = newBeats()
		ended(t, ctx, startLoop(t, ctx, b.until(1, errBoom), 100*ms, green.LoopTimeout(time.Second),
			green.InitialDelay(2*time.Second), green.ContinueOnError()), "", green.ErrLoopTimeout)
		b.expect(t, 2000)
	}},
	{"probe, first run at once, or after the initial delay", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		ended(t, ctx, startLoop(t, ctx, b.until(2, green.LoopDone("x")), time.Second), "x", nil)
		b.expect(t, 0, 1000)
		b = newBeats()
		ended(t, ctx, startLoop(t, ctx, b.until(2, green.LoopDone("x")), time.Second, green.InitialDelay(300*ms)), "x", nil)
		b.expect(t, 300, 1300)
	}},
	{"probe, overrun is reported from 5 ms, next at once, none made up", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		b := newBeats()
		l := startLoop(t, ctx, b.until(4, green.LoopDone("x"), 104*ms, 350*ms), 100*ms)
		ended(t, ctx, l, "x", nil)
		b.expect(t, 0, 104, 454, 554)
		log.expect(t, green.ErrLoopOverrun)
	}},
	{"probe, an interval of 4 ms is 4 ms", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		ended(t, ctx, startLoop(t, ctx, b.until(3, green.LoopDone("x")), 4*ms), "x", nil)
		b.expect(t, 0, 4, 8)
	}},
	{"probe, interval 0 and negative", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		ended(t, ctx, startLoop(t, ctx, b.until(3, green.LoopDone("x")), 0), "x", nil)
		b.expect(t, 0, 0, 0)
		l := green.NewFixedIntervalLoopingCall[string](b.until(99, nil))
		wantErr(t, "Start", start(ctx, l, -1), green.ErrLoopInterval)
		wantErr(t, "Start", start(ctx, l, 1, green.InitialDelay(-1)), green.ErrLoopInterval)
		_, err := l.Wait(ctx)
		wantErr(t, "Wait", err, green.ErrLoopNotBegun)
	}},
	{"probe, stop and wait before start", func(t *testing.T, ctx context.Context) {
		l := green.NewFixedIntervalLoopingCall[string](newBeats().until(1, green.LoopDone("x")))
		l.Stop()
		_, err := l.Wait(ctx)
		wantErr(t, "Wait", err, green.ErrLoopNotBegun)
		wantErr(t, "Start", start(ctx, l, time.Second), nil)
		ended(t, ctx, l, "x", nil)
	}},
	{"probe, errors end it, keep-going and LoopingCallDone too", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		ended(t, ctx, startLoop(t, ctx, newBeats().until(2, errBoom), time.Second), "", errBoom)
		log.expect(t, errBoom)
		ended(t, ctx, startLoop(t, ctx, newBeats().until(2, fmt.Errorf("so: %w", green.LoopDone("x"))), time.Second, green.ContinueOnError()), "x", nil)
	}},
	{"new, a value of another type", func(t *testing.T, ctx context.Context) {
		ended(t, ctx, startLoop(t, ctx, newBeats().until(1, green.LoopDone(5)), time.Second), "", green.ErrLoopDoneType)
		anything := green.NewFixedIntervalLoopingCall[any](newBeats().until(1, green.LoopDone[any](nil)))
		wantErr(t, "Start", start(ctx, anything, time.Second), nil)
		_, err := anything.Wait(ctx)
		wantErr(t, "Wait for nil", err, nil)
	}},
	{"new, panic and Goexit end it", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		ended(t, ctx, startLoop(t, ctx, func(context.Context) error { panic(errBoom) }, time.Second), "", errBoom)
		log.expect(t, errBoom)
		ended(t, ctx, startLoop(t, ctx, func(context.Context) error { runtime.Goexit(); return nil }, time.Second, green.ContinueOnError()), "", green.ErrGoexit)
	}},
	{"new, Wait given up", func(t *testing.T, ctx context.Context) {
		l := startLoop(t, ctx, newBeats().until(99, nil), time.Second)
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		_, err := l.Wait(short)
		wantErr(t, "Wait", err, green.ErrWaitGivenUp)
		l.Stop()
		ended(t, ctx, l, "", nil)
	}},
}

func TestLoopStop(t *testing.T) { conform(t, loopStopCases) }

var loopStopCases = []conformCase{
	{"probe, stop wakes a sleeper, also in the initial delay", func(t *testing.T, ctx context.Context) {
		for _, opts := range [][]green.LoopOption{nil, {green.InitialDelay(time.Hour)}} {
			begun := time.Now()
			l := startLoop(t, ctx, newBeats().until(99, nil), time.Hour, opts...)
			synctest.Wait()
			l.Stop()
			ended(t, ctx, l, "", nil)
			want(t, "took", time.Since(begun), 0)
		}
	}},
	{"probe, stop lets a run in progress finish; no start before the end", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		l := startLoop(t, ctx, b.until(99, nil, 10*time.Second), time.Second)
		_ = green.Sleep(ctx, time.Second)
		l.Stop()
		wantErr(t, "Start", start(ctx, l, time.Second), green.ErrLoopRunning)
		ended(t, ctx, l, "", nil)
		want(t, "took", time.Since(b.begun), 10*time.Second)
		b.expect(t, 0)
	}},
	{"probe, stop and start from inside", func(t *testing.T, ctx context.Context) {
		var l *loop
		var inside error
		l = green.NewFixedIntervalLoopingCall[string](func(context.Context) error {
			l.Stop()
			inside = start(ctx, l, time.Second)
			return nil
		})
		wantErr(t, "Start", start(ctx, l, time.Second), nil)
		ended(t, ctx, l, "", nil)
		wantErr(t, "Start inside", inside, green.ErrLoopRunning)
	}},
	{"probe, started again as soon as Wait returned", func(t *testing.T, ctx context.Context) {
		l := green.NewFixedIntervalLoopingCall[string](func(context.Context) error { return green.LoopDone("x") })
		for range 100 {
			wantErr(t, "Start", start(ctx, l, time.Second), nil)
			ended(t, ctx, l, "x", nil)
		}
	}},
	{"probe, the loop's thread is killed, also in the initial delay", func(t *testing.T, ctx context.Context) {
		for _, opts := range [][]green.LoopOption{nil, {green.InitialDelay(time.Hour)}, {green.ContinueOnError()}} {
			ctx, log := listen(ctx)
			killable, kill := context.WithCancelCause(ctx)
			l := startLoop(t, killable, newBeats().until(99, nil, time.Hour), time.Hour, opts...)
			synctest.Wait()
			kill(errBoom)
			ended(t, ctx, l, "", errBoom)
			log.expectNone(t)
		}
	}},
	{"probe, GreenletExit inside ends it quietly", func(t *testing.T, ctx context.Context) {
		ctx, log := listen(ctx)
		ended(t, ctx, startLoop(t, ctx, newBeats().until(2, green.ErrExit), time.Second, green.ContinueOnError()), "", green.ErrExit)
		log.expectNone(t)
	}},
	{"new, nothing is left after Stop and Wait", func(t *testing.T, ctx context.Context) {
		l := startLoop(t, ctx, newBeats().until(99, nil), time.Second)
		_ = green.Sleep(ctx, time.Minute)
		l.Stop()
		ended(t, ctx, l, "", nil) // the bubble fails on a goroutine that stays
	}},
}

func TestLoopWakeOn(t *testing.T) { conform(t, loopWakeOnCases) }

var loopWakeOnCases = []conformCase{
	{"new, a value brings one beat, from which the interval counts", func(t *testing.T, ctx context.Context) {
		b, wake := newBeats(), make(chan struct{})
		l := startLoop(t, ctx, b.until(5, green.LoopDone("x")), 500*ms, green.WakeOn(wake))
		_ = green.Sleep(ctx, 600*ms)
		wake <- struct{}{}
		wake <- struct{}{}
		ended(t, ctx, l, "x", nil)
		b.expect(t, 0, 500, 600, 600, 1100)
	}},
	{"new, a closed channel brings one beat and is then ignored", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		var finish green.Event[int]
		l := startLoop(t, ctx, b.until(4, green.LoopDone("x")), 500*ms, green.WakeOn(finish.Done()))
		_ = green.Sleep(ctx, 600*ms)
		wantErr(t, "Send", finish.Send(1), nil)
		ended(t, ctx, l, "x", nil)
		b.expect(t, 0, 500, 600, 1100)
	}},
	{"new, it wakes the initial delay", func(t *testing.T, ctx context.Context) {
		b, wake := newBeats(), make(chan struct{}, 1)
		wake <- struct{}{}
		l := startLoop(t, ctx, b.until(2, green.LoopDone("x")), 500*ms, green.WakeOn(wake), green.InitialDelay(time.Hour))
		ended(t, ctx, l, "x", nil)
		b.expect(t, 0, 500)
	}},
	{"new, three channels", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		var wakes [3]chan struct{}
		var opts []green.LoopOption
		for i := range wakes {
			wakes[i] = make(chan struct{})
			opts = append(opts, green.WakeOn(wakes[i]))
		}
		l := startLoop(t, ctx, b.until(5, green.LoopDone("x")), 500*ms, opts...)
		for _, wake := range wakes {
			_ = green.Sleep(ctx, 100*ms)
			wake <- struct{}{}
		}
		ended(t, ctx, l, "x", nil)
		b.expect(t, 0, 100, 200, 300, 800)
	}},
	{"new, several channels, one closed", func(t *testing.T, ctx context.Context) {
		b, wake, finish := newBeats(), make(chan struct{}), make(chan struct{})
		l := startLoop(t, ctx, b.until(5, green.LoopDone("x")), 500*ms, green.WakeOn(wake), green.WakeOn(finish))
		_ = green.Sleep(ctx, 100*ms)
		close(finish)
		_ = green.Sleep(ctx, 100*ms)
		wake <- struct{}{}
		_ = green.Sleep(ctx, 100*ms)
		wake <- struct{}{}
		ended(t, ctx, l, "x", nil)
		b.expect(t, 0, 100, 200, 300, 800)
	}},
	{"new, nothing is left after Stop and Wait", func(t *testing.T, ctx context.Context) {
		a, b := make(chan struct{}), make(chan struct{})
		l := startLoop(t, ctx, newBeats().until(99, nil), time.Second, green.WakeOn(a), green.WakeOn(b))
		_ = green.Sleep(ctx, time.Minute)
		l.Stop()
		ended(t, ctx, l, "", nil) // the bubble fails on a goroutine that stays
	}},
	{"new, Wake beside a channel", func(t *testing.T, ctx context.Context) {
		b, wake := newBeats(), make(chan struct{})
		l := startLoop(t, ctx, b.until(4, green.LoopDone("x")), 500*ms, green.WakeOn(wake))
		_ = green.Sleep(ctx, 100*ms)
		l.Wake()
		_ = green.Sleep(ctx, 100*ms)
		wake <- struct{}{}
		ended(t, ctx, l, "x", nil)
		b.expect(t, 0, 100, 200, 700)
	}},
}

func TestLoopWake(t *testing.T) { bothWays(t, loopWakeCases) }

var loopWakeCases = []conformCase{
	{"new, a beat at once, from which the interval counts", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		l := startLoop(t, ctx, b.until(4, green.LoopDone("x")), 500*ms)
		_ = green.Sleep(ctx, 600*ms)
		l.Wake()
		ended(t, ctx, l, "x", nil)
		b.expect(t, 0, 500, 600, 1100)
	}},
	{"new, during a run it brings one beat after it", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		l := startLoop(t, ctx, b.until(4, green.LoopDone("x"), 200*ms), 500*ms)
		_ = green.Sleep(ctx, 100*ms)
		l.Wake()
		l.Wake()
		ended(t, ctx, l, "x", nil)
		b.expect(t, 0, 200, 700, 1200)
	}},
	{"new, before Start it is kept, and wakes the initial delay", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		l := green.NewFixedIntervalLoopingCall[string](b.until(2, green.LoopDone("x")))
		l.Wake()
		wantErr(t, "Start", start(ctx, l, 500*ms, green.InitialDelay(time.Hour)), nil)
		ended(t, ctx, l, "x", nil)
		b.expect(t, 0, 500)
	}},
	{"new, during the last run it is kept for the next Start", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		l := startLoop(t, ctx, b.until(1, green.LoopDone("x"), 200*ms), 500*ms)
		_ = green.Sleep(ctx, 100*ms)
		l.Wake()
		ended(t, ctx, l, "x", nil)
		wantErr(t, "Start", start(ctx, l, 500*ms, green.InitialDelay(time.Hour)), nil)
		_ = green.Sleep(ctx, 300*ms)
		l.Stop()
		ended(t, ctx, l, "", nil)
		b.expect(t, 0, 200)
	}},
	{"new, it does not keep a loop that was stopped", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		l := startLoop(t, ctx, b.until(99, nil), time.Hour)
		_ = green.Sleep(ctx, 100*ms)
		l.Wake()
		l.Stop()
		l.Wake()
		ended(t, ctx, l, "", nil)
		b.expect(t, 0)
	}},
	{"new, wakes from many sides at once", func(t *testing.T, ctx context.Context) {
		runs := 0
		l := startLoop(t, ctx, func(context.Context) error { runs++; return nil }, time.Hour)
		wakers := green.NewPool(8)
		for range 1000 {
			_ = wakers.SpawnN(ctx, func(context.Context) error { l.Wake(); return nil })
		}
		_ = wakers.WaitAll(ctx)
		synctest.Wait()
		before := runs
		_ = green.Sleep(ctx, time.Minute)
		want(t, "runs while nobody wakes", runs, before)
		l.Stop()
		ended(t, ctx, l, "", nil)
	}},
}

func TestLoopRun(t *testing.T) { conform(t, loopRunCases) }

var loopRunCases = []conformCase{
	{"new, the caller's goroutine is the loop", func(t *testing.T, ctx context.Context) {
		b := newBeats()
		before := runtime.NumGoroutine()
		l := green.NewFixedIntervalLoopingCall[string](func(ctx context.Context) error {
			want(t, "goroutines", runtime.NumGoroutine(), before)
			return b.until(3, green.LoopDone("x"))(ctx)
		})
		v, err := l.Run(ctx, time.Second)
		want(t, "Run", v, "x")
		wantErr(t, "Run", err, nil)
		b.expect(t, 0, 1000, 2000)
		ended(t, ctx, l, "x", nil)
	}},
	{"new, a panic is an error, and Stop works from elsewhere", func(t *testing.T, ctx context.Context) {
		ctx, _ = listen(ctx)
		l := green.NewFixedIntervalLoopingCall[string](func(context.Context) error { panic("boom") })
		_, err := l.Run(ctx, time.Second)
		var p *green.PanicError
		want(t, "a PanicError", errors.As(err, &p), true)
		l = green.NewFixedIntervalLoopingCall[string](newBeats().until(99, nil))
		green.SpawnAfter(ctx, time.Minute, func(context.Context) (int, error) { l.Stop(); return 0, nil })
		_, err = l.Run(ctx, time.Hour)
		wantErr(t, "Run", err, nil)
	}},
	{"new, it refuses what Start refuses", func(t *testing.T, ctx context.Context) {
		l := startLoop(t, ctx, newBeats().until(99, nil), time.Second)
		_, err := l.Run(ctx, time.Second)
		wantErr(t, "Run", err, green.ErrLoopRunning)
		l.Stop()
		ended(t, ctx, l, "", nil)
		_, err = l.Run(ctx, -1)
		wantErr(t, "Run", err, green.ErrLoopInterval)
	}},
}

// new: 10,000 loops at 10 s for a virtual hour, at exact times. The race
// detector makes that a minute and more, so it gets fewer.
func TestManyLoops(t *testing.T) {
	const hour = 360
	loops := 10_000
	if raceDetector {
		loops = 300
	}
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var all []*loop
		runs := make([]int, loops)
		for i := range loops {
			all = append(all, startLoop(t, t.Context(), func(context.Context) error {
				if at := time.Since(begun); at != time.Duration(runs[i])*10*time.Second {
					return fmt.Errorf("run %d at %v", runs[i], at)
				}
				if runs[i]++; runs[i] == hour {
					return green.LoopDone("x")
				}
				return nil
			}, 10*time.Second))
		}
		for i, l := range all {
			v, err := l.Wait(t.Context())
			if v != "x" || err != nil || runs[i] != hour {
				t.Fatalf("loop %d: %q, %v after %d runs", i, v, err, runs[i])
			}
		}
	})
}
