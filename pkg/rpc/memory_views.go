package rpc

import (
	"context"
	"sort"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// viewStore is one bucket with those who watch it.
type viewStore struct {
	revision uint64
	entries  map[string]Entry // by encoded key
	watchers []*memWatch
}

type memWatch struct {
	match string
	queue []Entry
	wake  chan struct{}
}

// view finds a bucket; c may be cut off from it.
func (c *memConn) viewLocked(op string, b Bucket) (*viewStore, error) {
	if err := c.usableLocked(op); err != nil {
		return nil, err
	}
	v := c.bus.views[b]
	if v == nil {
		return nil, unknownBucket(op, b)
	}
	return v, nil
}

func unknownBucket(op string, b Bucket) error {
	return fault.Newf(fault.InvalidArgument, op, string(b), "there is no such view").
		WithHint("the views are %v", Buckets())
}

// Put implements [Views].
func (c *memConn) Put(ctx context.Context, b Bucket, key []string, value []byte) error {
	return c.change(ctx, b, key, Entry{Value: append([]byte(nil), value...)})
}

// Delete implements [Views].
func (c *memConn) Delete(ctx context.Context, b Bucket, key []string) error {
	return c.change(ctx, b, key, Entry{Deleted: true})
}

// PutAll implements [Views].
func (c *memConn) PutAll(ctx context.Context, entries []Entry) (stored int, err error) {
	for i, e := range entries {
		if err := c.change(ctx, e.Bucket, e.Key, Entry{Value: append([]byte(nil), e.Value...), Deleted: e.Deleted}); err != nil {
			return i, err
		}
	}
	return len(entries), nil
}

func (c *memConn) change(ctx context.Context, b Bucket, key []string, e Entry) error {
	encoded, err := encodeKey("put", key, false)
	if err != nil {
		return err
	}
	c.bus.mu.Lock()
	v, err := c.viewLocked("put", b)
	c.puts++
	number := c.puts
	c.bus.mu.Unlock()
	if err != nil {
		return err
	}
	e.Bucket, e.Key = b, append([]string(nil), key...)
	p := Passage{Leg: LegStore, Conn: c.name, Subject: "$KV." + c.bus.names.bucket(b) + "." + encoded}
	return c.store(ctx, p, func() {
		if c.landed[p.Subject] <= number { // a connection keeps its order: what is late is not newer than what came after it
			c.landed[p.Subject] = number
			v.changeLocked(encoded, e)
		}
	})
}

func (v *viewStore) changeLocked(encoded string, e Entry) {
	v.revision++
	e.Revision, e.At = v.revision, time.Now()
	if e.Deleted {
		delete(v.entries, encoded)
	} else {
		v.entries[encoded] = e
	}
	for _, w := range v.watchers {
		if subjectMatches(w.match, encoded) {
			w.queue = append(w.queue, e)
			signal(w.wake)
		}
	}
}

// Get implements [Views].
func (c *memConn) Get(_ context.Context, b Bucket, key []string) (Entry, error) {
	encoded, err := encodeKey("get", key, false)
	if err != nil {
		return Entry{}, err
	}
	c.bus.mu.Lock()
	defer c.bus.mu.Unlock()
	v, err := c.viewLocked("get", b)
	if err != nil {
		return Entry{}, err
	}
	e, ok := v.entries[encoded]
	if !ok {
		return Entry{}, noEntry(b, key)
	}
	return e, nil
}

func noEntry(b Bucket, key []string) error {
	return fault.Newf(fault.NotFound, "get", "", "the view %s has no entry %q", b, key)
}

// List implements [Views].
func (c *memConn) List(_ context.Context, b Bucket, pattern []string) ([]Entry, error) {
	match, err := encodeKey("list", pattern, true)
	if err != nil {
		return nil, err
	}
	c.bus.mu.Lock()
	defer c.bus.mu.Unlock()
	v, err := c.viewLocked("list", b)
	if err != nil {
		return nil, err
	}
	return v.matchingLocked(match), nil
}

// matchingLocked lists by revision, as a stream gives them.
func (v *viewStore) matchingLocked(match string) []Entry {
	var list []Entry
	for key, e := range v.entries {
		if subjectMatches(match, key) {
			list = append(list, e)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Revision < list[j].Revision })
	return list
}

// Watch implements [Views].
func (c *memConn) Watch(ctx context.Context, b Bucket, pattern []string, fn func(Entry) error) error {
	match, err := encodeKey("watch", pattern, true)
	if err != nil {
		return err
	}
	w := &memWatch{match: match, wake: make(chan struct{}, 1)}
	c.bus.mu.Lock()
	v, err := c.viewLocked("watch", b)
	if err != nil {
		c.bus.mu.Unlock()
		return err
	}
	w.queue = v.matchingLocked(match)
	for i := range w.queue {
		w.queue[i].Initial = true
	}
	v.watchers = append(v.watchers, w)
	c.bus.mu.Unlock()
	defer v.forget(c.bus, w)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		for _, e := range w.take(c) {
			if err := fn(e); err != nil {
				return err
			}
		}
		if err := c.wait(ctx, w.wake, time.Time{}); err != nil {
			return err
		}
	}
}

func (w *memWatch) take(c *memConn) []Entry {
	c.bus.mu.Lock()
	defer c.bus.mu.Unlock()
	if c.cut {
		return nil
	}
	queue := w.queue
	w.queue = nil
	return queue
}

func (v *viewStore) forget(b *Bus, w *memWatch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range v.watchers {
		if v.watchers[i] == w {
			v.watchers = append(v.watchers[:i:i], v.watchers[i+1:]...)
			return
		}
	}
}
