package fake

import (
	"context"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// subscription delivers a host's events to one listener, one at a time and in
// order. A green thread runs while there is something to deliver.
type subscription struct {
	fn func(virt.Event)

	mu      sync.Mutex
	queue   []virt.Event
	pumping bool
	ended   bool
}

func (s *subscription) push(ctx context.Context, e virt.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.queue = append(s.queue, e)
	if !s.pumping {
		s.pumping = true
		green.SpawnN(ctx, s.pump)
	}
}

func (s *subscription) pump(context.Context) error {
	for batch := s.take(); len(batch) > 0; batch = s.take() {
		for _, e := range batch {
			if s.over() {
				return nil
			}
			s.fn(e)
		}
	}
	return nil
}

// take gives what waits; with nothing left the thread's work is done.
func (s *subscription) take() []virt.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	batch := s.queue
	s.queue = nil
	s.pumping = len(batch) > 0
	return batch
}

func (s *subscription) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

func (s *subscription) cancel() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended, s.queue = true, nil
}

// emitLocked tells every listener of a change; while the hypervisor is away
// events are lost.
func (h *Host) emitLocked(e virt.Event) {
	if !h.connected {
		return
	}
	h.broadcastLocked(e)
}

func (h *Host) broadcastLocked(e virt.Event) {
	e.At = time.Now()
	for _, d := range h.drivers {
		for _, s := range d.subs {
			s.push(h.world.ctx, e)
		}
	}
}

func (h *Host) tellLocked(kind virt.EventKind, id string, reason virt.Reason) {
	h.touchLocked(id)
	h.emitLocked(virt.Event{Kind: kind, Domain: id, Reason: reason})
}
