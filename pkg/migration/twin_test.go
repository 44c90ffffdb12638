package migration_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/virt"
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

// twins makes a world whose source lets its guest go on when the reply of the finishing
// step is lost, and cuts the agents off from one another at that moment.
func twins(t *testing.T, c ...option) (*world, instance.Instance, *inFlight) {
	t.Helper()
	w := newWorld(t, append(c, faults("a", fake.Fault{
		Method: fake.PointFinish, After: true, Times: 1, Err: fault.New(fault.Unavailable, "", "", "gone"),
	}))...)
	w.sites["a"].host.Twins(true)
	inst := w.guest("a")
	f := w.migrate(inst, slow)
	w.reach("a", migration.PhasePerform)
	w.sever(true)
	return w, inst, f
}

// running names the hosts on which the guest runs.
func (w *world) running(id string) (on []string) {
	for _, name := range []string{"a", "b"} {
		if d, here := w.sites[name].host.Look(id); here && d.State == virt.Running {
			on = append(on, name)
		}
	}
	return on
}

// The destination is silent when the outcome is judged, and a source that runs looks like a
// migration that failed. When the destination answers, to be told to undo, that it has the
// guest, the source's copy is stopped and the migration completed.
func TestTwinIsFoundWhenTheDestinationAnswersLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, inst, f := twins(t)
		defer w.close()
		<-time.After(time.Minute) // within RollbackTimeout
		if on := w.running(inst.UUID); len(on) != 2 {
			t.Fatalf("it runs on %v, want both", on)
		}
		w.sever(false)
		if m, err := f.wait(t); err != nil || m.Status != instance.MigrationCompleted {
			t.Errorf("it ended as %s: %v", m.Status, err)
		}
		w.check(inst, "b")
	})
}

// A destination that is silent for longer, and may have been told to let the guest run,
// leaves the outcome unknown; later facts decide. Without the switch-over the source would
// know: then it ends as failed.
func TestSilentDestinationMayHaveTheTwin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, inst, f := twins(t)
		defer w.close()
		if m, _ := f.wait(t); m.Status != instance.MigrationError {
			t.Fatalf("it ended as %s, want error: nobody can know", m.Status)
		}
		w.sever(false)
		s := w.sites["a"].living().source
		w.wantLook(migration.SightRunning, migration.SightRunning, migration.VerdictUnknown)
		if err := s.Fence(w.ctx, w.record()); err != nil {
			t.Fatal(err)
		}
		if m, err := w.settle(migration.VerdictCompleted, false); err != nil || m.Status != instance.MigrationCompleted {
			t.Errorf("it ended as %s: %v", m.Status, err)
		}
		w.check(inst, "b")
	})
}

// A stream that breaks before the switch-over leaves no doubt: however silent the
// destination is, it can't have the guest.
func TestSilentDestinationBeforeTheSwitchOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, faults("a", fake.Fault{Method: fake.PointPreCopy, Err: errNo}))
		defer w.close()
		inst := w.guest("a")
		f := w.migrate(inst, slow)
		w.reach("a", migration.PhasePerform)
		w.sever(true)
		if m, _ := f.wait(t); m.Status != instance.MigrationFailed {
			t.Errorf("it ended as %s (%v), want failed", m.Status, m.Fault)
		}
		w.sever(false)
		<-time.After(2 * time.Hour) // the claim has run out
		w.check(inst, "a")
	})
}

// What the owner's guest did since its arrival does not make the older copy the better one,
// unless it crashed: that is for people to decide.
func TestTwinOfAGuestThatDidSomethingSince(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(w *world, d *fake.Driver, id string) error
		want instance.MigrationStatus
	}{
		"it was paused":       {func(w *world, d *fake.Driver, id string) error { return d.Pause(w.ctx, id) }, instance.MigrationCompleted},
		"it was switched off": {func(w *world, d *fake.Driver, id string) error { return d.Destroy(w.ctx, id) }, instance.MigrationCompleted},
		"it was started anew": {func(w *world, d *fake.Driver, id string) error {
			return errors.Join(d.Destroy(w.ctx, id), d.Define(w.ctx, virt.Definition{Spec: spec(), Generation: 2}), d.Start(w.ctx, id))
		}, instance.MigrationCompleted},
		"it crashed":             {func(w *world, _ *fake.Driver, id string) error { return w.sites["b"].host.Crash(id) }, instance.MigrationError},
		"it crashed and is kept": {func(w *world, _ *fake.Driver, id string) error { return w.sites["b"].host.Panic(id) }, instance.MigrationError},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, inst, f := twins(t)
				defer w.close()
				<-time.After(time.Minute)
				if err := c.do(w, w.sites["b"].living().driver, inst.UUID); err != nil {
					t.Fatal(err)
				}
				w.sever(false)
				m, _ := f.wait(t)
				if m.Status != c.want {
					t.Errorf("it ended as %s (%v), want %s", m.Status, m.Fault, c.want)
				}
				a, here := w.sites["a"].host.Look(inst.UUID)
				if c.want == instance.MigrationCompleted && here || c.want != instance.MigrationCompleted && a.State != virt.Running {
					t.Errorf("the older copy: %t, %s (%s)", here, a.State, a.Reason)
				}
			})
		})
	}
}

// An agent that is restarted amid a frozen undoing goes on with the verdict it had.
func TestRestartWhileFrozenInTheUndoing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, faults("a", fake.Fault{Method: fake.PointFinish, Times: 1, Err: fault.New(fault.Unavailable, "", "", "gone")}))
		defer w.close()
		w.sites["a"].host.Twins(true)
		inst := w.guest("a")
		f := w.migrate(inst, slow)
		w.reach("a", migration.PhasePerform)
		w.sever(true)
		if m, _ := f.wait(t); m.Status != instance.MigrationError {
			t.Fatalf("it ended as %s, want error: nobody can know", m.Status)
		}
		w.sites["a"].crash()
		w.sever(false)
		w.sites["a"].start()
		<-time.After(2 * time.Hour)
		if m := w.sites["a"].last(migrationID); m.Status != instance.MigrationFailed {
			t.Errorf("it ended as %s (%v), want failed: the guest never arrived", m.Status, m.Fault)
		}
		w.check(inst, "a")
	})
}

// A destination that has said once that it owns the guest never takes that back: when it is
// silent afterwards, nobody knows here whether the copy was stopped and the agent was started
// anew, the migration has not failed. Later facts decide.
func TestOwnedOnceIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := fault.New(fault.Unavailable, "", "", "gone")
		w := newWorld(t, faults("a", fake.Fault{Method: fake.PointFinish, After: true, Times: 1, Err: lost}), faults("a", fake.Fault{Method: "Pause", After: true, Err: lost}))
		defer w.close()
		a := w.sites["a"]
		a.host.Twins(true)
		inst := w.guest("a")
		w.migrate(inst, slow)
		for !slices.Contains(w.running(inst.UUID), "b") {
			<-time.After(10 * time.Millisecond)
		}
		<-time.After(70 * time.Millisecond) // it has asked
		w.sever(true)
		a.crash()
		a.start()
		<-time.After(time.Hour)
		if m := a.last(migrationID); m.Status != instance.MigrationError {
			t.Fatalf("it ended as %s, want error: the destination has the guest", m.Status)
		}
		w.sever(false)
		w.wantLook(migration.SightPaused, migration.SightRunning, migration.VerdictCompleted)
		if m, err := w.settle(migration.VerdictCompleted, false); err != nil || m.Status != instance.MigrationCompleted {
			t.Errorf("it ended as %s: %v", m.Status, err)
		}
		w.check(inst, "b")
	})
}
