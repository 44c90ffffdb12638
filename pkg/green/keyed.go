package green

import (
	"context"
	"sync"
)

// A KeyedQueue hands the newest value of each key to a handler, lower priority
// first, and never works on one key twice at once. The zero queue is ready to
// use. It is the queue in front of the workers of neutron's L3 agent, with all
// of its state under one lock.
//
//	        Add                 a worker is free
//	absent ─────► waiting ───────────────────────► in work ──end──► absent
//	                 ▲                                │ Add
//	                 └───────────end────────── in work, and waiting
//
// Add on a waiting key keeps its place, takes the newest value and the better
// of the two priorities. Add on a key in work has it handled once more
// afterwards. Equal priorities are served in the order of Add.
type KeyedQueue[K comparable, V any] struct {
	mu    sync.Mutex
	ready sync.Cond // idle workers wait here; L is set on first use
	items map[K]*keyedItem[K, V]
	line  keyedLine[K, V]
	seq   uint64

	idle   int  // workers that wait in ready
	waking bool // one of them was signalled and has not looked yet
}

// keyedItem is one key that waits, is in work, or both.
type keyedItem[K comparable, V any] struct {
	key      K
	value    V
	priority int
	seq      uint64 // of the Add that made it wait
	waiting  bool   // value is still to be handled
	working  bool   // a handler has the key; it's not in the line
	level    *keyedLevel[K, V]
}

type keyedHandler[K comparable, V any] func(context.Context, K, V) error

// Add has v handled for key. It never blocks; lower priority comes first.
func (q *KeyedQueue[K, V]) Add(key K, priority int, v V) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.addLocked(key, priority, v)
}

// Offer is Add, but where a value waits already that one stays as it is.
func (q *KeyedQueue[K, V]) Offer(key K, priority int, v V) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if it := q.items[key]; it == nil || !it.waiting {
		q.addLocked(key, priority, v)
	}
}

func (q *KeyedQueue[K, V]) addLocked(key K, priority int, v V) {
	it := q.items[key]
	if it == nil {
		if q.items == nil {
			q.items = make(map[K]*keyedItem[K, V])
		}
		it = &keyedItem[K, V]{key: key}
		q.items[key] = it
	}
	it.value = v
	if it.waiting {
		if priority < it.priority {
			it.priority = priority
			if !it.working {
				q.line.move(it)
			}
		}
		return
	}
	q.seq++
	it.waiting, it.priority, it.seq = true, priority, q.seq
	if !it.working {
		q.line.push(it)
		q.wakeLocked()
	}
}

// Run works on the queue with that many workers until ctx ends, and gives its
// cause once the handlers that ran have returned; what is queued then stays
// queued, for a later Run. With workers below 1 there is one goroutine for
// each key that has work, and none for the others.
//
// The handler gets ctx. Its error, or panic, is reported and nothing else:
// adding the key again is the caller's choice. Several Runs may share a queue.
func (q *KeyedQueue[K, V]) Run(ctx context.Context, workers int, handle func(context.Context, K, V) error) error {
	r := &keyedRun[K, V]{q: q, ctx: ctx, handle: handle}
	q.mu.Lock()
	q.ready.L = &q.mu
	q.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.ready.Broadcast()
	})
	defer stop()
	for range workers {
		r.all.Add(1)
		go r.work()
	}
	if workers < 1 {
		r.dispatch()
	}
	r.all.Wait()
	return context.Cause(ctx)
}

// keyedRun is one call of Run.
type keyedRun[K comparable, V any] struct {
	q      *KeyedQueue[K, V]
	ctx    context.Context //nolint:containedctx // lives exactly as long as the call of Run
	handle keyedHandler[K, V]
	all    sync.WaitGroup // the goroutines of this Run
}

// work is one worker: it takes the next key, whichever that is, until ctx ends.
func (r *keyedRun[K, V]) work() {
	var it *keyedItem[K, V]
	defer func() {
		if it == nil {
			r.all.Done()
			return
		}
		r.lost(it)
		go r.work() // the handler took this worker's goroutine along
	}()
	q := r.q
	q.mu.Lock()
	for it = q.nextLocked(r.ctx); it != nil; it = q.nextLocked(r.ctx) {
		v := it.takeLocked()
		q.mu.Unlock()
		r.one(it.key, v)
		q.mu.Lock()
		q.finishLocked(it)
	}
	q.mu.Unlock()
}

// dispatch starts a goroutine for each key that comes to the head of the line.
func (r *keyedRun[K, V]) dispatch() {
	q := r.q
	q.mu.Lock()
	defer q.mu.Unlock()
	for it := q.nextLocked(r.ctx); it != nil; it = q.nextLocked(r.ctx) {
		v := it.takeLocked()
		r.all.Add(1)
		go r.lane(it, v)
	}
}

// lane works on one key until it has no more work.
func (r *keyedRun[K, V]) lane(it *keyedItem[K, V], v V) {
	returned := false
	defer func() {
		if !returned {
			r.lost(it)
		}
		r.all.Done()
	}()
	q := r.q
	for more := true; more; {
		r.one(it.key, v)
		q.mu.Lock()
		if more = it.waiting && r.ctx.Err() == nil; more {
			v = it.takeLocked()
		} else {
			q.finishLocked(it)
		}
		q.mu.Unlock()
	}
	returned = true
}

// one hands one value to the handler, behind a barrier.
func (r *keyedRun[K, V]) one(key K, v V) {
	returned := false
	defer func() {
		if !returned {
			if p := recover(); p != nil {
				_ = abnormal(r.ctx, p) // reported there
			}
		}
	}()
	err := r.handle(r.ctx, key, v)
	returned = true
	if err != nil {
		reportUnseen(r.ctx, "handler of a keyed queue failed", err)
	}
}

// lost frees the key of a handler that left by Goexit.
func (r *keyedRun[K, V]) lost(it *keyedItem[K, V]) {
	report(r.ctx, "handler of a keyed queue did not return", ErrGoexit)
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	r.q.finishLocked(it)
}

// nextLocked waits for a key and takes it out of the line; nil once ctx ended.
func (q *KeyedQueue[K, V]) nextLocked(ctx context.Context) *keyedItem[K, V] {
	for {
		if ctx.Err() != nil {
			q.wakeLocked() // the signal may have been meant for another Run
			return nil
		}
		if it := q.line.pop(); it != nil {
			q.wakeLocked()
			return it
		}
		q.idle++
		q.ready.Wait()
		q.idle--
		q.waking = false
	}
}

// wakeLocked wakes a worker if there is work for it. One is under way at a
// time: it wakes the next when it has found work, so that a fast producer
// doesn't wake a crowd for what the first can take.
func (q *KeyedQueue[K, V]) wakeLocked() {
	if q.idle > 0 && !q.waking && q.line.live > 0 {
		q.waking = true
		q.ready.Signal()
	}
}

func (it *keyedItem[K, V]) takeLocked() V {
	var zero V
	v := it.value
	it.value, it.waiting, it.working = zero, false, true
	return v
}

// finishLocked gives the key free; if it was added meanwhile it takes its
// place in the line.
func (q *KeyedQueue[K, V]) finishLocked(it *keyedItem[K, V]) {
	it.working = false
	if !it.waiting {
		delete(q.items, it.key)
		return
	}
	q.line.push(it)
	q.wakeLocked()
}
