package green

import (
	"context"
	"errors"
	"fmt"
)

// What this package refuses or reports; each is found with errors.Is.
var (
	// ErrKilled is the cause of a Kill or Cancel that names none.
	ErrKilled = errors.New("green: thread was killed")
	// ErrExit ends a thread or greenlet quietly: it is not logged, and a
	// greenlet that ends with it hands it to its parent as a value
	// (eventlet's GreenletExit).
	ErrExit = errors.New("green: exit")
	// ErrGoexit is the outcome of a function that left by runtime.Goexit.
	ErrGoexit = errors.New("green: function left by runtime.Goexit; return instead")
	// ErrWaitGivenUp marks an error of a wait whose own context ended first,
	// so that it is not mistaken for the outcome that was waited for.
	ErrWaitGivenUp = errors.New("green: wait given up")

	// ErrAlreadySent refuses a second Send; the first outcome stays. Reset first.
	ErrAlreadySent = errors.New("green: event was already sent; reset it first")
	// ErrNotSent refuses to reset an event that nobody sent.
	ErrNotSent = errors.New("green: event was not sent, there is nothing to reset")
	// ErrNilError refuses SendError(nil); use Send for success.
	ErrNilError = errors.New("green: SendError needs an error; use Send for success")

	// ErrInsidePool refuses WaitAll from one of the pool's own tasks, which
	// would wait for itself.
	ErrInsidePool = errors.New("green: a task cannot wait for all of its own pool")

	// ErrLoopRunning refuses to start a loop that has not ended yet; Stop and
	// Wait first.
	ErrLoopRunning = errors.New("green: loop is still running; stop it and wait first")
	// ErrLoopNotBegun refuses to wait for a loop that was never started.
	ErrLoopNotBegun = errors.New("green: loop was never started")
	// ErrLoopTimeout ends a loop that ran longer than its LoopTimeout.
	ErrLoopTimeout = errors.New("green: loop ran out of time")
	// ErrLoopDoneType ends a loop whose LoopDone value is not of its type.
	ErrLoopDoneType = errors.New("green: LoopDone value is not of the loop's type")
	// ErrLoopInterval refuses a negative interval or initial delay.
	ErrLoopInterval = errors.New("green: intervals of a loop cannot be negative")
	// ErrLoopPaced refuses WakeOn together with PacedBy; use Wake.
	ErrLoopPaced = errors.New("green: a loop that a metronome paces listens to no channel; use Wake instead of WakeOn")
	// ErrLoopOverrun reports a beat that took longer than the interval, from
	// 5 ms up. It goes to the logger only; the loop goes on.
	ErrLoopOverrun = errors.New("green: loop's function took longer than its interval")

	// ErrClosed is what a closed hub answers.
	ErrClosed = errors.New("green: hub is closed")
)

// PanicError is a panic that was captured and carried as an error.
type PanicError struct {
	// Value is what was given to panic.
	Value any
	// Stack is the stack of the goroutine at the panic, as runtime/debug
	// formats it.
	Stack []byte
}

// Error names the panic's value; the stack is kept apart.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap gives the panic's value if that was an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// givenUp is the error of a wait that ctx ended. It is not inlined, to keep the
// frames of those who wait small (see await).
//
//go:noinline
func givenUp(ctx context.Context) error {
	return fmt.Errorf("%w: %w", ErrWaitGivenUp, context.Cause(ctx))
}

// endedBy tells whether err is only ctx's own end, handed back.
func endedBy(ctx context.Context, err error) bool {
	if ctx.Err() == nil {
		return false
	}
	return errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))
}
