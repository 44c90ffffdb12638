package green

import (
	"container/heap"
	"slices"
)

// keyedLine is the order of a KeyedQueue: by priority, then by seq. Nearly all
// keys come in the order of seq, so a level is a plain queue with a small heap
// beside it for those that don't; both give up an entry lazily when its item
// has moved on.
type keyedLine[K comparable, V any] struct {
	levels map[int]*keyedLevel[K, V]
	order  levelHeap[K, V] // the same levels, best first; empty ones leave when seen
	live   int             // items in the line
}

// keyedLevel holds the items of one priority.
type keyedLevel[K comparable, V any] struct {
	priority int
	live     int
	queue    []keyedEntry[K, V] // seq rising; served up to head
	head     int
	early    entryHeap[K, V] // came with a seq below the queue's last
}

// keyedEntry stands for its item while the item's level and seq are the same.
type keyedEntry[K comparable, V any] struct {
	it  *keyedItem[K, V]
	seq uint64
}

func (l *keyedLine[K, V]) push(it *keyedItem[K, V]) {
	level := l.levels[it.priority]
	if level == nil {
		if l.levels == nil {
			l.levels = make(map[int]*keyedLevel[K, V])
		}
		level = &keyedLevel[K, V]{priority: it.priority}
		l.levels[it.priority] = level
		heap.Push(&l.order, level)
	}
	it.level = level
	level.live++
	l.live++
	level.add(keyedEntry[K, V]{it: it, seq: it.seq})
}

// move takes an item whose priority has changed to its new level.
func (l *keyedLine[K, V]) move(it *keyedItem[K, V]) {
	old := it.level
	old.live--
	l.live--
	l.push(it)
	if old.size() > 2*old.live+64 {
		old.sweep()
	}
}

// pop takes the first item out, nil if there is none.
func (l *keyedLine[K, V]) pop() *keyedItem[K, V] {
	for len(l.order) > 0 {
		level := l.order[0]
		if level.live == 0 {
			if len(l.order) == 1 { // the usual case: keep the only level
				level.reset()
				return nil
			}
			heap.Pop(&l.order)
			delete(l.levels, level.priority)
			continue
		}
		it := level.first()
		it.level = nil
		level.live--
		l.live--
		return it
	}
	return nil
}

func (v *keyedLevel[K, V]) add(e keyedEntry[K, V]) {
	if n := len(v.queue); n > v.head && v.queue[n-1].seq > e.seq {
		heap.Push(&v.early, e)
		return
	}
	if v.head >= 64 && v.head*2 >= len(v.queue) { // reuse what was served
		n := copy(v.queue, v.queue[v.head:])
		clear(v.queue[n:])
		v.queue, v.head = v.queue[:n], 0
	}
	v.queue = append(v.queue, e)
}

// first takes out the item with the lowest seq; there is one.
func (v *keyedLevel[K, V]) first() *keyedItem[K, V] {
	for {
		var e keyedEntry[K, V]
		if len(v.early) > 0 && (v.head == len(v.queue) || v.early[0].seq < v.queue[v.head].seq) {
			e, _ = heap.Pop(&v.early).(keyedEntry[K, V])
		} else {
			e = v.queue[v.head]
			v.queue[v.head] = keyedEntry[K, V]{}
			v.head++
		}
		if v.stands(e) {
			return e.it
		}
	}
}

// stands tells whether e's item still waits at this place.
func (v *keyedLevel[K, V]) stands(e keyedEntry[K, V]) bool {
	return e.it.level == v && e.it.seq == e.seq
}

// size counts the entries, with those whose item has moved away.
func (v *keyedLevel[K, V]) size() int { return len(v.queue) - v.head + len(v.early) }

// sweep drops the entries whose items have moved away, for a level that is
// never served must not keep them for ever.
func (v *keyedLevel[K, V]) sweep() {
	gone := func(e keyedEntry[K, V]) bool { return !v.stands(e) }
	v.queue = slices.DeleteFunc(slices.Clone(v.queue[v.head:]), gone)
	v.head = 0
	v.early = slices.DeleteFunc(slices.Clone(v.early), gone)
	heap.Init(&v.early)
}

// reset empties a level without items, and gives back the memory of a great
// crowd that has gone.
func (v *keyedLevel[K, V]) reset() {
	v.head, v.early = 0, nil
	if cap(v.queue) > 1024 {
		v.queue = nil
		return
	}
	clear(v.queue)
	v.queue = v.queue[:0]
}

// levelHeap orders levels by priority.
type levelHeap[K comparable, V any] []*keyedLevel[K, V]

func (h levelHeap[K, V]) Len() int           { return len(h) }
func (h levelHeap[K, V]) Less(i, j int) bool { return h[i].priority < h[j].priority }
func (h levelHeap[K, V]) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is for container/heap.
func (h *levelHeap[K, V]) Push(x any) {
	level, _ := x.(*keyedLevel[K, V])
	*h = append(*h, level)
}

// Pop is for container/heap.
func (h *levelHeap[K, V]) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}

// entryHeap orders entries by seq.
type entryHeap[K comparable, V any] []keyedEntry[K, V]

func (h entryHeap[K, V]) Len() int           { return len(h) }
func (h entryHeap[K, V]) Less(i, j int) bool { return h[i].seq < h[j].seq }
func (h entryHeap[K, V]) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is for container/heap.
func (h *entryHeap[K, V]) Push(x any) {
	e, _ := x.(keyedEntry[K, V])
	*h = append(*h, e)
}

// Pop is for container/heap.
func (h *entryHeap[K, V]) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = keyedEntry[K, V]{}
	*h = old[:len(old)-1]
	return last
}
