package green_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/pkg/green"
)

var errAway = errors.New("hypervisor is away")

func ExampleSpawn() {
	ctx := context.Background()
	t := green.Spawn(ctx, func(context.Context) (int, error) { return 6 * 7, nil })
	v, err := t.Wait(ctx)
	fmt.Println(v, err)
	// Output: 42 <nil>
}

// A thread that nobody waits for reports its error through the context.
func ExampleSpawnN() {
	reported := make(chan string, 1)
	ctx := green.WithLogger(context.Background(), func(_ context.Context, msg string, err error) {
		reported <- msg + ": " + err.Error()
	})
	green.SpawnN(ctx, func(context.Context) error { return errAway })
	fmt.Println(<-reported)
	// Output: spawned function failed: hypervisor is away
}

// A pending SpawnAfter is a timer; Cancel takes it back.
func ExampleSpawnAfter() {
	ctx := context.Background()
	soon := green.SpawnAfter(ctx, time.Millisecond, func(context.Context) (string, error) { return "ran", nil })
	late := green.SpawnAfter(ctx, time.Hour, func(context.Context) (string, error) { return "never", nil })
	fmt.Println(late.Cancel(nil))
	fmt.Println(soon.Wait(ctx))
	_, err := late.Wait(ctx)
	fmt.Println(errors.Is(err, green.ErrKilled))
	// Output:
	// true
	// ran <nil>
	// true
}

func ExampleSleep() {
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Millisecond, errAway)
	defer cancel()
	fmt.Println(green.Sleep(ctx, 0)) // only lets others run
	fmt.Println(green.Sleep(ctx, time.Hour))
	// Output:
	// <nil>
	// hypervisor is away
}

// A Wait that its own context ends is told apart from the thread's error.
func ExampleThread_Wait() {
	ctx := context.Background()
	t := green.Spawn(ctx, func(ctx context.Context) (int, error) { return 1, green.Sleep(ctx, time.Hour) })
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	_, err := t.Wait(short)
	fmt.Println(errors.Is(err, green.ErrWaitGivenUp), errors.Is(err, context.DeadlineExceeded))
	t.Kill(green.ErrExit)
	_, err = t.Wait(ctx)
	fmt.Println(err)
	// Output:
	// true true
	// green: exit
}

func ExampleThread_Done() {
	t := green.Spawn(context.Background(), func(context.Context) (int, error) { return 1, nil })
	select {
	case <-t.Done():
		fmt.Println("ended")
	case <-time.After(time.Minute):
		fmt.Println("still at it")
	}
	// Output: ended
}

func ExampleThread_Link() {
	ctx := context.Background()
	t := green.SpawnAfter(ctx, time.Millisecond, func(context.Context) (int, error) { return 5, nil })
	unlink := t.Link(func(*green.Thread[int]) { fmt.Println("taken back") })
	t.Link(func(t *green.Thread[int]) {
		v, err := t.Wait(ctx) // at once, for the outcome is there
		fmt.Println("link:", v, err)
	})
	fmt.Println(unlink())
	_, _ = t.Wait(ctx) // comes after the links
	// Output:
	// true
	// link: 5 <nil>
}

// Kill asks; the function decides when it stops, and Wait tells how it ended.
func ExampleThread_Kill() {
	ctx := context.Background()
	t := green.Spawn(ctx, func(ctx context.Context) (string, error) {
		<-ctx.Done()
		return "", context.Cause(ctx)
	})
	fmt.Println(t.Kill(errAway))
	_, err := t.Wait(ctx)
	fmt.Println(err)
	fmt.Println(t.Kill(nil))
	// Output:
	// true
	// hypervisor is away
	// false
}

// A panic becomes an error, and is reported with its stack at once.
func ExamplePanicError() {
	ctx := green.WithLogger(context.Background(), func(_ context.Context, msg string, err error) {
		fmt.Println(msg+":", err)
	})
	t := green.Spawn(ctx, func(context.Context) (int, error) { panic(errAway) })
	_, err := t.Wait(ctx)
	var p *green.PanicError
	fmt.Println(errors.As(err, &p), len(p.Stack) > 0, errors.Is(p.Unwrap(), errAway))
	// Output:
	// captured a panic: panic: hypervisor is away
	// true true true
}

func ExampleEvent() {
	ctx := context.Background()
	var e green.Event[string]
	fmt.Println(e.Ready(), e.Reset())
	green.SpawnN(ctx, func(context.Context) error { return e.Send("plugged") })
	fmt.Println(e.Wait(ctx))
	fmt.Println(e.Send("again"))
	fmt.Println(e.Reset(), e.Ready())
	// Output:
	// false green: event was not sent, there is nothing to reset
	// plugged <nil>
	// green: event was already sent; reset it first
	// <nil> false
}

