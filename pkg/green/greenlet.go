package green

import (
	"container/list"
	"errors"
	"iter"
	"log/slog"
)

// A Hub is a family of greenlets: functions with stacks of their own that
// share one thread of control and hand it to each other by name. Exactly one
// of them runs, so what they share needs no lock. Main is whoever uses the hub
// from outside.
//
//	h := green.NewHub()
//	defer h.Close()
//
// A hub may be used from any goroutine, by one at a time. Greenlets that are
// suspended are not collected: Close releases them.
type Hub struct {
	main    *Greenlet
	current *Greenlet
	closed  bool

	target  *Greenlet // to whom control goes next
	parcel  parcel    // what it finds there
	started list.List // of *Greenlet, begun and not dead, oldest first
}

// parcel is what a switch or a throw carries.
type parcel struct {
	value any
	err   error
}

// A Greenlet is one function of a Hub.
//
//	unstarted ──Switch──► running ◄──Switch, Throw──► suspended
//	    │                    │ return, error, panic
//	    └──────Throw────────►▼
//	                       dead: control and outcome go to the parent
//
// Control that is meant for a dead greenlet goes to its nearest living
// ancestor; main never dies. A greenlet whose function returned ErrExit hands
// that to its parent as a value, any other error as an error, a panic as a
// *PanicError, which is also logged at once.
type Greenlet struct {
	hub    *Hub
	parent *Greenlet // nil for main
	run    func(self *Greenlet, v any) (any, error)

	dead  bool
	next  func() (struct{}, bool) // gives it control; nil while unstarted, and for main
	stop  func()
	yield func(struct{}) bool // gives control back to main's loop
	place *list.Element       // in hub.started
}

// NewHub gives a hub whose only greenlet is main. Close it.
func NewHub() *Hub {
	h := &Hub{}
	h.main = &Greenlet{hub: h}
	h.current = h.main
	return h
}

// Main is the greenlet that stands for the code outside.
func (h *Hub) Main() *Greenlet { return h.main }

// New makes a greenlet of run, whose parent is the one that calls New. It
// begins at the first Switch to it, whose value run gets as v. self is the new
// greenlet.
func (h *Hub) New(run func(self *Greenlet, v any) (any, error)) *Greenlet {
	return &Greenlet{hub: h, parent: h.current, run: run}
}

// Close unwinds every greenlet that is suspended: the Switch in which it waits
// gives ErrExit, its deferred calls run, and what it returns is dropped, except
// that errors other than ErrExit and ErrClosed are logged. From then on Switch
// and Throw give ErrClosed. Close is for main; called in a greenlet it takes
// effect when that one has ended.
func (h *Hub) Close() {
	h.closed = true
	if h.current == h.main {
		h.unwind()
	}
}

// Switch gives control to g, with v. It comes back when somebody switches or
// throws to the caller, or a child of the caller ends, with what that brought.
// The first Switch begins g. To itself it returns v.
func (g *Greenlet) Switch(v any) (any, error) { return g.hub.transfer(g, parcel{value: v}) }

// Throw gives control to g, where its pending Switch gives err (nil: ErrExit).
// A greenlet that has not begun never will; err goes to its parent as if it
// had ended with it.
func (g *Greenlet) Throw(err error) (any, error) {
	if err == nil {
		err = ErrExit
	}
	return g.hub.transfer(g, parcel{err: err})
}

// Parent gets control when g ends. Main has none.
func (g *Greenlet) Parent() *Greenlet { return g.parent }

// Dead tells whether g has ended, or never will begin.
func (g *Greenlet) Dead() bool { return g.dead }

// String tells the state of g, for logs and tests.
func (g *Greenlet) String() string {
	name := "greenlet"
	if g.parent == nil {
		name = "greenlet main"
	}
	switch {
	case g.dead:
		return name + " (dead)"
	case g == g.hub.current:
		return name + " (current)"
	case g.parent != nil && g.next == nil:
		return name + " (unstarted)"
	default:
		return name + " (suspended)"
	}
}

// transfer is Switch and Throw, as seen by whoever has control.
func (h *Hub) transfer(to *Greenlet, p parcel) (any, error) {
	if h.closed {
		return nil, ErrClosed
	}
	to, p = h.route(to, p)
	self := h.current
	if to == self {
		return p.value, p.err
	}
	h.target, h.parcel = to, p
	if self == h.main {
		h.drive()
		if h.closed {
			h.unwind()
			return nil, ErrClosed
		}
	} else if !self.yield(struct{}{}) {
		return nil, ErrExit // the hub is closing
	}
	p, h.parcel = h.parcel, parcel{}
	return p.value, p.err
}

// route finds the living greenlet that gets p, on the way from to upwards.
func (h *Hub) route(to *Greenlet, p parcel) (*Greenlet, parcel) {
	for to != h.main {
		if !to.dead && (to.next != nil || p.err == nil) {
			break
		}
		to.dead = true // if it had not begun, the throw ended it
		p, to = p.outcome(), to.parent
	}
	return to, p
}

// outcome is p as seen by the parent of the greenlet that ended with it.
func (p parcel) outcome() parcel {
	if errors.Is(p.err, ErrExit) {
		return parcel{value: p.err}
	}
	return p
}

// drive is main's loop: it gives control to one greenlet after another until
// it is main's own turn.
func (h *Hub) drive() {
	defer func() { h.current = h.main }()
	for h.target != h.main && !h.closed {
		g := h.target
		h.current = g
		if g.next == nil {
			g.next, g.stop = iter.Pull(g.body)
			g.place = h.started.PushBack(g)
		}
		g.next()
	}
}

// body is the coroutine of g.
func (g *Greenlet) body(yield func(struct{}) bool) {
	h := g.hub
	defer func() { // on Goexit too, which goes on to whoever drives
		g.dead = true
		h.started.Remove(g.place)
	}()
	g.yield = yield
	var p parcel
	p, h.parcel = h.parcel, parcel{}
	end := g.call(p.value)
	if h.closed {
		if end.err != nil && !errors.Is(end.err, ErrExit) && !errors.Is(end.err, ErrClosed) {
			slog.Default().Error("greenlet failed while its hub closed", logFields(end.err)...)
		}
		return
	}
	g.dead = true
	h.target, h.parcel = h.route(g.parent, end.outcome())
}

// call runs the function of g behind a barrier.
func (g *Greenlet) call(v any) (end parcel) {
	returned := false
	defer func() {
		if returned {
			return
		}
		if r := recover(); r != nil {
			end = parcel{err: newPanicError(r)}
			slog.Default().Error("captured a panic in a greenlet", logFields(end.err)...)
		}
	}()
	v, err := g.run(g, v)
	returned = true
	return parcel{value: v, err: err}
}

// unwind ends what is suspended, on behalf of Close.
func (h *Hub) unwind() {
	for e := h.started.Front(); e != nil; e = h.started.Front() {
		g, _ := e.Value.(*Greenlet)
		g.stop()
	}
}
