package green

import (
	"context"
	"errors"
	"runtime"
	"slices"
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

// core is what a thread is without its value's type. A million of them may be
// parked, so it is kept small: what few threads need is behind a pointer, and
// the thread's context is the same memory under another type.
type core struct {
	parent context.Context             //nolint:containedctx // of the thread's own context
	pool   *Pool                       // whose task this is; nil outside a pool
	live   atomic.Pointer[liveContext] // of threadContext

	mu     sync.Mutex    // guards changes of state, and what follows
	state  atomic.Uint32 // threadState
	ended  bool          // the context has ended with the thread
	killed bool          // by Kill while running; the context has the cause
	err    error         // of the outcome; read without mu from stateSettled on
	done   chan struct{} // nil until somebody waits
	extra  *extra        // nil for most
}

// extra is what a thread has while it is delayed or has links.
type extra struct {
	timer  *time.Timer // of a SpawnAfter that has not begun, else nil
	detach func() bool // from the parent's end; nil if that never comes
	links  *links
}

type links struct {
	waiting []*link
	linker  int64 // the goroutine that runs them; 0 before the end
}

type link struct{ run func() }

func (c *core) context() *threadContext { return (*threadContext)(c) }

// Wait gives the outcome, once there is one and all links that were
// registered before the end have run. If ctx ends first the error is
// ErrWaitGivenUp with the cause of ctx; the thread goes on. Inside a link it
// returns at once. A thread that waits for itself waits until ctx ends.
func (t *Thread[T]) Wait(ctx context.Context) (T, error) {
	if t.state.Load() == stateDone || t.insideLink() {
		return t.value, t.err
	}
	if !await(t.Done(), ctx.Done()) && t.state.Load() != stateDone {
		var zero T
		return zero, givenUp(ctx)
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
	if !t.state.CompareAndSwap(statePending, stateRunning) {
		return // killed before it began
	}
	returned := false
	defer func() {
		if !returned {
			t.err = abnormal(t.context(), recover())
		}
		t.end()
	}()
	fn := t.fn
	t.fn = nil // what it holds goes when it is done with it, though the thread goes on
	t.value, t.err = fn(t.context())
	returned = true
}

// runDelayed is run for the timer of a SpawnAfter.
func (t *Thread[T]) runDelayed() {
	t.mu.Lock()
	t.undelayLocked()
	t.mu.Unlock()
	t.run()
}

// end settles a thread that ran, and makes it done if nothing is left to do.
func (c *core) end() {
	c.mu.Lock()
	c.judgeLocked()
	if c.extra != nil || c.live.Load() != nil {
		c.state.Store(stateSettled)
		c.mu.Unlock()
		c.finish()
		return
	}
	c.ended = true
	if c.pool != nil {
		c.pool.release()
	}
	c.doneLocked()
	c.mu.Unlock()
	if c.pool != nil {
		c.pool.finished()
	}
}

// judgeLocked gives a thread that stopped because of a Kill its cause.
func (c *core) judgeLocked() {
	if !c.killed {
		return
	}
	cause := context.Cause(c.live.Load())
	_, panicked := errors.AsType[*PanicError](c.err)
	if !panicked && (errors.Is(c.err, context.Canceled) || errors.Is(c.err, cause)) {
		c.err = cause
	}
}

func (c *core) kill(cause error, alsoRunning bool) bool {
	if cause == nil {
		cause = ErrKilled
	}
	if c.killPending(cause) {
		return true
	}
	if !alsoRunning || c.state.Load() != stateRunning {
		return false
	}
	l := c.context().open()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Load() != stateRunning {
		return false
	}
	c.killed = true
	l.cancel(cause) // runs no foreign code
	return true
}

// killPending ends a thread that has not begun.
func (c *core) killPending(cause error) bool {
	c.mu.Lock()
	if !c.state.CompareAndSwap(statePending, stateSettled) {
		c.mu.Unlock()
		return false
	}
	c.err = cause
	c.undelayLocked()
	c.mu.Unlock()
	c.finish()
	return true
}

// undelayLocked lets go of the timer of a SpawnAfter.
func (c *core) undelayLocked() {
	if c.extra == nil || c.extra.timer == nil {
		return
	}
	c.extra.timer.Stop()
	if c.extra.detach != nil {
		c.extra.detach()
	}
	c.extra.timer, c.extra.detach = nil, nil
	if c.extra.links == nil {
		c.extra = nil
	}
}

// finish brings a settled thread to its end: context, slot, links, Done. The
// order is a promise: a link finds the slot free, and whoever waited finds
// the links run.
func (c *core) finish() {
	c.context().end()
	if c.pool != nil {
		c.pool.release()
	}
	c.runLinks()
}

func (c *core) runLinks() {
	for l := c.nextLink(); l != nil; l = c.nextLink() {
		c.runLink(l)
	}
	if c.pool != nil {
		c.pool.finished()
	}
}

// nextLink takes the oldest link; with none left it makes the thread done.
func (c *core) nextLink() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.extra == nil || len(c.extra.links.waiting) == 0 {
		c.doneLocked()
		return nil
	}
	ls := c.extra.links
	if ls.linker == 0 {
		ls.linker = goroutineID()
	}
	l := ls.waiting[0]
	ls.waiting = ls.waiting[1:]
	return l
}

func (c *core) doneLocked() {
	c.extra = nil
	c.state.Store(stateDone)
	if c.done != nil {
		close(c.done)
	}
}

// runLink keeps a link that fails from the links after it. One that leaves by
// Goexit takes its goroutine along, so the rest is done on the way out.
func (c *core) runLink(l *link) {
	returned := false
	defer func() {
		if returned {
			return
		}
		if err := abnormal(c.context(), recover()); errors.Is(err, ErrGoexit) {
			report(c.context(), "a link left by Goexit", err)
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
	if c.extra == nil {
		c.extra = &extra{}
	}
	if c.extra.links == nil {
		c.extra.links = &links{}
	}
	c.extra.links.waiting = append(c.extra.links.waiting, l)
	return true
}

func (c *core) dropLink(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.extra == nil || c.extra.links == nil {
		return false
	}
	ls := c.extra.links
	i := slices.Index(ls.waiting, l)
	if i < 0 {
		return false
	}
	ls.waiting = slices.Delete(ls.waiting, i, i+1)
	return true
}

// insideLink tells whether the caller is a link of this very thread.
func (c *core) insideLink() bool {
	if c.state.Load() != stateSettled {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.extra == nil || c.extra.links == nil {
		return false
	}
	linker := c.extra.links.linker
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
