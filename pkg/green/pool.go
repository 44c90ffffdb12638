package green

import (
	"container/list"
	"context"
	"fmt"
	"sync"
)

const defaultPoolSize = 1000

// A Pool bounds how many of its tasks run at once. Each task has a goroutine
// and, while it runs, one of the pool's slots; who spawns into a full pool
// waits in line, first come first served. The zero Pool has 1000 slots.
//
// A task may spawn on its own pool: the context that it was given carries the
// pool's mark, and where no slot is free the spawn runs inline, in the caller,
// instead of waiting for itself.
type Pool struct {
	mu         sync.Mutex
	sized      bool // false: size is still the default
	size       int
	held       int           // slots in use; above size after shrinking
	unfinished int           // tasks whose links have not all run, inline ones too
	line       list.List     // of *spawner, blocked; none while a slot is free
	idle       chan struct{} // made by WaitAll, closed when nothing is left

	// Tasks have their slot when they come here. There are never fewer workers
	// than tasks, so none waits for another to end; but a worker that is done
	// takes the next task rather than leaving it to the goroutine that was
	// started for it, and that one serves a later task or ends. Under load this
	// saves nearly all goroutines; none ever idles.
	tasks   int // pending and running
	workers int // goroutines, at least tasks
	pending []poolRunner
	head    int // of pending: what is before it was taken
}

// poolRunner is a task as its worker sees it: a poolTask or a Thread.
type poolRunner interface {
	run()
	// ownsSlot tells that run has given the slot back, as a thread does before
	// its links run.
	ownsSlot() bool
}

// spawner is a caller that waits for a slot.
type spawner struct {
	task    poolRunner    // is started when the slot is granted
	granted chan struct{} // closed then
	place   *list.Element // nil once it was granted a slot or left the line
}

type poolKey struct{ pool *Pool }

// NewPool gives a pool with size slots. With 0 every spawn waits until Resize.
// It panics if size is negative.
func NewPool(size int) *Pool {
	p := &Pool{}
	p.Resize(size)
	return p
}

// SpawnN runs fn on a goroutine of the pool. It waits while the pool is full,
// until ctx ends: then fn never runs and the error is ErrWaitGivenUp with the
// cause of ctx. From inside the full pool fn has run when it returns. What fn
// returns is reported as by the function SpawnN.
func (p *Pool) SpawnN(ctx context.Context, fn func(context.Context) error) error {
	inline, err := p.acquire(ctx, &poolTask{Context: ctx, pool: p, fn: fn})
	if inline {
		defer p.finished()
		runUnseen(ctx, fn)
	}
	return err
}

// PoolSpawn is Spawn on a goroutine of p; it waits and fails as p.SpawnN does.
// From inside the full pool the thread has ended when PoolSpawn returns, and
// carries the function's error or panic like any other.
func PoolSpawn[T any](ctx context.Context, p *Pool, fn func(context.Context) (T, error)) (*Thread[T], error) {
	t := newThread(ctx, p, fn)
	inline, err := p.acquire(ctx, t)
	if err != nil {
		return nil, err
	}
	if inline {
		defer p.finished()
		t.pool = nil // it has no slot to give back, and ctx has the mark
		t.run()
	}
	return t, nil
}

// Running counts the tasks that hold a slot; inline ones don't.
func (p *Pool) Running() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

// Free counts the free slots. It is negative while more tasks run than a
// shrunken pool has slots.
func (p *Pool) Free() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sizeLocked() - p.held
}

// Waiting counts the callers that wait for a slot.
func (p *Pool) Waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.line.Len()
}

// Size is the number of slots.
func (p *Pool) Size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sizeLocked()
}

// Resize sets the number of slots to n. Running tasks are not touched; new
// slots go at once to the callers that wait. It panics if n is negative.
func (p *Pool) Resize(n int) {
	if n < 0 {
		panic(fmt.Sprintf("green: a pool cannot have %d slots", n))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sized, p.size = true, n
	p.grantLocked()
}

// WaitAll waits until no task is left, neither running nor waiting for a slot,
// and all their links have run. If ctx ends first the error is ErrWaitGivenUp
// with the cause of ctx. A task of the pool itself gets ErrInsidePool.
func (p *Pool) WaitAll(ctx context.Context) error {
	if p.inside(ctx) {
		return ErrInsidePool
	}
	p.mu.Lock()
	if p.emptyLocked() {
		p.mu.Unlock()
		return nil
	}
	if p.idle == nil {
		p.idle = make(chan struct{})
	}
	idle := p.idle
	p.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return givenUp(ctx)
	}
}

