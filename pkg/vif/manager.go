package vif

import (
	"context"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// Config says how patiently ports are wired. A zero field means its default.
type Config struct {
	MaxRetry         int           // tries of one port after the first; 30 (nova's live_migration_retry_count). Negative: none
	RetryFirst       time.Duration // the first sleep between tries, the next ones grow; 200 ms
	RetryLimit       time.Duration // and end here; 5 s
	TryTimeout       time.Duration // one try of one port, and one look; 10 s
	UndoTimeout      time.Duration // removing what a failed Plug had made; 30 s
	PluggingTimeout  time.Duration // until all ports are ready (nova's vif_plugging_timeout); 300 s. Negative: look once, wait for nobody
	PluggingNotFatal bool          // go on when they are not (nova's vif_plugging_is_fatal = false)
	Interval         time.Duration // how often Ready looks at the devices; 0.5 s
	Workers          int           // port updates at the same time; 8
	// OnChange is told of every change of a port's state on this host. It must not block. Optional.
	OnChange func(instanceID string, s instance.PortStatus)
}

// WithDefaults fills what was left open.
func (c Config) WithDefaults() Config {
	c.MaxRetry = max(or(c.MaxRetry, 30), 0)
	c.RetryFirst = or(c.RetryFirst, 200*time.Millisecond)
	c.RetryLimit = or(c.RetryLimit, 5*time.Second)
	c.TryTimeout = or(c.TryTimeout, 10*time.Second)
	c.UndoTimeout = or(c.UndoTimeout, 30*time.Second)
	c.PluggingTimeout = or(c.PluggingTimeout, 300*time.Second)
	c.Interval = or(c.Interval, 500*time.Millisecond)
	c.Workers = or(c.Workers, 8)
	return c
}

// or gives v, or fallback for the zero value.
func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

/*
Manager wires the ports of this host. What it remembers of a port:

	                Plug, Update              made
	(unplugged) ───────────────▶ plugging ─────────▶ plugged ──┐
	     ▲                          │  ▲                 │     │ Update,
	     │                 for good │  └─────────────────┼─────┘ Plug again
	     │                          ▼                    │
	     └──────── Unplug ─────── failed ◀── Update ─────┘
	     └──────── Unplug ───────────────────────────────┘

The kernel's devices are the truth; the memory is for Status, and Adopt fills
it from the labels. All methods are safe for concurrent use; two that concern
one port take turns.
*/
type Manager struct {
	cfg     Config
	net     Network
	updates green.KeyedQueue[updateKey, instance.Port]
	turns   turns

	mu      sync.Mutex
	ports   map[string]*entry // by port id: plugged, being plugged, or failed here
	heard   heard
	waiters map[chan struct{}]bool // each is told of external events
}

// entry is what is remembered of one port.
type entry struct {
	instance string
	status   instance.PortStatus
}

// New makes a Manager on a network. It does nothing before it is asked.
func New(cfg Config, n Network) *Manager {
	return &Manager{cfg: cfg.WithDefaults(), net: n, ports: map[string]*entry{}, waiters: map[chan struct{}]bool{}}
}

// Status tells how the ports are wired here, from memory: it never waits.
func (m *Manager) Status(instanceID string, ports []instance.Port) []instance.PortStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]instance.PortStatus, 0, len(ports))
	for _, p := range ports {
		s := instance.PortStatus{Port: p, State: instance.PortUnplugged}
		if e := m.ports[p.ID]; e != nil && e.instance == instanceID {
			s.State, s.Device, s.Fault = e.status.State, e.status.Device, e.status.Fault
		}
		out = append(out, s)
	}
	return out
}

// Taps gives every tap of ours on this host, e.g. to find those whose instance is gone.
func (m *Manager) Taps(ctx context.Context) ([]Tap, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.TryTimeout)
	defer cancel()
	return m.net.Taps(ctx)
}

// Adopt learns from the labels of the taps which ports are plugged here. Call it
// once at the start, so that Status and Update know what an earlier run made.
func (m *Manager) Adopt(ctx context.Context) error {
	taps, err := m.Taps(ctx)
	if err != nil {
		return fault.Wrap(err, "adopt", "ports")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range taps {
		if m.ports[t.Port] == nil {
			s := instance.PortStatus{Port: instance.Port{ID: t.Port}, State: instance.PortPlugged, Device: t.Name}
			m.ports[t.Port] = &entry{instance: t.Instance, status: s}
		}
	}
	return nil
}

// note remembers a port's state and tells OnChange when it is another one.
func (m *Manager) note(instanceID string, p instance.Port, state instance.PortState, err error) {
	s := instance.PortStatus{Port: p, State: state, Fault: fault.Wire(err)}
	m.mu.Lock()
	old, known := m.ports[p.ID]
	same := !known && state == instance.PortUnplugged
	if known {
		same = old.instance == instanceID && old.status.State == state && old.status.Port == p && text(old.status.Fault) == text(s.Fault)
	}
	if state == instance.PortUnplugged {
		delete(m.ports, p.ID)
	} else {
		s.Device = p.Device()
		m.ports[p.ID] = &entry{instance: instanceID, status: s}
	}
	m.mu.Unlock()
	if !same && m.cfg.OnChange != nil {
		m.cfg.OnChange(instanceID, s)
	}
}

// text is what a fault says; empty for none.
func text(e *fault.Error) string {
	if e == nil {
		return ""
	}
	return e.Error()
}

// plugged reports whether the port of that instance is on this host, in whatever state.
func (m *Manager) plugged(instanceID, port string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.ports[port]
	return e != nil && e.instance == instanceID
}
