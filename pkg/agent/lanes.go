package agent

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// errTakenOver ends a running task because a stronger one was asked for.
var errTakenOver = errors.New("another request took over")

/*
lanes gives each instance its turn: tasks of one instance run one after the
other in the order of the stream, tasks of different instances side by side.
The queue is green's; the journal holds what waits; this is its copy in memory.

A task's way through its lane:

	add ──▶ waiting ──(its gate is open)──▶ running ──▶ out
	           └── withdraw ──▶ out

What is added while the gate is shut waits until that gate opens, for casts that
belong before it may still come; what was added before goes on.

mu guards everything below it.
*/
type lanes struct {
	queue green.KeyedQueue[string, struct{}]

	mu    sync.Mutex
	gate  chan struct{} // closed when what waits for it may begin; nil: the gate is open
	by    map[string]*lane
	pins  map[string]chan struct{} // instances that are being rewired; closed when it is done
	total int
	freed chan struct{} // closed when total falls; nil while nobody waits for that
}

// lane is one instance that has tasks.
type lane struct {
	running *turn
	waiting []entry
	missed  *virt.Event // came while the running task held the instance
}

// entry is a task that waits for its turn.
type entry struct {
	task  Task
	op    Op
	args  any  // as decoded at admission; nil for a task of an earlier run
	begun bool // its begin was journaled when it was accepted
	gate  <-chan struct{}
}

// turn is the task that has the lane.
type turn struct {
	op        Op
	migration string // of OpMigrate
	overtaken bool   // what takes over from it waits already
	over      bool   // its end is in the journal: it holds the instance no more
	cancel    context.CancelCauseFunc

	// The handler's alone.
	task  *Task
	args  any  // see entry
	begun bool // see entry
}

func newLanes() *lanes { return &lanes{by: map[string]*lane{}, pins: map[string]chan struct{}{}} }

// pin keeps the tasks of an instance from beginning until it is released; false when
// one runs, or another pin is set.
func (l *lanes) pin(key string) (release func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.by[key]; l.pins[key] != nil || n != nil && n.holder() != nil {
		return nil, false
	}
	done := make(chan struct{})
	l.pins[key] = done
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.pins, key)
		close(done)
	}, true
}

// unpinned waits until an instance is not pinned.
func (l *lanes) unpinned(ctx context.Context, key string) error {
	l.mu.Lock()
	done := l.pins[key]
	l.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done: // it is not pinned again while its task has the lane
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// shut makes the tasks that are added from now on wait until the gate that it gives
// is released.
func (l *lanes) shut() (gate chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gate = make(chan struct{})
	return l.gate
}

// shutGate gives the gate that is shut, nil for none.
func (l *lanes) shutGate() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gate
}

// release lets the tasks of a gate begin; a second time it does nothing.
func (l *lanes) release(gate chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gate == gate {
		l.gate = nil
	}
	select {
	case <-gate:
	default:
		close(gate)
	}
}

// add puts a task into a lane. It goes on when kick is called.
func (l *lanes) add(key string, e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.by[key]
	if n == nil {
		n = &lane{}
		l.by[key] = n
	}
	e.gate = l.gate
	n.waiting = slices.Insert(n.waiting, n.place(e.task), e)
	l.total++
}

// kick has a lane carry out what was added to it.
func (l *lanes) kick(key string) { l.queue.Add(key, 0, struct{}{}) }

// place is where a task belongs among those that wait: a cast before the casts that
// the stream has after it, anything else last. A task that an earlier run of the
// agent has begun keeps its place at the head.
func (n *lane) place(t Task) int {
	if t.Sequence == 0 {
		return len(n.waiting)
	}
	for i, w := range n.waiting {
		if w.task.Sequence > t.Sequence && w.task.State == api.TaskAccepted {
			return i
		}
	}
	return len(n.waiting)
}

// run serves the lanes until ctx ends; each lane with work has a green thread.
// A lane whose handler gives false, because it left its task unfinished for the next
// start, goes no further: what is behind it must not come before it.
// missed is told what noteMissed kept of a lane, after the task that was in the way.
func (l *lanes) run(ctx context.Context, handle func(context.Context, *turn) bool, missed func(virt.Event)) error {
	return l.queue.Run(ctx, 0, func(ctx context.Context, key string, _ struct{}) error {
		for {
			tctx, t, gate := l.next(ctx, key)
			switch {
			case t != nil:
				if !l.serve(tctx, key, t, handle, missed) {
					return nil
				}
			case gate == nil || !opened(ctx, gate):
				return nil
			}
		}
	})
}

// serve hands one turn to the handler, and takes it back even from a panic.
func (l *lanes) serve(ctx context.Context, key string, t *turn, handle func(context.Context, *turn) bool, missed func(virt.Event)) bool {
	defer func() {
		if e := l.end(key); e != nil {
			missed(*e)
		}
	}()
	return handle(ctx, t)
}

// opened waits for a gate; false: ctx has ended first.
func opened(ctx context.Context, gate <-chan struct{}) bool {
	select {
	case <-gate:
		return true
	case <-ctx.Done():
		return false
	}
}

