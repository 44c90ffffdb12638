package migration_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// full has b answer for a while that its slots are taken, and wants to be asked again
// ten seconds later.
func (w *world) full(since time.Time, long time.Duration) {
	w.setHook(func(p string) error {
		if p != "a ⇒ b check" || time.Since(since) >= long {
			return nil
		}
		return fault.New(fault.Busy, "test", "b", "all slots are taken").WithDetail("retry_after_seconds", 10)
	})
}

// A slot that becomes free sooner than the busy destination said is not slept through.
func TestSlotThatIsFreeSoonerIsTaken(t *testing.T) {
	for long, most := range map[time.Duration]time.Duration{2 * time.Second: 2 * time.Second, 20 * time.Second: 11 * time.Second} {
		t.Run(long.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				inst, began := w.guest("a"), time.Now()
				w.full(began, long)
				f := w.migrate(inst, api.MigrateArgs{})
				w.reach("a", "prepare")
				if late := time.Since(began) - long; late > most {
					t.Errorf("the slot was taken %v after it was free, want at most %v", late, most)
				}
				if m, err := f.wait(t); err != nil {
					t.Errorf("it ended as %s: %v", m.Status, err)
				}
				w.check(inst, "b")
			})
		})
	}
}

// Waiting for a busy destination ends with an abort, at once.
func TestAbortWhileTheDestinationIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		inst, began := w.guest("a"), time.Now()
		w.full(began, time.Hour)
		f := w.migrate(inst, api.MigrateArgs{})
		<-time.After(8 * time.Second) // amid a pause of four seconds
		if err := w.sites["a"].living().source.Abort(w.ctx, inst.UUID, ""); err != nil {
			t.Fatal(err)
		}
		m, _ := f.wait(t)
		if took := time.Since(began); m.Status != instance.MigrationCancelled || took > 8*time.Second+time.Millisecond {
			t.Errorf("it ended as %s after %v (%v), want cancelled at once", m.Status, took, m.Fault)
		}
		w.setHook(nil)
		w.check(inst, "a")
	})
}
