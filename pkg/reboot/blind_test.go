package reboot_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/reboot"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// counting is a rig that counts the looks at its guest and calls enough when there are
// too many: a wait that never sleeps would stop virtual time for good.
type counting struct {
	*rig
	looks  int
	enough func()
}

func (c *counting) Lookup(ctx context.Context, id string) (virt.Domain, error) {
	if c.looks++; c.looks > 5000 {
		c.enough()
	}
	return c.Driver.Lookup(ctx, id)
}

// A round of asking that is due while the hypervisor is away waits: it does not make the
// wait spin.
func TestNoSpinWhileARoundCanNotBegin(t *testing.T) {
	withRig(t, map[string]string{"fake.acpi": "ignores"}, func(r *rig) {
		ctx, cancel := context.WithCancelCause(r.ctx())
		defer cancel(nil)
		m := &counting{rig: r, enough: func() { cancel(errors.New("it spins")) }}
		r.at = time.Now()
		r.later(5*time.Second, func() {
			r.host.Disconnect()
			r.later(time.Minute, r.host.Reconnect)
		})
		_ = reboot.New(reboot.Config{}, m, r.nics).Stop(ctx, id, true)
		if context.Cause(ctx) != nil {
			t.Errorf("%v: %d looks at the guest within %v", context.Cause(ctx), m.looks, time.Since(r.at))
		}
	})
}
