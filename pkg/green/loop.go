package green

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"
)

// reportOverrunFrom is the delay from which an overrun is reported;
// oslo.service's rounding to 10 ms had the same effect.
const reportOverrunFrom = 5 * time.Millisecond

// A FixedIntervalLoopingCall calls a function at a fixed interval, counted
// from start to start, until the function says that it is done (LoopDone),
// fails, panics, or is stopped. It never runs twice at once: a run that takes
// longer than the interval is reported, the next follows at once, and what was
// missed is not made up.
//
//	    ┌────────────Start (again)─────────────┐
//	    ▼                                      │
//	running ──LoopDone, error, panic, Stop, ──► ended
//	          LoopTimeout, the context's end
//
// T is the type of the value that LoopDone carries to Wait.
type FixedIntervalLoopingCall[T any] struct {
	fn func(context.Context) error

	mu      sync.Mutex
	running bool
	woken   bool        // by a Wake while it does not run
	last    *loopRun[T] // of the latest Start; nil before the first
}

// loopRun is one Start, until its end. It sleeps on its timer, or in its metronome's line:
// whoever cuts a sleep short says why in asked, and then ends it.
type loopRun[T any] struct {
	seat

	call    *FixedIntervalLoopingCall[T]
	ctx     context.Context //nolint:containedctx // the run lives exactly as long as its loop
	every   time.Duration
	options loopOptions
	begun   time.Time
	next    time.Time   // when it is to run
	timer   *time.Timer // nil: it has a metronome
	detach  func() bool // from the context

	done  chan struct{} // closed at the end, after value and err are written; nil until somebody waits; guarded by call.mu
	value T
	err   error
}

// What a sleep is cut short for.
const (
	askedStop uint32 = 1 << iota // it stays
	askedEnd                     // the context's; it stays
	askedWake                    // until the next run begins
)

type loopOptions struct {
	initialDelay time.Duration
	keepGoing    bool
	timeout      time.Duration
	wakes        []<-chan struct{}
	metronome    *Metronome
}

// A LoopOption changes how a looping call is started.
type LoopOption func(*loopOptions)

// InitialDelay waits d before the first run; without it the first run is at once.
func InitialDelay(d time.Duration) LoopOption {
	return func(o *loopOptions) { o.initialDelay = d }
}

// ContinueOnError reports an error or a panic of the function and goes on with
// the next run, instead of ending the loop. LoopDone still ends it.
func ContinueOnError() LoopOption { return func(o *loopOptions) { o.keepGoing = true } }

// LoopTimeout ends the loop with ErrLoopTimeout after the first run that ends
// more than d after Start. Neither a run nor a sleep is cut short. 0 is none.
func LoopTimeout(d time.Duration) LoopOption {
	return func(o *loopOptions) { o.timeout = d }
}

// WakeOn makes the next run begin at once when ch gives a value, and the
// interval counts from there. A closed ch gives one run and is then ignored.
// It may be given more than once, for several channels.
func WakeOn(ch <-chan struct{}) LoopOption {
	return func(o *loopOptions) { o.wakes = append(o.wakes, ch) }
}

// PacedBy has the runs carried out by a metronome's workers, beside those of other loops,
// instead of a goroutine of this one's own. It is for many loops whose runs are short; one
// that blocks holds up the others for a few milliseconds at most. It doesn't go together with
// WakeOn, for nobody could listen: Start gives ErrLoopPaced; use Wake.
func PacedBy(m *Metronome) LoopOption {
	return func(o *loopOptions) { o.metronome = m }
}

// loopDoneError is the error by which a looped function ends its loop.
type loopDoneError struct{ value any }

func (d *loopDoneError) Error() string { return fmt.Sprintf("green: loop is done with %v", d.value) }

// LoopDone is returned by a looped function to end its loop with v, which Wait
// gives. If v doesn't fit the loop's type, Wait gives ErrLoopDoneType.
func LoopDone[T any](v T) error { return &loopDoneError{value: v} }

// NewFixedIntervalLoopingCall makes a looping call of fn; Start starts it.
func NewFixedIntervalLoopingCall[T any](fn func(context.Context) error) *FixedIntervalLoopingCall[T] {
	return &FixedIntervalLoopingCall[T]{fn: fn}
}

// Start begins to call the function every interval, from now on. The function
// gets ctx itself; when ctx ends the loop ends with its cause. An interval of 0
// runs back to back and yields in between; a negative one gives
// ErrLoopInterval. While the loop runs, Start gives ErrLoopRunning; it may be
// started anew as soon as Wait has returned.
func (l *FixedIntervalLoopingCall[T]) Start(ctx context.Context, every time.Duration, opts ...LoopOption) error {
	run, err := l.begin(ctx, every, opts)
	if err == nil && !run.isPaced() {
		go run.loop()
	}
	return err
}

