// Package compose is the composition root: it puts a driver, a transport, a
// network and a journal together to an agent. The daemon and the simulation use
// it; nothing imports it but them, and it names no driver.
package compose

import (
	"context"
	"errors"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/vif"
	"github.com/compute-agent/compute-agent/pkg/virt/virttest"
)

// Config is everything that a node is made from but the driver and the transport.
type Config struct {
	Agent   agent.Config
	State   state.Options
	VIF     vif.Config
	Network vif.Network // required: vif.Linux() or, for machines that are not real, vif.Memory()
}

// Driver is a hypervisor as the composition root takes it; each room below
// declares the part of it that it needs.
type Driver interface {
	virttest.Driver
}

// Node is one agent with the journal it stands on.
type Node struct {
	Agent *agent.Agent
	store *state.Store
}

// New opens the journal in cfg.Agent.StateDir and wires an agent. The driver and
// the transport stay the caller's: it closes them after [Node.Stop].
func New(ctx context.Context, cfg Config, d Driver, t rpc.Transport) (*Node, error) {
	store, err := state.Open(ctx, cfg.Agent.StateDir, cfg.State)
	if err != nil {
		return nil, err
	}
	a := agent.New(cfg.Agent, agent.Ports{Hypervisor: d, Bus: t, Network: vif.New(cfg.VIF, cfg.Network), Store: store})
	return &Node{Agent: a, store: store}, nil
}

// Start opens the agent; see [agent.Agent.Start]. When it fails the journal is closed.
func (n *Node) Start(ctx context.Context) error {
	if err := n.Agent.Start(ctx); err != nil {
		return errors.Join(err, n.store.Close())
	}
	return nil
}

// Stop ends the agent within seconds and closes the journal. Guests and
// peer-to-peer migrations go on.
func (n *Node) Stop(ctx context.Context) error {
	return errors.Join(n.Agent.Stop(ctx), n.store.Close())
}

// Logging gives a context whose green threads report panics and overruns to the
// logger that it carries.
func Logging(ctx context.Context) context.Context {
	return green.WithLogger(ctx, func(ctx context.Context, msg string, err error) {
		log := logkit.From(ctx)
		if errors.Is(err, green.ErrLoopOverrun) {
			log.Debug(msg, logkit.Err(err))
			return
		}
		log.Error(msg, logkit.Err(err))
	})
}
