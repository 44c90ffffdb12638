package simulate

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/vif"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// errKilled is what a killed agent's last calls get; nobody hears of it.
var errKilled = errors.New("the agent was killed")

// life is one run of a host's agent: its doors to the world, which a kill shuts.
type life struct {
	bus       rpc.Transport
	driver    *fake.Driver
	committed func(n int)
	trouble   func() error

	dead    atomic.Bool
	written int // transactions; the journal's writer alone counts
}

// kill shuts every door. What waits behind one is answered with an error that goes
// nowhere, because the doors that it would leave by are shut as well.
func (l *life) kill() {
	if l.dead.Swap(true) {
		return
	}
	_ = l.driver.Close() // both only let go, and can't fail
	_ = l.bus.Close()
}

// write is the journal's door, before a transaction.
func (l *life) write() error {
	if l.dead.Load() {
		return errKilled
	}
	if l.trouble != nil {
		return l.trouble()
	}
	return nil
}

// wrote is the same door when the transaction is on disk.
func (l *life) wrote() error {
	l.written++
	if l.committed != nil && !l.dead.Load() {
		l.committed(l.written)
	}
	if l.dead.Load() {
		return errKilled
	}
	return nil
}

// network is the door to the host's network.
type network struct {
	vif.Network
	life *life
}

// Make implements [vif.Network].
func (n network) Make(ctx context.Context, want vif.Tap) (bool, error) {
	if n.life.dead.Load() {
		return false, errKilled
	}
	return n.Network.Make(ctx, want)
}

// Remove implements [vif.Network].
func (n network) Remove(ctx context.Context, name, port string) error {
	if n.life.dead.Load() {
		return errKilled
	}
	return n.Network.Remove(ctx, name, port)
}