// Run is Start and Wait in one: the caller's own goroutine becomes the loop, where
// another one, with a stack of its own, would only be waited for. Stop ends it from
// elsewhere. A function that leaves by Goexit takes the caller along, unless a
// metronome's worker has called it.
func (l *FixedIntervalLoopingCall[T]) Run(ctx context.Context, every time.Duration, opts ...LoopOption) (T, error) {
	run, err := l.begin(ctx, every, opts)
	if err != nil {
		var zero T
		return zero, err
	}
	if run.isPaced() {
		<-run.done
	} else {
		run.loop()
	}
	return run.value, run.err
}

// begin marks the call as running. A metronome has its run from then on.
func (l *FixedIntervalLoopingCall[T]) begin(ctx context.Context, every time.Duration, opts []LoopOption) (*loopRun[T], error) {
	run := &loopRun[T]{call: l, ctx: ctx, every: every}
	for _, opt := range opts {
		opt(&run.options)
	}
	if err := run.options.check(every); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running {
		return nil, ErrLoopRunning
	}
	run.begin(l.woken)
	l.running, l.woken, l.last = true, false, run
	if run.isPaced() {
		run.done = make(chan struct{})
		run.options.metronome.join(run, run.next)
	}
	return run, nil
}

func (o *loopOptions) check(every time.Duration) error {
	switch {
	case every < 0 || o.initialDelay < 0:
		return fmt.Errorf("%w: every %v, initial delay %v", ErrLoopInterval, every, o.initialDelay)
	case o.metronome != nil && len(o.wakes) > 0:
		return ErrLoopPaced
	}
	return nil
}

// begin makes the run ready for its first turn.
func (r *loopRun[T]) begin(woken bool) {
	r.err = ErrGoexit // unless the function lets us say otherwise
	r.begun = time.Now()
	r.next = r.begun.Add(r.options.initialDelay)
	if woken {
		r.asked.Store(askedWake)
	}
	if !r.isPaced() {
		r.timer = time.NewTimer(r.every)
	}
	r.due = away
	r.detach = context.AfterFunc(r.ctx, func() { r.ask(askedEnd) })
}

func (r *loopRun[T]) isPaced() bool { return r.options.metronome != nil }

func (r *loopRun[T]) place() *seat { return &r.seat }

// Wake makes the next run begin at once, and the interval counts from there. While
// the loop does not run, or during its last run, it is kept for the next Start: no
// InitialDelay then.
func (l *FixedIntervalLoopingCall[T]) Wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.woken = !l.running; l.running {
		l.last.ask(askedWake) // under the lock: a run that ends now hands it on
	}
}

// Stop ends the loop: a sleep at once, a run in progress when it returns. Wait
// then gives the zero value and no error. Before Start and after the end it
// has no effect.
func (l *FixedIntervalLoopingCall[T]) Stop() {
	l.mu.Lock()
	run := l.last
	l.mu.Unlock()
	if run != nil {
		run.ask(askedStop)
	}
}

// ask cuts a sleep short, this one or the next.
func (r *loopRun[T]) ask(what uint32) {
	r.asked.Or(what)
	if r.isPaced() { // after the mark, which is looked at when the run takes its seat
		r.options.metronome.hurry(r)
		return
	}
	r.timer.Reset(0) // after the mark, which a loop that sets its timer looks at afterwards
}

// Wait waits for the end of the latest Start and gives the value of LoopDone,
// or the error that ended the loop. Before the first Start it gives
// ErrLoopNotBegun. If ctx ends first the error is ErrWaitGivenUp with the
// cause of ctx, and the loop goes on.
func (l *FixedIntervalLoopingCall[T]) Wait(ctx context.Context) (T, error) {
	var zero T
	run, done := l.latest()
	if run == nil {
		return zero, ErrLoopNotBegun
	}
	select {
	case <-done:
		return run.value, run.err
	case <-ctx.Done():
	}
	select {
	case <-done:
		return run.value, run.err
	default:
		return zero, givenUp(ctx)
	}
}

// latest gives the latest Start, nil before the first, and what is closed at its end.
func (l *FixedIntervalLoopingCall[T]) latest() (run *loopRun[T], done <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if run = l.last; run == nil {
		return nil, nil
	}
	if run.done == nil {
		run.done = make(chan struct{})
		if !l.running {
			close(run.done)
		}
	}
	return run, run.done
}

// ended lets go of who waits for the end, and makes room for another Start.
func (l *FixedIntervalLoopingCall[T]) ended(r *loopRun[T]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running, l.woken = false, r.asked.Load()&askedWake != 0
	if r.done != nil {
		close(r.done)
	}
}

// loop is the life of a loop that has a goroutine.
func (r *loopRun[T]) loop() {
	defer r.leave()
	for wakes := mergeWakes(r); r.pause(&wakes) && r.run(); {
	}
}

