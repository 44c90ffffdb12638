package migration_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// course is a migration that the sweeps strike.
type course struct {
	name   string
	args   api.MigrateArgs
	guest  func(*instance.Spec)
	paused bool
	abort  bool // two seconds after perform began
}

var courses = []course{
	{name: "plain", args: slow},
	{name: "aborted", args: slow, abort: true},
	{name: "paused guest", args: slow, paused: true},
	{name: "paused by us", args: api.MigrateArgs{BandwidthMiB: 100, Policy: "pause_now"}, guest: busy},
	{name: "post-copy", args: api.MigrateArgs{BandwidthMiB: 100, Policy: "post_copy_now"}, guest: busy},
}

// begin starts the guest and its migration.
func (c course) begin(w *world) (instance.Instance, *inFlight) {
	w.t.Helper()
	var changes []func(*instance.Spec)
	if c.guest != nil {
		changes = append(changes, c.guest)
	}
	inst := w.guest("a", changes...)
	if c.paused {
		if err := w.sites["a"].living().driver.Pause(w.ctx, inst.UUID); err != nil {
			w.t.Fatal(err)
		}
		inst.VMState = instance.VMPaused
	}
	if c.abort {
		time.AfterFunc(2*time.Second, func() {
			if a := w.sites["a"].living(); a != nil {
				_ = a.source.Abort(w.ctx, inst.UUID, "") // a dead agent hears nothing
			}
		})
	}
	return inst, w.migrate(inst, c.args)
}

// points lists every side effect and message of one migration that nothing strikes.
func (c course) points(t *testing.T) []string {
	t.Helper()
	var seen []string
	known := map[string]bool{}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.setHook(func(p string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if !known[p] {
				known[p] = true
				seen = append(seen, p)
			}
			return nil
		})
		_, f := c.begin(w)
		_, _ = f.wait(t)
	})
	return seen
}

// end asserts the invariants after whatever happened, for the outcome that was reached.
func (w *world) end(inst instance.Instance) instance.Migration {
	w.t.Helper()
	m := w.ended("a", migrationID)
	<-time.After(time.Hour) // the claims have run out too
	switch m.Status {
	case instance.MigrationCompleted:
		w.check(inst, "b")
	case instance.MigrationFailed, instance.MigrationCancelled:
		w.check(inst, "a")
	default:
		w.t.Errorf("the migration ended as %s: %v", m.Status, m.Fault)
	}
	return m
}

// TestCrashAtEveryPoint kills one agent, or both, just before each side effect and each
// message of a migration, and starts them again while the job still runs or when it is
// long over.
func TestCrashAtEveryPoint(t *testing.T) {
	for _, c := range courses {
		for _, point := range c.points(t) {
			for _, victims := range []string{"a", "b", "ab"} {
				for _, away := range []time.Duration{time.Second, time.Minute} {
					t.Run(fmt.Sprintf("%s/%s/%s/%v", c.name, point, victims, away), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { crashAt(t, c, point, victims, away) })
					})
				}
			}
		}
	}
}

func crashAt(t *testing.T, c course, point, victims string, away time.Duration) {
	t.Helper()
	w := newWorld(t)
	defer w.close()
	struck := false
	w.setHook(func(p string) error {
		w.mu.Lock()
		if struck || p != point {
			w.mu.Unlock()
			return nil
		}
		struck = true
		w.mu.Unlock()
		for _, v := range victims {
			w.sites[string(v)].crash()
		}
		time.AfterFunc(away, func() {
			for _, v := range victims {
				w.sites[string(v)].start()
			}
		})
		return nil // the dead do nothing
	})
	inst, f := c.begin(w)
	<-f.done
	if w.sites["a"].last(migrationID).UUID == "" { // it died before it was journaled: it never was
		<-time.After(away + time.Second)
		w.check(inst, "a")
		return
	}
	w.end(inst)
	if !struck {
		t.Error("the point was not reached")
	}
}

// TestFailAtEveryPoint has each side effect and each message fail once, and fail for a
// minute; each reply is lost as well.
func TestFailAtEveryPoint(t *testing.T) {
	for _, c := range courses {
		for _, point := range c.points(t) {
			for _, long := range []time.Duration{0, time.Minute} {
				t.Run(fmt.Sprintf("%s/%s/%v", c.name, point, long), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { failAt(t, c, point, long) })
				})
			}
		}
	}
}

func failAt(t *testing.T, c course, point string, long time.Duration) {
	t.Helper()
	w := newWorld(t)
	defer w.close()
	var since time.Time
	w.setHook(func(p string) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if p != point || !since.IsZero() && time.Since(since) >= long {
			return nil
		}
		if since.IsZero() {
			since = time.Now()
		}
		return fault.New(fault.Unavailable, "test", point, "it fails this time")
	})
	inst, f := c.begin(w)
	<-f.done
	if w.sites["a"].last(migrationID).UUID == "" {
		w.check(inst, "a")
		return
	}
	w.end(inst)
}

// A destination's agent that dies while it prepares never answers. Its source finds out
// by asking, long before the time for preparing is over, and undoes; also when the agent is
// back before it has reached its hypervisor.
func TestDestinationDiesWhilePreparing(t *testing.T) {
	for _, c := range []struct {
		away time.Duration
		deaf int // questions that the hypervisor does not answer afterwards
	}{{away: time.Second}, {away: time.Minute}, {away: time.Second, deaf: 2}} {
		away := c.away
		t.Run(fmt.Sprintf("%v, %d unanswered", away, c.deaf), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				w.silent = true
				var once sync.Once
				w.setHook(func(p string) error {
					if p == "b ready" {
						once.Do(func() {
							w.sites["b"].crash()
							time.AfterFunc(away, func() {
								if c.deaf > 0 {
									w.sites["b"].host.Faults().Add(fake.Fault{Method: "Lookup", Err: errors.New("not connected"), Times: c.deaf})
								}
								w.sites["b"].start()
							})
						})
					}
					return nil
				})
				inst := w.guest("a")
				began := time.Now()
				m, err := w.migrate(inst, api.MigrateArgs{}).wait(t)
				took := time.Since(began)
				if m.Status != instance.MigrationFailed || fault.KindOf(err) != fault.Unavailable || took > away+time.Minute {
					t.Errorf("it ended as %s after %v: %v; want failed within a minute of the restart", m.Status, took, err)
				}
				w.setHook(nil)
				<-time.After(time.Hour)
				w.check(inst, "a")
			})
		})
	}
}

// An undoing that can't be done is tried again less and less often, and done when it can be.
func TestUndoingIsTriedLessAndLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		var once sync.Once
		var tries atomic.Int32
		w.setHook(func(p string) error {
			switch p {
			case "b ready":
				once.Do(func() {
					w.sites["b"].crash()
					w.sites["b"].host.Faults().Add(fake.Fault{Method: "CancelIncoming", Err: errNo})
					w.sites["b"].start()
				})
			case "b save undo ready", "b save undo plug":
				tries.Add(1)
			}
			return nil
		})
		inst := w.guest("a")
		w.migrate(inst, api.MigrateArgs{})
		<-time.After(time.Hour)
		if n := tries.Load(); n < 60 || n > 150 {
			t.Errorf("within an hour it was tried %d times", n)
		}
		w.sites["b"].host.Faults().Clear()
		<-time.After(time.Minute)
		w.setHook(nil)
		w.check(inst, "a")
	})
}