func ExampleEvent_SendError() {
	var e green.Event[string]
	fmt.Println(e.SendError(nil))
	fmt.Println(e.SendError(errAway))
	<-e.Done()
	_, err := e.Wait(context.Background())
	fmt.Println(err)
	// Output:
	// green: SendError needs an error; use Send for success
	// <nil>
	// hypervisor is away
}

func ExamplePool() {
	ctx := context.Background()
	p := green.NewPool(2)
	var hold green.Event[int]
	for range 2 {
		_ = p.SpawnN(ctx, func(ctx context.Context) error { _, err := hold.Wait(ctx); return err })
	}
	fmt.Println("size", p.Size(), "running", p.Running(), "free", p.Free(), "waiting", p.Waiting())
	p.Resize(3)
	fmt.Println("size", p.Size(), "running", p.Running(), "free", p.Free())
	_ = hold.Send(1)
	fmt.Println(p.WaitAll(ctx), "running", p.Running())
	// Output:
	// size 2 running 2 free 0 waiting 0
	// size 3 running 2 free 1
	// <nil> running 0
}

// A task may spawn on its own pool: where no slot is free the spawn runs
// inline, and a wait for all, which would never end, is refused.
func ExamplePoolSpawn() {
	ctx := context.Background()
	p := green.NewPool(1)
	t, _ := green.PoolSpawn(ctx, p, func(ctx context.Context) (int, error) {
		fmt.Println(errors.Is(p.WaitAll(ctx), green.ErrInsidePool))
		inner, err := green.PoolSpawn(ctx, p, func(context.Context) (int, error) { return 7, nil })
		if err != nil {
			return 0, err
		}
		return inner.Wait(ctx)
	})
	fmt.Println(t.Wait(ctx))
	// Output:
	// true
	// 7 <nil>
}

func ExampleFixedIntervalLoopingCall() {
	ctx := context.Background()
	beats := 0
	l := green.NewFixedIntervalLoopingCall[string](func(context.Context) error {
		if beats++; beats == 3 {
			return green.LoopDone("three beats")
		}
		return errAway
	})
	_, err := l.Wait(ctx)
	fmt.Println(errors.Is(err, green.ErrLoopNotBegun))
	quiet := green.WithLogger(ctx, func(context.Context, string, error) {})
	_ = l.Start(quiet, time.Millisecond, green.ContinueOnError(), green.InitialDelay(time.Millisecond))
	fmt.Println(errors.Is(l.Start(quiet, time.Millisecond), green.ErrLoopRunning))
	fmt.Println(l.Wait(ctx))
	// Output:
	// true
	// true
	// three beats <nil>
}

// Stop ends a loop without a value; its time may be limited too.
func ExampleFixedIntervalLoopingCall_Stop() {
	ctx := context.Background()
	l := green.NewFixedIntervalLoopingCall[int](func(context.Context) error { return nil })
	_ = l.Start(ctx, time.Hour)
	l.Stop()
	fmt.Println(l.Wait(ctx))
	_ = l.Start(ctx, time.Millisecond, green.LoopTimeout(time.Nanosecond))
	_, err := l.Wait(ctx)
	fmt.Println(errors.Is(err, green.ErrLoopTimeout))
	fmt.Println(errors.Is(l.Start(ctx, -1), green.ErrLoopInterval))
	// Output:
	// 0 <nil>
	// true
	// true
}

// The monitor of a migration looks every half second, and at once when the
// worker is finished.
func ExampleWakeOn() {
	ctx := context.Background()
	var finish green.Event[string]
	monitor := green.NewFixedIntervalLoopingCall[string](func(ctx context.Context) error {
		if !finish.Ready() {
			return nil
		}
		v, err := finish.Wait(ctx)
		if err != nil {
			return err
		}
		return green.LoopDone(v)
	})
	var options []green.LoopOption
	options = append(options, green.WakeOn(finish.Done()))
	_ = monitor.Start(ctx, time.Hour, options...)
	_ = finish.Send("migrated")
	fmt.Println(monitor.Wait(ctx))
	// Output: migrated <nil>
}

// What has changed is looked at now, not at the next beat.
func ExampleFixedIntervalLoopingCall_Wake() {
	ctx := context.Background()
	looks := make(chan int)
	l := green.NewFixedIntervalLoopingCall[int](func(context.Context) error { looks <- 1; return nil })
	_ = l.Start(ctx, time.Hour)
	fmt.Println(<-looks)
	l.Wake()
	fmt.Println(<-looks)
	l.Stop()
	fmt.Println(l.Wait(ctx))
	// Output:
	// 1
	// 1
	// 0 <nil>
}

