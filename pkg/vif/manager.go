package vif

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// Config says how patiently ports are wired. A zero field means its default.
type Config struct {
	MaxRetry         int           // tries of one port after the first; 30 (nova's live_migration_retry_count). Negative: none
	RetryFirst       time.Duration // the first sleep between tries, the next ones grow; 200 ms
	RetryLimit       time.Duration // and end here; 5 s
	TryTimeout       time.Duration // one try of one port, and one look; 10 s
	PluggingTimeout  time.Duration // until all ports are ready (nova's vif_plugging_timeout); 300 s. Negative: don't wait
	PluggingNotFatal bool          // go on when they are not (nova's vif_plugging_is_fatal = false)
	Interval         time.Duration // how often Ready looks at the devices; 0.5 s
	Workers          int           // port updates at the same time; 8
	// OnChange is told of every change of a port's state on this host. It must not block. Optional.
	OnChange func(instanceID string, s instance.PortStatus)
}

// Manager wires the ports of this host.
type Manager struct {
	cfg Config
	net Network
}

// New makes a Manager.
func New(cfg Config, n Network) *Manager { return &Manager{cfg: cfg, net: n} }

func notBuilt(what string) error { return fault.New(fault.Internal, what, "", "not built yet") }

// Plug makes the taps of the ports, final but silent. Each port is tried again on any transient
// error; when one fails for good, what this call made is removed again.
func (m *Manager) Plug(ctx context.Context, instanceID string, ports []instance.Port) error {
	return notBuilt("plug")
}

// Ready waits until the ports can carry traffic, at most PluggingTimeout.
func (m *Manager) Ready(ctx context.Context, instanceID string, ports []instance.Port) error {
	return notBuilt("ready")
}

// Activate lets the ports speak: the guest runs here now.
func (m *Manager) Activate(ctx context.Context, instanceID string, ports []instance.Port) error {
	return notBuilt("activate")
}

// Unplug removes the taps; what is gone already is success.
func (m *Manager) Unplug(ctx context.Context, instanceID string, ports []instance.Port) error {
	return notBuilt("unplug")
}

// Status tells how the ports are wired here, from memory.
func (m *Manager) Status(instanceID string, ports []instance.Port) []instance.PortStatus { return nil }

// Event takes what the network's owner says of a port (nova's network-vif-plugged and its kin) and
// keeps it for a waiter to come. It reports whether it was for a port.
func (m *Manager) Event(e api.ExternalEvent) bool { return false }

// Check gives every reason why the ports could not be plugged here; none: an empty slice. It changes nothing.
func (m *Manager) Check(ctx context.Context, ports []instance.Port) (reasons []string, err error) {
	return nil, notBuilt("check")
}

// Update has a plugged port brought to new values, by Run's workers; the newest wins.
func (m *Manager) Update(instanceID string, port instance.Port) {}

// Adopt learns from the labels of the taps which ports are plugged; call it once at the start.
func (m *Manager) Adopt(ctx context.Context) error { return notBuilt("adopt") }

// Taps gives every tap of ours on this host, e.g. to find those whose instance is gone.
func (m *Manager) Taps(ctx context.Context) ([]Tap, error) { return m.net.Taps(ctx) }

// Run serves updates until ctx ends and gives its cause.
func (m *Manager) Run(ctx context.Context) error { return notBuilt("run") }
