package migration_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// points lists every side effect and message of one migration that goes well.
func points(t *testing.T, args api.MigrateArgs, prepare func(*world)) []string {
	t.Helper()
	var seen []string
	known := map[string]bool{}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		inst := w.guest("a")
		if prepare != nil {
			prepare(w)
		}
		w.setHook(func(p string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if !known[p] {
				known[p] = true
				seen = append(seen, p)
			}
			return nil
		})
		_, _ = w.migrate(inst, args).wait(t)
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
	args := api.MigrateArgs{BandwidthMiB: 100} // 5 s
	for _, point := range points(t, args, nil) {
		for _, victims := range []string{"a", "b", "ab"} {
			for _, away := range []time.Duration{time.Second, time.Minute} {
				t.Run(fmt.Sprintf("%s/%s/%v", point, victims, away), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { crashAt(t, args, point, victims, away) })
				})
			}
		}
	}
}

func crashAt(t *testing.T, args api.MigrateArgs, point, victims string, away time.Duration) {
	t.Helper()
	w := newWorld(t)
	defer w.close()
	inst := w.guest("a")
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
	f := w.migrate(inst, args)
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
	args := api.MigrateArgs{BandwidthMiB: 100}
	for _, point := range points(t, args, nil) {
		for _, long := range []time.Duration{0, time.Minute} {
			t.Run(fmt.Sprintf("%s/%v", point, long), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { failAt(t, args, point, long) })
			})
		}
	}
}

func failAt(t *testing.T, args api.MigrateArgs, point string, long time.Duration) {
	t.Helper()
	w := newWorld(t)
	defer w.close()
	inst := w.guest("a")
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
	f := w.migrate(inst, args)
	<-f.done
	if w.sites["a"].last(migrationID).UUID == "" {
		w.check(inst, "a")
		return
	}
	w.end(inst)
}
