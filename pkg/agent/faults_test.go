package agent_test

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// hangs makes every call of a method wait before it is carried out.
func hangs(method string) fake.Fault { return fake.Fault{Method: method, Hang: true} }

// afterwards is a hypervisor whose calls hang, once armed, when they have been
// carried out: what happened is not known to the caller.
type afterwards struct {
	agent.Hypervisor
	mu    sync.Mutex
	armed string        // the method that hangs
	hung  chan struct{} // closed when a call hangs
}

func (h *afterwards) arm(method string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.armed, h.hung = method, make(chan struct{})
}

func (h *afterwards) disarm() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.armed = ""
}

func (h *afterwards) hang(ctx context.Context, method string, err error) error {
	h.mu.Lock()
	armed := h.armed == method
	h.mu.Unlock()
	if !armed || err != nil {
		return err
	}
	close(h.hung)
	<-ctx.Done()
	return context.Cause(ctx)
}

func (h *afterwards) Start(ctx context.Context, id string) error {
	return h.hang(ctx, "Start", h.Hypervisor.Start(ctx, id))
}

func (h *afterwards) Pause(ctx context.Context, id string) error {
	return h.hang(ctx, "Pause", h.Hypervisor.Pause(ctx, id))
}

func (h *afterwards) Unpause(ctx context.Context, id string) error {
	return h.hang(ctx, "Unpause", h.Hypervisor.Unpause(ctx, id))
}

func (h *afterwards) Save(ctx context.Context, id string) error {
	return h.hang(ctx, "Save", h.Hypervisor.Save(ctx, id))
}

func (h *afterwards) Restore(ctx context.Context, id string) error {
	return h.hang(ctx, "Restore", h.Hypervisor.Restore(ctx, id))
}

func (h *afterwards) Destroy(ctx context.Context, id string) error {
	return h.hang(ctx, "Destroy", h.Hypervisor.Destroy(ctx, id))
}

// panics is a hypervisor with a defect.
type panics struct{ agent.Hypervisor }

func (p panics) Pause(context.Context, string) error { panic("a defect") }

func (p panics) Console(context.Context, string, int) ([]byte, error) { panic("another") }

// slowAcks is a bus that takes its time to take an acknowledgement.
type slowAcks struct {
	agent.Bus
	delay *atomic.Int64 // of each one
}

func (s slowAcks) Casts(ctx context.Context, host string) (rpc.CastReader, error) {
	reader, err := s.Bus.Casts(ctx, host)
	return slowReader{reader, s.delay}, err
}

type slowReader struct {
	rpc.CastReader
	delay *atomic.Int64
}

func (s slowReader) Next(ctx context.Context, limit int) ([]rpc.Delivery, error) {
	batch, err := s.CastReader.Next(ctx, limit)
	for i := range batch {
		ack := batch[i].Ack
		batch[i].Ack = func() error {
			<-time.After(time.Duration(s.delay.Load()))
			return ack()
		}
	}
	return batch, err
}

// slowLooks is a hypervisor that counts the looks at guests and, once slow, lets none be
// cut short.
type slowLooks struct {
	agent.Hypervisor
	slow         atomic.Bool
	begun, ended atomic.Int64
}

func (s *slowLooks) Lookup(ctx context.Context, id string) (virt.Domain, error) {
	s.begun.Add(1)
	defer s.ended.Add(1)
	if s.slow.Load() {
		<-time.After(time.Second)
	}
	return s.Hypervisor.Lookup(ctx, id)
}

// slowPeer is a bus whose calls to other hosts take long; it tells how many were on their
// way at once.
type slowPeer struct {
	agent.Bus
	mu        sync.Mutex
	now, most int
}

func (s *slowPeer) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now += n
	s.most = max(s.most, s.now)
}

func (s *slowPeer) Call(ctx context.Context, host string, m rpc.Message) ([]byte, error) {
	s.count(1)
	defer s.count(-1)
	select {
	case <-time.After(time.Minute):
	case <-ctx.Done():
	}
	return s.Bus.Call(ctx, host, m)
}

// listless is a bus that lists no view while an error is in the way, as one that does not
// allow it.
type listless struct {
	agent.Bus
	refusal *atomic.Pointer[fault.Error]
}

func (l listless) List(ctx context.Context, b rpc.Bucket, pattern []string) ([]rpc.Entry, error) {
	if f := l.refusal.Load(); f != nil {
		return nil, f
	}
	return l.Bus.List(ctx, b, pattern)
}