// A thousand guests are looked at twice a second, by one goroutine as long as no look
// blocks.
func ExampleMetronome() {
	ctx := context.Background()
	metronome := green.NewMetronome()
	var looks atomic.Int64
	var guests []*green.FixedIntervalLoopingCall[int]
	for range 1000 {
		l := green.NewFixedIntervalLoopingCall[int](func(context.Context) error {
			looks.Add(1)
			return green.LoopDone(1)
		})
		_ = l.Start(ctx, 500*time.Millisecond, green.PacedBy(metronome))
		guests = append(guests, l)
	}
	for _, l := range guests {
		_, _ = l.Wait(ctx)
	}
	fmt.Println(looks.Load())
	err := guests[0].Start(ctx, time.Hour, green.PacedBy(metronome), green.WakeOn(make(chan struct{})))
	fmt.Println(errors.Is(err, green.ErrLoopPaced))
	// Output:
	// 1000
	// true
}

// The value of LoopDone must be of the loop's type.
func ExampleLoopDone() {
	ctx := context.Background()
	l := green.NewFixedIntervalLoopingCall[int](func(context.Context) error { return green.LoopDone("text") })
	_ = l.Start(ctx, time.Second)
	_, err := l.Wait(ctx)
	fmt.Println(errors.Is(err, green.ErrLoopDoneType))
	// Output: true
}

// What the logger is told of a late beat.
func ExampleWithLogger() {
	late := make(chan bool, 1)
	var log green.Logger = func(_ context.Context, _ string, err error) {
		late <- errors.Is(err, green.ErrLoopOverrun)
	}
	ctx := green.WithLogger(context.Background(), log)
	l := green.NewFixedIntervalLoopingCall[int](func(ctx context.Context) error { return green.Sleep(ctx, 20*time.Millisecond) })
	_ = l.Start(ctx, time.Millisecond)
	fmt.Println(<-late)
	l.Stop()
	_, _ = l.Wait(ctx)
	// Output: true
}

func ExampleRetryCall() {
	ctx := context.Background()
	tries := 0
	v, err := green.RetryCall(ctx, green.Retry{
		Max:       5,
		First:     time.Millisecond,
		Limit:     3 * time.Millisecond,
		Jitter:    0.1,
		Retryable: func(err error) bool { return errors.Is(err, errAway) },
		OnRetry:   func(try int, err error, _ time.Duration) { fmt.Println("retry", try, "after:", err) },
	}, func(context.Context) (string, error) {
		if tries++; tries < 3 {
			return "", errAway
		}
		return "plugged", nil
	})
	fmt.Println(v, err)
	// Output:
	// retry 1 after: hypervisor is away
	// retry 2 after: hypervisor is away
	// plugged <nil>
}

// Newer values overtake older ones, lower priorities come first.
func ExampleKeyedQueue() {
	ctx, stop := context.WithCancel(context.Background())
	var q green.KeyedQueue[string, string]
	q.Add("router-1", 2, "full sync")
	q.Add("router-2", 2, "full sync")
	q.Add("router-2", 1, "updated by a message")
	err := q.Run(ctx, 1, func(_ context.Context, router, what string) error {
		fmt.Println(router, what)
		if router == "router-1" {
			stop()
		}
		return nil
	})
	fmt.Println(err)
	// Output:
	// router-2 updated by a message
	// router-1 full sync
	// context canceled
}

// What is only worth doing when nothing better waits.
func ExampleKeyedQueue_Offer() {
	ctx, stop := context.WithCancel(context.Background())
	var looks green.KeyedQueue[string, string]
	looks.Add("a1b2", 0, "it crashed")
	looks.Offer("a1b2", 0, "just a look")
	_ = looks.Run(ctx, 1, func(_ context.Context, instance, why string) error {
		fmt.Println(instance, why)
		stop()
		return nil
	})
	// Output:
	// a1b2 it crashed
}

// A lane per instance: one goroutine for each key that has work.
func ExampleKeyedQueue_Run() {
	ctx, stop := context.WithCancel(context.Background())
	tasks := map[string][]string{"a1b2": {"stop", "start"}} // the journal is the queue
	var lanes green.KeyedQueue[string, struct{}]
	lanes.Add("a1b2", 0, struct{}{})
	_ = lanes.Run(ctx, 0, func(_ context.Context, instance string, _ struct{}) error {
		for _, task := range tasks[instance] {
			fmt.Println(instance, task)
		}
		stop()
		return nil
	})
	// Output:
	// a1b2 stop
	// a1b2 start
}

// A crew's goroutines stay for the next request.
func ExampleCrew() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel() // the goroutines that wait end
	crew := green.NewCrew(ctx, 8)
	answered := make(chan string)
	for _, name := range []string{"a", "b"} {
		crew.SpawnN(ctx, func(context.Context) error { answered <- "hello " + name; return nil })
		fmt.Println(<-answered)
	}
	// Output:
	// hello a
	// hello b
}
