package agent

import (
	"context"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/reboot"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Hypervisor is all that the agent and the rooms below it ask of a driver; every
// method keeps the promises of virttest.Driver.
type Hypervisor interface {
	migration.Hypervisor
	reboot.Hypervisor
	Reader
	Saver
}

// Reader tells what is there.
type Reader interface {
	List(ctx context.Context) ([]virt.Domain, error)
	Console(ctx context.Context, id string, n int) ([]byte, error)
	Stats(ctx context.Context, id string) (virt.Stats, error)
	Host(ctx context.Context) (virt.Host, error)
}

// Saver saves a guest's memory and starts it from there.
type Saver interface {
	Save(ctx context.Context, id string) error
	Restore(ctx context.Context, id string) error
}

// Network wires ports on this host; pkg/vif's Manager.
type Network interface {
	migration.Plugger
	// Status gives the ports with their state on this host.
	Status(instanceID string, ports []instance.Port) []instance.PortStatus
	// Event takes an external event; false: it was for no port that is known.
	Event(e api.ExternalEvent) bool
	// Adopt learns at the start which ports are plugged already.
	Adopt(ctx context.Context) error
	// Run serves the network's own work until ctx ends.
	Run(ctx context.Context) error
}

// Bus is the transport as the agent uses it: towards controllers and towards peers.
type Bus interface {
	rpc.Agent
	Call(ctx context.Context, host string, m rpc.Message) ([]byte, error)
	OnState(fn func(connected bool)) (cancel func())
}
