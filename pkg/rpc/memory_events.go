package rpc

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// eventStore is the event stream with the readers that follow it.
type eventStore struct {
	sequence uint64
	stored   []memEvent
	seen     dedup
	readers  map[*memEvents]struct{}
}

type memEvent struct {
	subject string
	Event
}

// memEvents is one reader; what matches waits in its queue.
type memEvents struct {
	conn   *memConn
	match  string
	queue  []Event
	wake   chan struct{}
	closed bool
}

// Publish implements [Agent].
func (c *memConn) Publish(ctx context.Context, e Event) error {
	subject, err := c.bus.names.encodeEvent(e)
	if err != nil {
		return err
	}
	p := Passage{Leg: LegStore, Conn: c.name, Host: e.Host, Subject: subject, Request: e.MsgID}
	e.Body = append([]byte(nil), e.Body...)
	return c.store(ctx, p, func() { c.bus.storeEventLocked(subject, e) })
}

// PublishAll implements [Agent].
func (c *memConn) PublishAll(ctx context.Context, events []Event) (stored int, err error) {
	for i, e := range events {
		if err := c.Publish(ctx, e); err != nil {
			return i, err
		}
	}
	return len(events), nil
}

func (b *Bus) storeEventLocked(subject string, e Event) {
	s, now := &b.events, time.Now()
	for len(s.stored) > 0 && now.Sub(s.stored[0].At) > b.opts.eventsMaxAge {
		s.stored = s.stored[1:]
	}
	if s.seen.seen(e.MsgID, now) {
		return
	}
	s.sequence++
	e.Sequence, e.At = s.sequence, now
	s.stored = append(s.stored, memEvent{subject, e})
	for r := range s.readers {
		if subjectMatches(r.match, subject) {
			r.queue = append(r.queue, e)
			signal(r.wake)
		}
	}
}

// Events implements [Client].
func (c *memConn) Events(_ context.Context, f EventFilter) (EventReader, error) {
	b := c.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := c.usableLocked("events"); err != nil {
		return nil, err
	}
	r := &memEvents{conn: c, match: b.names.event(f), wake: make(chan struct{}, 1)}
	r.queue = b.events.selectLocked(r.match, f)
	if b.events.readers == nil {
		b.events.readers = map[*memEvents]struct{}{}
	}
	b.events.readers[r] = struct{}{}
	return r, nil
}

// selectLocked gives the stored events that a new reader begins with.
func (s *eventStore) selectLocked(match string, f EventFilter) []Event {
	if f.Sequence == 0 && f.From == FromNow {
		return nil
	}
	last := map[string]uint64{}
	if f.Sequence == 0 && f.From == FromLast {
		for _, e := range s.stored {
			last[e.subject] = e.Sequence
		}
	}
	var chosen []Event
	for _, e := range s.stored {
		newest, only := last[e.subject]
		if e.Sequence >= f.Sequence && (!only || newest == e.Sequence) && subjectMatches(match, e.subject) {
			chosen = append(chosen, e.Event)
		}
	}
	return chosen
}

// Next implements [EventReader].
func (r *memEvents) Next(ctx context.Context) (Event, error) {
	for {
		if err := context.Cause(ctx); err != nil {
			return Event{}, err
		}
		e, ok, err := r.take()
		if ok || err != nil {
			return e, err
		}
		if err := r.conn.wait(ctx, r.wake, time.Time{}); err != nil {
			return Event{}, err
		}
	}
}

func (r *memEvents) take() (Event, bool, error) {
	r.conn.bus.mu.Lock()
	defer r.conn.bus.mu.Unlock()
	if r.closed {
		return Event{}, false, fault.New(fault.Unavailable, "read", "events", "the reader is closed")
	}
	if r.conn.cut || len(r.queue) == 0 {
		return Event{}, false, nil
	}
	e := r.queue[0]
	r.queue = r.queue[1:]
	return e, true, nil
}

// Close implements [EventReader].
func (r *memEvents) Close() error {
	r.conn.bus.mu.Lock()
	defer r.conn.bus.mu.Unlock()
	r.closed, r.queue = true, nil
	delete(r.conn.bus.events.readers, r)
	signal(r.wake)
	return nil
}
