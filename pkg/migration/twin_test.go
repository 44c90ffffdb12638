package migration_test

import (
	"sync"
	"testing"
	"testing/synctest"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// libvirt's source takes a lost reply of the finishing step for a failure and lets its
// guest go on, while the destination's runs already: the kill matrix of the lab saw it.
// The destination has committed, so the copy on the source is stopped and removed,
// whether it is seen before the outcome is known or only while cleaning up.
func TestTwinOnTheSourceIsStopped(t *testing.T) {
	for name, early := range map[string]bool{"before the outcome is known": true, "while cleaning up": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lost := fake.Fault{Method: fake.PointFinish, After: true, Err: fault.New(fault.Unavailable, "", "", "gone")}
				w := newWorld(t, faults("a", lost))
				defer w.close()
				inst := w.guest("a")
				var once sync.Once
				w.setHook(func(p string) (err error) {
					if p == "a ⇒ b post" {
						once.Do(func() {
							if err := w.sites["a"].living().driver.Unpause(w.ctx, inst.UUID); err != nil {
								t.Errorf("the twin does not run: %v", err)
							}
							if early {
								err = errNo // so that both hosts are looked at again
							}
						})
					}
					return err
				})
				m, err := w.migrate(inst, slow).wait(t)
				if err != nil || m.Status != instance.MigrationCompleted {
					t.Errorf("it ended as %s: %v; want completed", m.Status, err)
				}
				w.setHook(nil)
				w.check(inst, "b")
			})
		})
	}
}
