package vif

import (
	"context"
	"sync"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// turns is a lock for each port whose wait ends with a context. The zero turns is ready to use.
type turns struct {
	mu    sync.Mutex
	ports map[string]*turn
}

type turn struct {
	slot  chan struct{} // holds one token while the turn is taken
	users int           // who holds it or waits for it; guarded by turns.mu
}

// take waits for the port's turn; release gives it back.
func (t *turns) take(ctx context.Context, port string) (release func(), err error) {
	t.mu.Lock()
	if t.ports == nil {
		t.ports = map[string]*turn{}
	}
	mine := t.ports[port]
	if mine == nil {
		mine = &turn{slot: make(chan struct{}, 1)}
		t.ports[port] = mine
	}
	mine.users++
	t.mu.Unlock()
	select {
	case mine.slot <- struct{}{}:
		return func() { <-mine.slot; t.leave(port, mine) }, nil
	case <-ctx.Done():
		t.leave(port, mine)
		return nil, fault.Wrap(context.Cause(ctx), "wait for the port's turn", port)
	}
}

func (t *turns) leave(port string, mine *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if mine.users--; mine.users == 0 {
		delete(t.ports, port)
	}
}
