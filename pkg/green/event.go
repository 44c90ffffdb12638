package green

import (
	"context"
	"sync"
	"sync/atomic"
)

// An Event is sent once, with a value or an error, and wakes everybody who
// waits, now or later. The zero Event is ready to use.
//
//	unsent ──Send, SendError──► sent ──Reset──► unsent (the next generation)
//
// Who waits belongs to a generation: a Reset, even followed by another Send,
// doesn't take away the outcome of the Send that woke them.
type Event[T any] struct {
	mu  sync.Mutex                    // guards sending, and changes of gen
	gen atomic.Pointer[generation[T]] // nil until somebody sends or waits
}

type generation[T any] struct {
	done  chan struct{} // closed by the send; value and err are written before
	value T
	err   error
}

// Send wakes all waiters with v. On an event that was sent it gives
// ErrAlreadySent and the first outcome stays.
func (e *Event[T]) Send(v T) error { return e.send(v, nil) }

// SendError wakes all waiters with err, which must not be nil; else as Send.
func (e *Event[T]) SendError(err error) error {
	if err == nil {
		return ErrNilError
	}
	var zero T
	return e.send(zero, err)
}

// Wait gives what was sent, at once if it was sent already. If ctx ends first
// the error is ErrWaitGivenUp with the cause of ctx; if both are so, what was
// sent wins.
func (e *Event[T]) Wait(ctx context.Context) (T, error) {
	gen := e.generation()
	if !gen.sent() && !await(gen.done, ctx.Done()) && !gen.sent() {
		var zero T
		return zero, givenUp(ctx)
	}
	return gen.value, gen.err
}

// Ready tells whether the event was sent.
func (e *Event[T]) Ready() bool {
	gen := e.gen.Load()
	return gen != nil && gen.sent()
}

// Done is closed when the event is sent. After a Reset it is another channel.
func (e *Event[T]) Done() <-chan struct{} { return e.generation().done }

// Reset makes a sent event ready to be sent again. An unsent one gives
// ErrNotSent.
func (e *Event[T]) Reset() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if gen := e.gen.Load(); gen == nil || !gen.sent() {
		return ErrNotSent
	}
	e.gen.Store(nil)
	return nil
}

func (e *Event[T]) send(v T, err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	gen := e.generationLocked()
	if gen.sent() {
		return ErrAlreadySent
	}
	gen.value, gen.err = v, err
	close(gen.done)
	return nil
}

// generation is without the lock where it can be, for a crowd of waiters.
func (e *Event[T]) generation() *generation[T] {
	if gen := e.gen.Load(); gen != nil {
		return gen
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.generationLocked()
}

func (e *Event[T]) generationLocked() *generation[T] {
	gen := e.gen.Load()
	if gen == nil {
		gen = &generation[T]{done: make(chan struct{})}
		e.gen.Store(gen)
	}
	return gen
}

func (g *generation[T]) sent() bool {
	select {
	case <-g.done:
		return true
	default:
		return false
	}
}
