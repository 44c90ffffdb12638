package green

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A Thread is one function that runs, or will run, on its own goroutine, and
// its one outcome: a value or an error. Any number of waiters may ask for it,
// any number of times, from anywhere.
//
//	Spawn ──► pending ──begin──► running ──return──► settled ──links ran──► done
//	              │                  │ panic, Goexit      ▲
//	              └──Kill, Cancel, the parent's end───────┘
//
// The outcome, in this order:
//   - it never began: the cause of Kill or Cancel, or of its parent's end;
//   - it panicked: a *PanicError; it left by runtime.Goexit: ErrGoexit;
//   - it was killed and returned that cause, or context.Canceled: the cause;
//   - else what it returned. A killed thread may go on and return a value.
//
// The error is not logged: the handle carries it. A panic is.
type Thread[T any] struct {
	core

	fn    func(context.Context) (T, error)
	value T
}

type threadState = uint32

const (
	statePending threadState = iota // the function has not begun
	stateRunning                    // the function runs
	stateSettled                    // the outcome is fixed, links run
	stateDone                       // Done is closed
)

// core is what a thread is without its value's type.
type core struct {
	ctx   threadContext
	state atomic.Uint32
	err   error // written before stateSettled, read after

	mu     sync.Mutex // guards what follows, and changes of state
	done   chan struct{}
	links  []*link
	killed error    // the cause of a Kill while running
	linker int64    // the goroutine that runs the links
	delay  *delayed // of a SpawnAfter that has not begun
}

type link struct{ run func() }

// delayed is what a pending SpawnAfter holds on to.
type delayed struct {
	timer  *time.Timer
	detach func() bool // from the parent's end; nil if that never comes
}

// Wait gives the outcome, once there is one and all links that were
// registered before the end have run. If ctx ends first the error is
// ErrWaitGivenUp with the cause of ctx; the thread goes on. Inside a link it
// returns at once. A thread that waits for itself waits until ctx ends.
func (t *Thread[T]) Wait(ctx context.Context) (T, error) {
	if t.state.Load() == stateDone || t.insideLink() {
		return t.value, t.err
	}
	select {
	case <-t.Done():
	case <-ctx.Done():
		if t.state.Load() != stateDone {
			var zero T
			return zero, givenUp(ctx)
		}
	}
	return t.value, t.err
}

// Done is closed when the thread has ended and its links have run.
func (t *Thread[T]) Done() <-chan struct{} { return t.doneChannel() }

// Link has fn called with the thread when it has ended, after earlier links,
// on the thread's goroutine and before any waiter goes on; Wait inside fn
// gives the outcome at once. A panic in fn is reported, and the other links
// run. After the end fn runs at once, in the caller, and panics there.
// unlink takes fn back; it is true once, if fn had not been called.
func (t *Thread[T]) Link(fn func(*Thread[T])) (unlink func() bool) {
	l := &link{run: func() { fn(t) }}
	if !t.addLink(l) {
		fn(t)
	}
	return func() bool { return t.dropLink(l) }
}

// Kill asks the thread to end, with cause (nil: ErrKilled), and is true if it
// had not ended. A thread that has not begun never will, and is done with its
// links when Kill returns. The context of one that runs ends with cause; when
// it stops, and whether it does, is up to its function. Wait tells.
func (t *Thread[T]) Kill(cause error) bool { return t.kill(cause, true) }

// Cancel is Kill for a thread that has not begun. It is true if the thread
// will never begin because of this call.
func (t *Thread[T]) Cancel(cause error) bool { return t.kill(cause, false) }

// run is the whole life of the thread's goroutine.
func (t *Thread[T]) run() {
	if !t.begin() {
		return
	}
	returned := false
	defer func() {
		if !returned {
			t.err = abnormal(&t.ctx, recover())
		}
		t.end()
	}()
	t.value, t.err = t.fn(&t.ctx)
	returned = true
}