// poolTask is a task without a handle. It is its own context: the spawner's
// with the pool's mark.
type poolTask struct {
	context.Context //nolint:containedctx // it is a context

	pool *Pool
	fn   func(context.Context) error
}

func (t *poolTask) run() { runUnseen(t, t.fn) }

func (t *poolTask) ownsSlot() bool { return false }

func (t *Thread[T]) ownsSlot() bool { return true }

// Value adds the mark of the pool.
func (t *poolTask) Value(key any) any {
	if k, ok := key.(poolKey); ok && k.pool == t.pool {
		return t.pool
	}
	return t.Context.Value(key)
}

func (p *Pool) inside(ctx context.Context) bool { return ctx.Value(poolKey{p}) != nil }

// acquire takes a slot for task, in turn, and has it started. inline is
// true if the caller is inside the full pool: it has no slot then and is to run
// its task itself, which counts as unfinished already.
func (p *Pool) acquire(ctx context.Context, task poolRunner) (inline bool, err error) {
	if ctx.Err() != nil {
		return false, givenUp(ctx)
	}
	if p.tryAcquire(task) {
		return false, nil
	}
	if p.inside(ctx) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.unfinished++
		return true, nil
	}
	return false, p.stand(ctx, task)
}

func (p *Pool) tryAcquire(task poolRunner) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held >= p.sizeLocked() {
		return false
	}
	p.takeLocked(task)
	return true
}

// stand waits in line for a slot.
func (p *Pool) stand(ctx context.Context, task poolRunner) error {
	s := &spawner{task: task, granted: make(chan struct{})}
	p.mu.Lock()
	s.place = p.line.PushBack(s)
	p.grantLocked() // a slot may have come free since
	p.mu.Unlock()
	if await(s.granted, ctx.Done()) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.place == nil { // granted at the same moment: the slot is ours
		return nil
	}
	p.line.Remove(s.place)
	p.settleLocked()
	return givenUp(ctx)
}

// work runs pending tasks until there is none.
func (p *Pool) work() {
	var t poolRunner
	defer func() {
		if t != nil { // it left by Goexit, which ends this goroutine
			p.lost(t)
		}
	}()
	for t = p.nextTask(nil); t != nil; t = p.nextTask(t) {
		t.run()
	}
}

// nextTask gives a worker that comes from the task ended, or from none, its
// next one; nil ends the worker.
func (p *Pool) nextTask(ended poolRunner) poolRunner {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ended != nil {
		p.taskEndedLocked(ended)
	}
	if p.head == len(p.pending) {
		p.workers--
		return nil
	}
	t := p.pending[p.head]
	p.pending[p.head] = nil
	if p.head++; p.head == len(p.pending) {
		p.pending, p.head = p.pending[:0], 0
	}
	return t
}

// lost ends a task that took its worker along.
func (p *Pool) lost(t poolRunner) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.workers--
	p.taskEndedLocked(t)
	p.hireLocked()
}

func (p *Pool) taskEndedLocked(t poolRunner) {
	p.tasks--
	if t.ownsSlot() {
		return
	}
	p.held--
	p.unfinished--
	p.grantLocked()
	p.settleLocked()
}

func (p *Pool) hireLocked() {
	if p.workers < p.tasks {
		p.workers++
		go p.work()
	}
}

// takeLocked takes a free slot for a task and has it started.
func (p *Pool) takeLocked(task poolRunner) {
	p.held++
	p.unfinished++
	if p.head >= 64 && p.head*2 >= len(p.pending) { // reuse what was taken
		n := copy(p.pending, p.pending[p.head:])
		clear(p.pending[n:])
		p.pending, p.head = p.pending[:n], 0
	}
	p.pending = append(p.pending, task)
	p.tasks++
	p.hireLocked()
}

func (p *Pool) sizeLocked() int {
	if !p.sized {
		p.sized, p.size = true, defaultPoolSize
	}
	return p.size
}

// grantLocked hands free slots to those who wait, so that nobody who comes
// later can take them.
func (p *Pool) grantLocked() {
	for p.line.Len() > 0 && p.held < p.sizeLocked() {
		s, _ := p.line.Remove(p.line.Front()).(*spawner)
		s.place = nil
		p.takeLocked(s.task)
		close(s.granted)
	}
}

// release gives a slot back when its task's outcome is fixed.
func (p *Pool) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held--
	p.grantLocked()
}

// finished strikes a task off when its links have run.
func (p *Pool) finished() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unfinished--
	p.settleLocked()
}

func (p *Pool) emptyLocked() bool { return p.unfinished == 0 && p.line.Len() == 0 }

func (p *Pool) settleLocked() {
	if p.idle != nil && p.emptyLocked() {
		close(p.idle)
		p.idle = nil
	}
}
