// Package simulate runs a fleet of agents on fake machines in one process: a
// thousand hypervisor hosts to test a controller against, without root and
// without QEMU. The agents are the real ones; only the machines are not.
package simulate

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"github.com/compute-agent/compute-agent/internal/compose"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/vif"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// startWorkers bounds how many hosts start at the same time.
const startWorkers = 16

// Config describes a fleet. Hosts and Dial are required.
type Config struct {
	// Hosts are the names of the hosts.
	Hosts []string
	// StateDir holds one journal directory a host, named after it.
	StateDir string
	// Dial connects one host to the bus. The fleet closes what it gives.
	Dial func(ctx context.Context, host string) (rpc.Transport, error)
	// Bridges are those that every host has; br-int0 if empty.
	Bridges []string
	// Fake is what the machines are like; its Name is set for each host.
	Fake fake.Config
	// Keep lets machines and their guests outlive the process, below StateDir.
	Keep bool
	// Node is what the agents are like; host, state directory and network are set
	// for each host.
	Node compose.Config
}

// Fleet is a number of running agents. Its methods may be called from any goroutine.
type Fleet struct {
	World *fake.World
	hosts map[string]*Host
	names []string
}

// Host is one simulated machine with its agent.
type Host struct {
	Name    string
	Machine *fake.Host         // make trouble here; its guests outlive the agent
	Network *vif.MemoryNetwork // its taps and bridges

	// Node is what the host's agent is like from its next start on; Config.Node at first.
	Node compose.Config

	// Committed, if set before Start, is called with the number of each transaction of
	// that life's journal (1, 2, …) once it is on disk and before anybody learns of it.
	Committed func(n int)

	// Trouble, if set before Start, is asked before each transaction of the journal; its
	// error is the disk's.
	Trouble func() error

	cfg  Config
	life atomic.Pointer[life]
	node *compose.Node
}

// Start starts all agents and returns when each is ready; when one fails, all are
// stopped.
func Start(ctx context.Context, cfg Config) (*Fleet, error) {
	f, err := New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := f.Start(ctx); err != nil {
		return nil, err
	}
	return f, nil
}

// New makes the machines of a fleet, which ctx ends; their agents are started by
// [Fleet.Start] or [Host.Start].
func New(ctx context.Context, cfg Config) (*Fleet, error) {
	if len(cfg.Hosts) == 0 || cfg.Dial == nil {
		return nil, fault.New(fault.InvalidArgument, "simulate", "", "name at least one host and a way to reach the bus")
	}
	if len(cfg.Bridges) == 0 {
		cfg.Bridges = []string{"br-int0"}
	}
	f := &Fleet{World: fake.NewWorld(ctx), hosts: map[string]*Host{}, names: cfg.Hosts}
	for _, name := range cfg.Hosts {
		h, err := f.add(cfg, name)
		if err != nil {
			return nil, err
		}
		f.hosts[name] = h
	}
	return f, nil
}

func (f *Fleet) add(cfg Config, name string) (*Host, error) {
	if f.hosts[name] != nil {
		return nil, fault.New(fault.InvalidArgument, "simulate", name, "two hosts have this name")
	}
	machine := cfg.Fake
	machine.Name = name
	if cfg.Keep {
		machine.Dir = filepath.Join(cfg.StateDir, rpc.EscapeHost(name), "machine")
	}
	m, err := fake.NewHost(f.World, machine)
	if err != nil {
		return nil, err
	}
	return &Host{Name: name, Machine: m, Network: vif.Memory(cfg.Bridges...), Node: cfg.Node, cfg: cfg}, nil
}

// Host gives one host, nil for an unknown name.
func (f *Fleet) Host(name string) *Host { return f.hosts[name] }

// each runs fn for every host, some at the same time, waits for all of them whatever
// becomes of ctx, and joins the errors.
func (f *Fleet) each(ctx context.Context, fn func(context.Context, *Host) error) error {
	ctx = context.WithoutCancel(ctx)
	pool := green.NewPool(startWorkers)
	threads := make([]*green.Thread[struct{}], 0, len(f.names))
	for _, name := range f.names {
		h := f.hosts[name]
		if h == nil {
			continue
		}
		t, err := green.PoolSpawn(ctx, pool, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, fault.Wrap(fn(context.WithoutCancel(ctx), h), "simulate", h.Name)
		})
		if err != nil {
			return err
		}
		threads = append(threads, t)
	}
	var errs []error
	for _, t := range threads {
		_, err := t.Wait(ctx)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Start starts all agents and returns when each is ready; when one fails, or ctx ends
// before, all are stopped. It is not ctx that ends them afterwards.
func (f *Fleet) Start(ctx context.Context) error {
	err := f.each(ctx, func(_ context.Context, h *Host) error { return h.Start(ctx) })
	if err != nil {
		return errors.Join(err, f.Stop(ctx))
	}
	return nil
}

// Stop stops all agents.
func (f *Fleet) Stop(ctx context.Context) error {
	return f.each(ctx, func(ctx context.Context, h *Host) error { return h.Stop(ctx) })
}

// Start starts the host's agent on what its machine and its journal hold. A host
// that runs is left alone.
func (h *Host) Start(ctx context.Context) error {
	if h.node != nil {
		return nil
	}
	bus, err := h.cfg.Dial(ctx, h.Name)
	if err != nil {
		return err
	}
	l := &life{bus: bus, driver: h.Machine.Open(), committed: h.Committed, trouble: h.Trouble}
	h.life.Store(l)
	cfg := h.Node
	cfg.Network = network{h.Network, l}
	cfg.State.Trouble, cfg.State.Written = l.write, l.wrote
	cfg.Agent.Host, cfg.Agent.Driver = h.Name, "fake"
	cfg.Agent.MachineID = "fake-" + h.Name
	cfg.Agent.StateDir = filepath.Join(h.cfg.StateDir, rpc.EscapeHost(h.Name))
	node, err := compose.New(ctx, cfg, l.driver, bus)
	if err == nil {
		err = node.Start(ctx)
	}
	if err != nil {
		return errors.Join(err, l.driver.Close(), bus.Close())
	}
	h.node = node
	return nil
}

// Stop stops the host's agent; its guests run on.
func (h *Host) Stop(ctx context.Context) error {
	if h.node == nil {
		return nil
	}
	l := h.life.Load()
	err := errors.Join(h.node.Stop(ctx), l.driver.Close(), l.bus.Close())
	h.node = nil
	return err
}

// Kill is the death of the host's agent, as by SIGKILL: from now on it writes nothing,
// says nothing and touches nothing. Its guests, and their migrations, go on. It may be
// called from anywhere, also from Committed. Stop then removes the body, without an
// error worth hearing, and Start begins a new life on the same journal.
func (h *Host) Kill() {
	if l := h.life.Load(); l != nil {
		l.kill()
	}
}

// Killed reports whether the present life was ended by Kill.
func (h *Host) Killed() bool {
	l := h.life.Load()
	return l != nil && l.dead.Load()
}

// Status is the agent's line for the service manager; empty when it is stopped.
func (h *Host) Status() string {
	if h.node == nil {
		return ""
	}
	return h.node.Agent.Status()
}

// SlotsLeft tells how many migrations may begin to leave and to arrive here; 0 when the
// agent is stopped.
func (h *Host) SlotsLeft() (out, in int) {
	if h.node == nil {
		return 0, 0
	}
	return h.node.Agent.SlotsLeft()
}

// Names makes n host names: base-1 … base-n; base alone for one.
func Names(base string, n int) []string {
	if n <= 1 {
		return []string{base}
	}
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", base, i+1)
	}
	return names
}
