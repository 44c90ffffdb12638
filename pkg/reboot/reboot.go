package reboot

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Hypervisor is what a reboot needs of a driver; see virttest.Driver.
type Hypervisor interface {
	Lookup(ctx context.Context, id string) (virt.Domain, error)
	Shutdown(ctx context.Context, id string, how virt.ShutdownMethod) error
	Start(ctx context.Context, id string) error
	Destroy(ctx context.Context, id string) error
	Define(ctx context.Context, d virt.Definition) error
	Subscribe(fn func(virt.Event)) (cancel func())
}

// Plugger wires ports on this host; both methods are idempotent.
type Plugger interface {
	Plug(ctx context.Context, instanceID string, ports []instance.Port) error
	Unplug(ctx context.Context, instanceID string, ports []instance.Port) error
}

// Config bounds every wait. A zero field means its default.
type Config struct {
	Methods               []virt.ShutdownMethod // how a guest is asked to go off, in this order; acpi, agent
	MethodTimeout         time.Duration         // how long a guest may ignore one method before the next is tried too; 30 s
	CallTimeout           time.Duration         // one short call to the hypervisor (lookup, shutdown, define); 30 s
	WaitSoftReboot        time.Duration         // until a soft reboot becomes a hard one (nova's wait_soft_reboot_seconds); 120 s. Negative: at once
	StartTimeout          time.Duration         // a start, until the guest runs; 120 s
	DestroyTimeout        time.Duration         // one destroy; 60 s
	HardRebootTimeout     time.Duration         // the whole of a hard reboot; 600 s
	ShutdownTimeout       time.Duration         // a clean power off, before the power is taken (nova's shutdown_timeout); 60 s. Negative: never ask
	ShutdownRetryInterval time.Duration         // between its requests (nova's shutdown_retry_interval); 10 s
	Interval              time.Duration         // between two looks at the guest; 0.5 s
	MaxRetry              int                   // tries of a start or a destroy after the first; 2. Negative: none
	RetryFirst            time.Duration         // the first sleep between tries, the next ones grow; 1 s
}

// The types of reboot, by nova's names.
const (
	Soft = "SOFT"
	Hard = "HARD"
)

// Result tells what really happened.
type Result struct {
	Type   string        // SOFT or HARD
	Reason string        // why this type, one sentence
	Took   time.Duration // from the call to the running guest
}

// Rebooter restarts and stops guests. It keeps nothing between two calls.
type Rebooter struct {
	cfg     Config
	machine Hypervisor
	plugger Plugger
}

// New makes a Rebooter on a hypervisor and the host's ports.
func New(cfg Config, h Hypervisor, p Plugger) *Rebooter {
	return &Rebooter{cfg: cfg.WithDefaults(), machine: h, plugger: p}
}

// WithDefaults fills what was left open.
func (c Config) WithDefaults() Config {
	if c.Methods == nil {
		c.Methods = []virt.ShutdownMethod{virt.ShutdownACPI, virt.ShutdownAgent}
	}
	for _, f := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&c.MethodTimeout, 30 * time.Second},
		{&c.CallTimeout, 30 * time.Second},
		{&c.WaitSoftReboot, 120 * time.Second},
		{&c.StartTimeout, 120 * time.Second},
		{&c.DestroyTimeout, 60 * time.Second},
		{&c.HardRebootTimeout, 600 * time.Second},
		{&c.ShutdownTimeout, 60 * time.Second},
		{&c.ShutdownRetryInterval, 10 * time.Second},
		{&c.Interval, 500 * time.Millisecond},
		{&c.RetryFirst, time.Second},
	} {
		if *f.value == 0 {
			*f.value = f.fallback
		}
	}
	if c.MaxRetry == 0 {
		c.MaxRetry = 2
	}
	c.MaxRetry = max(c.MaxRetry, 0)
	return c
}
