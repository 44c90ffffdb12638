package migration_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// A migration that waits is journaled when its limit is changed. One that is taken up
// from there has not begun to move: it takes one slot, and asks the hypervisor to move it.
func TestLimitedWhileItWaitedAndTakenUp(t *testing.T) {
	for _, phase := range []migration.Phase{migration.PhaseQueue, migration.PhaseCheck} {
		t.Run(string(phase), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, configure("a", func(c *migration.Config) {
					if phase == migration.PhaseQueue {
						c.OutboundSlots = -1 // none: it waits
					}
				}))
				defer w.close()
				inst, a := w.guest("a"), w.sites["a"]
				if phase == migration.PhaseCheck {
					w.full(time.Now(), 5*time.Second)
				}
				f := w.migrate(inst, api.MigrateArgs{BandwidthMiB: 1})
				w.reach("a", phase)
				if err := a.living().source.SetBandwidth(w.ctx, inst.UUID, "", 1000); err != nil {
					t.Errorf("SetBandwidth: %v", err)
				}
				a.crash()
				a.cfg.OutboundSlots = 2
				a.start()
				if m := w.ended("a", f.id); m.Status != instance.MigrationCompleted {
					t.Errorf("it ended as %s: %v", m.Status, m.Fault)
				}
				w.check(inst, "b")
				if left := a.living().source.SlotsLeft(); left != 2 {
					t.Errorf("%d outbound slots are free, want 2", left)
				}
			})
		})
	}
}