// begin moves the thread from pending to running.
func (c *core) begin() bool {
	c.mu.Lock()
	ok := c.state.Load() == statePending
	var d *delayed
	if ok {
		c.state.Store(stateRunning)
		d, c.delay = c.delay, nil
	}
	c.mu.Unlock()
	d.release()
	return ok
}

// end settles a thread that ran.
func (c *core) end() {
	c.mu.Lock()
	if c.killed != nil && (errors.Is(c.err, context.Canceled) || errors.Is(c.err, c.killed)) {
		if _, panicked := errors.AsType[*PanicError](c.err); !panicked {
			c.err = c.killed
		}
	}
	c.state.Store(stateSettled)
	c.mu.Unlock()
	c.finish(nil)
}

func (c *core) kill(cause error, alsoRunning bool) bool {
	if cause == nil {
		cause = ErrKilled
	}
	c.mu.Lock()
	switch c.state.Load() {
	case statePending:
		c.err = cause
		c.state.Store(stateSettled)
		d := c.delay
		c.delay = nil
		c.mu.Unlock()
		d.release()
		c.finish(cause)
		return true
	case stateRunning:
		if alsoRunning && c.killed == nil {
			c.killed = cause
		}
	default:
		alsoRunning = false
	}
	c.mu.Unlock()
	if alsoRunning {
		c.ctx.end(cause)
	}
	return alsoRunning
}

// finish brings a settled thread to its end: context, slot, links, Done. The
// order is a promise: a link finds the slot free, and whoever waited finds
// the links run.
func (c *core) finish(cause error) {
	c.ctx.end(cause)
	if c.ctx.pool != nil {
		c.ctx.pool.release()
	}
	c.runLinks()
}

func (c *core) runLinks() {
	for l := c.nextLink(); l != nil; l = c.nextLink() {
		c.runLink(l)
	}
	if c.ctx.pool != nil {
		c.ctx.pool.finished()
	}
}

// nextLink takes the oldest link; with none left it makes the thread done.
func (c *core) nextLink() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.links) == 0 {
		c.links, c.linker = nil, 0
		c.state.Store(stateDone)
		if c.done != nil {
			close(c.done)
		}
		return nil
	}
	l := c.links[0]
	c.links = c.links[1:]
	if c.linker == 0 {
		c.linker = goroutineID()
	}
	return l
}

// runLink keeps a link that fails from the links after it. One that leaves by
// Goexit takes its goroutine along, so the rest is done on the way out.
func (c *core) runLink(l *link) {
	returned := false
	defer func() {
		if returned {
			return
		}
		if err := abnormal(&c.ctx, recover()); errors.Is(err, ErrGoexit) {
			report(&c.ctx, "a link left by Goexit", err)
			c.runLinks()
		}
	}()
	l.run()
	returned = true
}

func (c *core) addLink(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Load() == stateDone {
		return false
	}
	c.links = append(c.links, l)
	return true
}

func (c *core) dropLink(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, have := range c.links {
		if have == l {
			c.links = append(c.links[:i:i], c.links[i+1:]...)
			return true
		}
	}
	return false
}

// insideLink tells whether the caller is a link of this very thread.
func (c *core) insideLink() bool {
	if c.state.Load() != stateSettled {
		return false
	}
	c.mu.Lock()
	linker := c.linker
	c.mu.Unlock()
	return linker != 0 && linker == goroutineID()
}

func (c *core) doneChannel() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.state.Load() == stateDone {
			close(c.done)
		}
	}
	return c.done
}

func (d *delayed) release() {
	if d == nil {
		return
	}
	d.timer.Stop()
	if d.detach != nil {
		d.detach()
	}
}

// goroutineID reads the number of the calling goroutine from the head of its
// stack trace, "goroutine 7 [running]:". It costs about a microsecond, is
// asked for only where links run, and serves one question: does the link that
// asks for the outcome run on the goroutine that owes it?
func goroutineID() int64 {
	var buf [32]byte
	var id int64
	for _, b := range buf[len("goroutine "):runtime.Stack(buf[:], false)] {
		if b < '0' || b > '9' {
			break
		}
		id = id*10 + int64(b-'0')
	}
	return id
}
