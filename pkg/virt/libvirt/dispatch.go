package libvirt

import (
	"context"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/virt"
)

// dispatcher hands events to subscribers, in order, from one goroutine.
// Subscriptions pass through the same queue, so each has a definite place in it.
type dispatcher struct {
	limit int
	wake  chan struct{}

	mu    sync.Mutex
	queue []dispatch

	// Only the running goroutine touches these.
	connected bool
	subs      []*subscriber
}

// dispatch is an event, or a new subscriber when sub is set.
type dispatch struct {
	event virt.Event
	sub   *subscriber
}

type subscriber struct {
	fn   func(virt.Event)
	mu   sync.Mutex
	over bool
}

func newDispatcher(limit int) *dispatcher {
	return &dispatcher{limit: limit, wake: make(chan struct{}, 1)}
}

// push queues an event; false if the backlog is full and it was dropped.
func (d *dispatcher) push(ev virt.Event) bool {
	d.mu.Lock()
	full := len(d.queue) >= d.limit
	d.mu.Unlock()
	if full {
		return false
	}
	d.pushAlways(ev)
	return true
}

// pushAlways queues an event that must not be lost.
func (d *dispatcher) pushAlways(ev virt.Event) {
	ev.At = time.Now()
	d.add(dispatch{event: ev})
}

func (d *dispatcher) add(item dispatch) {
	d.mu.Lock()
	d.queue = append(d.queue, item)
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// subscribe queues a new subscriber. After cancel no call of fn begins.
func (d *dispatcher) subscribe(fn func(virt.Event)) (cancel func()) {
	s := &subscriber{fn: fn}
	d.add(dispatch{sub: s})
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.over = true
	}
}

// run hands out until ctx ends.
func (d *dispatcher) run(ctx context.Context) error {
	for {
		d.mu.Lock()
		items := d.queue
		d.queue = nil
		d.mu.Unlock()
		for _, item := range items {
			d.handle(item)
		}
		if len(items) > 0 {
			continue
		}
		select {
		case <-d.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

func (d *dispatcher) handle(item dispatch) {
	if item.sub != nil {
		d.subs = append(d.subs, item.sub)
		if d.connected {
			item.sub.call(virt.Event{Kind: virt.EventConnected, At: time.Now()})
		}
		return
	}
	switch item.event.Kind { //nolint:exhaustive // only these two change what a new subscriber is told
	case virt.EventConnected:
		d.connected = true
	case virt.EventDisconnected:
		d.connected = false
	}
	kept := d.subs[:0]
	for _, s := range d.subs {
		if s.call(item.event) {
			kept = append(kept, s)
		}
	}
	clear(d.subs[len(kept):])
	d.subs = kept
}

// call is false once the subscriber is cancelled.
func (s *subscriber) call(ev virt.Event) bool {
	s.mu.Lock()
	over := s.over
	s.mu.Unlock()
	if !over {
		s.fn(ev)
	}
	return !over
}