// turn is one run of a loop that has a metronome.
func (r *loopRun[T]) turn() (next time.Time, goes bool) {
	defer func() {
		if !goes {
			r.leave()
		}
	}()
	goes = !r.interrupted() && r.run()
	return r.next, goes
}

// leave is the end of a loop, also when its function left by Goexit.
func (r *loopRun[T]) leave() {
	if errors.Is(r.err, ErrGoexit) {
		report(r.ctx, "looping call's function did not return", r.err)
	}
	r.detach()
	if r.timer != nil {
		r.timer.Stop()
	}
	r.call.ended(r)
}

// run calls the function once; false: it was the last time.
func (r *loopRun[T]) run() bool {
	if r.asked.Load() != 0 {
		r.asked.And(^askedWake)
	}
	r.next = time.Now().Add(r.every)
	if err := guarded(r.ctx, r.call.fn); r.over(err) {
		return false
	}
	if late := time.Since(r.next); late >= reportOverrunFrom {
		report(r.ctx, "looping call is late", fmt.Errorf("%w of %v by %v", ErrLoopOverrun, r.every, late))
	}
	return true
}

// directWakes is how many channels a loop listens to by itself.
const directWakes = 2

// pause waits for the next run, or for a wake-up; false, with the outcome set, if the
// loop was stopped or its context ended.
func (r *loopRun[T]) pause(wakes *[directWakes]<-chan struct{}) bool {
	left := time.Until(r.next)
	if left <= 0 {
		if r.interrupted() {
			return false
		}
		_ = Sleep(r.ctx, 0) // yields; how the context is doing is asked next
	}
	for woken := false; left > 0 && !woken; left = time.Until(r.next) { // who asked for the last run may set the timer late
		r.timer.Reset(left)
		woken = r.asked.Load() != 0 || r.sleep(wakes) || r.asked.Load() != 0
	}
	return !r.interrupted()
}

// sleep waits for the timer, or a channel that wakes; then it is true.
func (r *loopRun[T]) sleep(wakes *[directWakes]<-chan struct{}) bool {
	if wakes[0] == nil && wakes[1] == nil {
		<-r.timer.C
		return false
	}
	select {
	case <-r.timer.C:
		return false
	case _, open := <-wakes[0]:
		if !open {
			wakes[0] = nil
		}
	case _, open := <-wakes[1]:
		if !open {
			wakes[1] = nil
		}
	}
	return true
}

// interrupted tells whether the loop is to end between two runs, and sets the
// outcome if so.
func (r *loopRun[T]) interrupted() bool {
	if r.asked.Load()&askedStop != 0 {
		r.err = nil
		return true
	}
	if r.ctx.Err() != nil {
		r.err = context.Cause(r.ctx)
		return true
	}
	return false
}

// over tells whether a run that gave err was the last, and sets the outcome.
func (r *loopRun[T]) over(err error) bool {
	if d, ok := errors.AsType[*loopDoneError](err); ok {
		r.value, r.err = loopValue[T](d)
		return true
	}
	switch {
	case err == nil:
	case endedBy(r.ctx, err):
		r.err = context.Cause(r.ctx)
		return true
	case errors.Is(err, ErrExit):
		r.err = err
		return true
	default:
		if _, panicked := errors.AsType[*PanicError](err); !panicked { // else reported already
			report(r.ctx, "looping call's function failed", err)
		}
		if !r.options.keepGoing {
			r.err = err
			return true
		}
	}
	if r.options.timeout > 0 && time.Since(r.begun) > r.options.timeout {
		r.err = fmt.Errorf("%w: limit %v", ErrLoopTimeout, r.options.timeout)
		return true
	}
	return false
}

func loopValue[T any](d *loopDoneError) (T, error) {
	v, ok := d.value.(T)
	if !ok && (d.value != nil || reflect.TypeFor[T]().Kind() != reflect.Interface) {
		return v, fmt.Errorf("%w: got %T, want %v", ErrLoopDoneType, d.value, reflect.TypeFor[T]())
	}
	return v, nil
}

// mergeWakes gives the channels that the loop listens to. More than it can listen to
// are forwarded one value at a time; their goroutines end with the loop.
func mergeWakes[T any](r *loopRun[T]) (direct [directWakes]<-chan struct{}) {
	wakes := r.options.wakes
	if len(wakes) <= directWakes {
		copy(direct[:], wakes)
		return direct
	}
	merged := make(chan struct{})
	direct[0], direct[1] = wakes[0], merged
	_, end := r.call.latest()
	for _, ch := range wakes[1:] {
		go forwardWakes(ch, merged, end)
	}
	return direct
}

func forwardWakes(from <-chan struct{}, to chan<- struct{}, end <-chan struct{}) {
	for open := true; open; {
		select {
		case _, open = <-from:
		case <-end:
			return
		}
		select {
		case to <- struct{}{}:
		case <-end:
			return
		}
	}
}
