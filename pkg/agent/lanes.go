package agent

import (
	"context"
	"errors"
	"sort"
	"sync"

	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// errTakenOver ends a running task because a stronger one was asked for.
var errTakenOver = errors.New("another request took over")

// lanes gives each instance its turn: tasks of one instance run one after the
// other in the order of the stream, tasks of different instances side by side.
// The queue is green's; the journal holds what waits; this is its copy in memory.
//
// mu guards waiting and running. open is closed when tasks may begin.
type lanes struct {
	queue green.KeyedQueue[string, struct{}]
	open  chan struct{}

	mu      sync.Mutex
	once    sync.Once
	waiting map[string][]Task
	running map[string]*turn
	total   int
	drained chan struct{} // closed and replaced when total falls
}

// turn is the task that has the lane.
type turn struct {
	task   Task
	op     Op
	cancel context.CancelCauseFunc
}

func newLanes() *lanes {
	return &lanes{
		open: make(chan struct{}), waiting: map[string][]Task{}, running: map[string]*turn{}, drained: make(chan struct{}),
	}
}

// release lets tasks begin; until then they only gather, in order.
func (l *lanes) release() { l.once.Do(func() { close(l.open) }) }

// add puts a task into its instance's lane, by its place in the stream; calls,
// which have none, go by the order of acceptance.
func (l *lanes) add(t Task) {
	l.mu.Lock()
	w := append(l.waiting[t.Instance], t)
	sort.SliceStable(w, func(i, j int) bool { return before(w[i], w[j]) })
	l.waiting[t.Instance] = w
	l.total++
	l.mu.Unlock()
	l.queue.Add(t.Instance, 0, struct{}{})
}

func before(a, b Task) bool {
	if a.Sequence != 0 && b.Sequence != 0 {
		return a.Sequence < b.Sequence
	}
	return a.Order < b.Order
}

// run serves the lanes until ctx ends; each instance with work has a green thread.
func (l *lanes) run(ctx context.Context, handle func(context.Context, Task)) error {
	return l.queue.Run(ctx, 0, func(ctx context.Context, id string, _ struct{}) error {
		select {
		case <-l.open:
		case <-ctx.Done():
			return nil
		}
		for ctx.Err() == nil {
			tctx, t, ok := l.next(ctx, id)
			if !ok {
				return nil
			}
			handle(tctx, t)
			l.end(id)
		}
		return nil
	})
}

// next gives the lane to its oldest task.
func (l *lanes) next(ctx context.Context, id string) (context.Context, Task, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.waiting[id]
	if len(w) == 0 {
		delete(l.waiting, id)
		return nil, Task{}, false
	}
	t := w[0]
	l.waiting[id] = w[1:]
	tctx, cancel := context.WithCancelCause(ctx)
	l.running[id] = &turn{task: t, op: opOf(t), cancel: cancel}
	return tctx, t, true
}

func (l *lanes) end(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running[id].cancel(nil)
	delete(l.running, id)
	l.total--
	close(l.drained)
	l.drained = make(chan struct{})
}

// held tells what holds an instance: the running operation and the waiting ones.
func (l *lanes) held(id string) (running Op, waiting []Op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.running[id]; r != nil {
		running = r.op
	}
	for _, t := range l.waiting[id] {
		waiting = append(waiting, opOf(t))
	}
	return running, waiting
}

// takeOver ends the running task of an instance early.
func (l *lanes) takeOver(id string) {
	l.mu.Lock()
	r := l.running[id]
	l.mu.Unlock()
	if r != nil {
		r.cancel(errTakenOver)
	}
}

// withdraw takes a waiting migration out of its lane; ok is false when none waits.
func (l *lanes) withdraw(id, migrationID string) (Task, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, t := range l.waiting[id] {
		if t.Method == api.LiveMigration && (migrationID == "" || t.Migration == migrationID) {
			l.waiting[id] = append(l.waiting[id][:i:i], l.waiting[id][i+1:]...)
			l.total--
			return t, true
		}
	}
	return Task{}, false
}

// busy names the instances that have a task, running or waiting.
func (l *lanes) busy() map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]bool, len(l.running))
	for id := range l.running {
		out[id] = true
	}
	for id, w := range l.waiting {
		if len(w) > 0 {
			out[id] = true
		}
	}
	return out
}

// room waits until fewer than max tasks are accepted and not ended.
func (l *lanes) room(ctx context.Context, max int) (waited bool, err error) {
	for {
		l.mu.Lock()
		full, change := l.total >= max, l.drained
		l.mu.Unlock()
		if !full {
			return waited, nil
		}
		waited = true
		select {
		case <-change:
		case <-ctx.Done():
			return waited, context.Cause(ctx)
		}
	}
}