// next gives the lane to its first task, or tells which gate it waits for. Both
// nil: nothing waits, or ctx has ended.
func (l *lanes) next(ctx context.Context, key string) (context.Context, *turn, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.by[key]
	if n == nil || ctx.Err() != nil {
		return nil, nil, nil
	}
	if len(n.waiting) == 0 {
		delete(l.by, key)
		return nil, nil, nil
	}
	first := n.waiting[0]
	if first.gate != nil {
		select {
		case <-first.gate:
		default:
			return nil, nil, first.gate
		}
	}
	n.waiting[0] = entry{}
	if n.waiting = n.waiting[1:]; len(n.waiting) == 0 {
		n.waiting = nil // a task may run for long
	}
	n.running = first.turn()
	n.running.overtaken = slices.ContainsFunc(n.waiting, func(w entry) bool { return Admit(first.op, w.op) == TakeOver })
	tctx, cancel := context.WithCancelCause(named(ctx, n.running.task)) // outermost, for it is asked often whether it has ended
	n.running.cancel = cancel
	return tctx, n.running, nil
}

// turn is an entry whose turn has come. It keeps what a task that runs for long needs.
func (e *entry) turn() *turn {
	task := e.task
	return &turn{op: e.op, migration: task.Migration, task: &task, args: e.args, begun: e.begun}
}

func (l *lanes) end(key string) (missed *virt.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.by[key]
	n.running.cancel(nil)
	missed, n.running, n.missed = n.missed, nil, nil
	l.leaveLocked()
	return missed
}

func (l *lanes) leaveLocked() {
	l.total--
	if l.freed != nil {
		close(l.freed)
		l.freed = nil
	}
}

// over says that the running task has ended; its lane is free when its handler returns.
func (l *lanes) over(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.by[key]; n != nil && n.running != nil {
		n.running.over = true
	}
}

// holder is the running task, nil once it is over.
func (n *lane) holder() *turn {
	if n.running == nil || n.running.over {
		return nil
	}
	return n.running
}

// held tells what holds an instance: the running operation and the waiting ones.
func (l *lanes) held(key string) (running Op, waiting []Op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.by[key]
	if n == nil {
		return OpNone, nil
	}
	if t := n.holder(); t != nil {
		running = t.op
	}
	for _, w := range n.waiting {
		waiting = append(waiting, w.op)
	}
	return running, waiting
}

// takeOver ends the running task of an instance early for one that waits behind it and
// may do so. A task that has its turn meanwhile ends nothing: what it was to take over
// from has ended by itself. A migration is not ended here but named, to be aborted.
func (l *lanes) takeOver(key, by string, op Op) (migration string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.by[key]
	if n == nil || n.holder() == nil || Admit(n.running.op, op) != TakeOver {
		return ""
	}
	if !slices.ContainsFunc(n.waiting, func(w entry) bool { return w.task.ID == by }) {
		return ""
	}
	if n.running.op == OpMigrate {
		return n.running.migration
	}
	n.running.cancel(errTakenOver)
	return ""
}

// withdraw takes a migration that has not begun out of its lane; ok is false when
// none waits.
func (l *lanes) withdraw(key, migrationID string) (Task, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.by[key]
	if n == nil {
		return Task{}, false
	}
	for i, w := range n.waiting {
		if migrates(w.op, w.task.Migration, migrationID) && w.task.State == api.TaskAccepted {
			n.waiting = slices.Delete(n.waiting, i, i+1)
			l.leaveLocked()
			return w.task, true
		}
	}
	return Task{}, false
}

// migrates reports whether an operation is that migration; an empty id means any.
func migrates(op Op, migration, id string) bool {
	return op == OpMigrate && (id == "" || migration == id)
}

// migrating reports whether that migration has the lane or is to have it again.
func (l *lanes) migrating(key, migrationID string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.by[key]
	if n == nil {
		return false
	}
	if t := n.holder(); t != nil && migrates(t.op, t.migration, migrationID) {
		return true
	}
	return slices.ContainsFunc(n.waiting, func(w entry) bool { return migrates(w.op, w.task.Migration, migrationID) })
}

// noteMissed keeps an event of an instance that a task holds until that task has
// ended; false when none holds it.
func (l *lanes) noteMissed(e virt.Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.by[e.Domain]
	if n == nil || n.holder() == nil {
		return false
	}
	if n.missed == nil || e.Kind != "" { // what was told is kept over a look that nobody told of
		n.missed = &e
	}
	return true
}

// busy names the instances that have a task, running or waiting.
func (l *lanes) busy() map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]bool, len(l.by))
	for key, n := range l.by {
		if n.holder() != nil || len(n.waiting) > 0 {
			out[key] = true
		}
	}
	return out
}

// free tells how many tasks may still be accepted; at none, freed is closed when
// that has changed.
func (l *lanes) free(limit int) (n int, freed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total < limit {
		return limit - l.total, nil
	}
	if l.freed == nil {
		l.freed = make(chan struct{})
	}
	return 0, l.freed
}

// takenOver is how a task ends that had to give way.
func takenOver(t Task) error {
	return fault.WrapAs(fault.Cancelled, errTakenOver, t.Method, t.Instance)
}
