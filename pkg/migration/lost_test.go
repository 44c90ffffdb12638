package migration_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// A request for post-copy that got lost leaves pre-copy running. The mark of the one-way
// door must go again, or nothing would ever end the migration of a guest that writes
// faster than the link carries.
func TestPostCopyThatDidNotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, configure("a", func(c *migration.Config) { c.OnStall = migration.StallAbort }),
			faults("a", fake.Fault{Method: "StartPostCopy", Err: errors.New("the connection was lost")}))
		defer w.close()
		inst := w.guest("a", busy)
		f := w.migrate(inst, api.MigrateArgs{BandwidthMiB: 100, Policy: "post_copy_now"})
		m, _ := f.wait(t)
		if m.Status != instance.MigrationCompleted || m.Mode != instance.ModePaused {
			t.Errorf("it ended as %s by %s (%v), want it completed by a pause", m.Status, m.Mode, m.Fault)
		}
		w.check(inst, "b")
	})
}

// A destination that owns a guest and could not let it go on tries that again; when the
// guest has moved on meanwhile it must not own it anew.
func TestOwnedGuestMovesOnBeforeItGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, faults("b", fake.Fault{Method: "Unpause", Err: errors.New("not now")}))
		defer w.close()
		w.setHook(func(p string) error { // ports that are slow let the guest be gone and forgotten before it is owned again
			if p == "b activate" {
				<-time.After(10 * time.Second)
			}
			return nil
		})
		inst := w.guest("a", busy)
		if m, err := w.migrate(inst, api.MigrateArgs{BandwidthMiB: 100, Policy: "pause_now"}).wait(t); err != nil {
			t.Fatalf("it ended as %s: %v", m.Status, err)
		}
		back := inst
		back.Host, back.Generation, back.VMState = "b", 2, instance.VMPaused
		f := w.migrate(back, api.MigrateArgs{Dest: "a", Migration: "44444444-4444-4444-8444-444444444444"})
		if m, err := f.wait(t); err != nil {
			t.Fatalf("the way back ended as %s: %v", m.Status, err)
		}
		w.sites["b"].host.Faults().Clear()
		<-time.After(time.Hour)
		back.VMState = instance.VMPaused
		w.check(back, "a")
	})
}

// A claim runs out while the source is silent, and the hypervisor can't be told to refuse
// the guest: then it may still come. Its ports stay until it can't, and when it comes it
// is owned.
func TestGuestComesWhileItsClaimIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, configure("b", func(c *migration.Config) { c.ClaimTimeout = 5 * time.Second }),
			faults("a", fake.Fault{Method: "Migrate", Delay: 20 * time.Second}),
			faults("b", fake.Fault{Method: "CancelIncoming", Err: errors.New("not now")}))
		defer w.close()
		inst := w.guest("a")
		f := w.migrate(inst, api.MigrateArgs{BandwidthMiB: 100})
		w.reach("a", migration.PhasePerform)
		w.sever(true)
		<-time.After(time.Minute)
		w.sever(false)
		w.sites["b"].host.Faults().Clear()
		if m, err := f.wait(t); m.Status != instance.MigrationCompleted {
			t.Errorf("it ended as %s (%v), want completed", m.Status, err)
		}
		<-time.After(time.Hour)
		w.check(inst, "b")
	})
}

// A guest that the migration has paused waits for the destination's word that it never ran
// there. One lost answer must not leave it standing still until people come.
func TestPausedGuestGoesOnWhenTheDestinationAnswersLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, faults("a", fake.Fault{Method: fake.PointPreCopy, Err: errors.New("the stream broke")}))
		defer w.close()
		inst := w.guest("a", busy)
		f := w.migrate(inst, api.MigrateArgs{BandwidthMiB: 100, Policy: "pause_now"})
		w.reach("a", migration.PhasePerform)
		<-time.After(time.Second)
		w.setHook(func(p string) error {
			if p == "a ⇒ b rollback" {
				return fault.New(fault.Unavailable, "test", p, "nobody answers")
			}
			return nil
		})
		<-time.After(5 * time.Minute) // longer than RollbackTimeout, shorter than SettleTimeout
		w.setHook(nil)
		if m, err := f.wait(t); m.Status != instance.MigrationFailed {
			t.Errorf("it ended as %s (%v), want failed", m.Status, err)
		}
		w.check(inst, "a")
	})
}

// An agent dies in the middle of its clean-up, and the guest is moved back before the
// clean-up is taken up again. What it finds is of a later generation than its own: no
// leftover, however it stands, and its ports and disks are in use.
func TestGuestThatCameBackIsNoLeftover(t *testing.T) {
	for name, change := range map[string]func(*fake.Driver, *world, instance.Instance) (instance.VMState, error){
		"it runs": func(*fake.Driver, *world, instance.Instance) (instance.VMState, error) { return instance.VMActive, nil },
		"it is paused": func(d *fake.Driver, w *world, i instance.Instance) (instance.VMState, error) {
			return instance.VMPaused, d.Pause(w.ctx, i.UUID)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				inst := w.moved()
				back := inst
				back.Host, back.Generation = "b", 2
				if m, err := w.migrate(back, api.MigrateArgs{Dest: "a", Migration: "44444444-4444-4444-8444-444444444444"}).wait(t); err != nil {
					t.Fatalf("the way back ended as %s: %v", m.Status, err)
				}
				a := w.sites["a"]
				state, err := change(a.living().driver, w, inst)
				if err != nil {
					t.Fatal(err)
				}
				back.VMState = state
				a.crash()
				w.mu.Lock() // as an agent left it that died before the clean-up's end was written
				rec := a.journal["source "+migrationID]
				rec.Phase, rec.Migration.Status, rec.Migration.Result = migration.PhaseClean, instance.MigrationPost, nil
				a.journal["source "+migrationID] = rec
				w.mu.Unlock()
				a.start()
				<-time.After(time.Hour)
				if m := a.last(migrationID); m.Status != instance.MigrationCompleted {
					t.Errorf("the clean-up ended as %s (%v), want completed", m.Status, m.Fault)
				}
				w.check(back, "a")
			})
		})
	}
}

// A guest that its policy paused stands still on both hosts when the reply of the finishing
// step is lost. An abort that comes when the job is over, after a restart, cancels nothing:
// the guest has arrived.
func TestAbortAfterTheJobIsNoFact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, faults("a", fake.Fault{Method: fake.PointFinish, After: true, Err: fault.New(fault.Unavailable, "", "", "gone")}))
		defer w.close()
		inst := w.guest("a", busy)
		w.migrate(inst, api.MigrateArgs{BandwidthMiB: 100, Policy: "pause_now"})
		w.reach("a", migration.PhasePerform)
		w.sites["a"].crash()
		<-time.After(5 * time.Minute) // the job ends without a witness
		w.sites["a"].start()
		<-time.After(100 * time.Millisecond) // before its second look at the job
		if err := w.sites["a"].living().source.Abort(w.ctx, inst.UUID, ""); err != nil {
			t.Fatal(err)
		}
		if m := w.ended("a", migrationID); m.Status != instance.MigrationCompleted {
			t.Errorf("it ended as %s (%v), want completed", m.Status, m.Fault)
		}
		w.check(inst, "b")
	})
}
