package migration_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// rushed goes into post-copy as soon as memory moves, which takes ten seconds there.
var rushed = api.MigrateArgs{BandwidthMiB: 100, Policy: "post_copy_now"}

// torn makes the stream break in post-copy, so many times.
func torn(times int) option {
	return func(w *world) {
		configure("a", func(c *migration.Config) { c.PostCopyBandwidthMiB = 100 })(w)
		faults("a", fake.Fault{Method: fake.PointPostCopy, Err: errNo, Times: times})(w)
	}
}

// A post-copy whose stream breaks is taken up until it holds: by the agent alone, however
// often it breaks and whoever is restarted meanwhile.
func TestBrokenPostCopyIsTakenUp(t *testing.T) {
	for name, c := range map[string]struct {
		times  int
		during func(*world)
	}{
		"once":       {times: 1},
		"five times": {times: 5},
		"over a restart of the source's agent": {times: 5, during: func(w *world) {
			<-time.After(25 * time.Second)
			w.sites["a"].crash()
			<-time.After(time.Second)
			w.sites["a"].start()
		}},
		"over a restart of the destination's agent": {times: 5, during: func(w *world) {
			<-time.After(25 * time.Second)
			w.sites["b"].crash()
			<-time.After(time.Second)
			w.sites["b"].start()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, torn(c.times))
				defer w.close()
				inst := w.guest("a", busy)
				f := w.migrate(inst, rushed)
				if c.during != nil {
					w.reach("a", migration.PhasePerform)
					c.during(w)
				}
				m := w.ended("a", f.id)
				if m.Status != instance.MigrationCompleted || m.Mode != instance.ModePostCopy {
					t.Errorf("it ended as %s, %s: %v", m.Status, m.Mode, m.Fault)
				}
				w.check(inst, "b")
			})
		})
	}
}

// When it can't be taken up for RecoverTimeout people decide; taken up on their request it
// goes on from there.
func TestBrokenPostCopyIsLeftToPeople(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, torn(0))
		defer w.close()
		inst := w.guest("a", busy)
		m, err := w.migrate(inst, rushed).wait(t)
		if err == nil || m.Status != instance.MigrationError || m.Fault == nil || !strings.Contains(m.Fault.Hint, "migration recover") {
			t.Fatalf("it ended as %s, %v, %+v; want error, and a hint at recover", m.Status, err, m.Fault)
		}
		if took := time.Since(m.StartedAt); took < time.Hour || took > 2*time.Hour {
			t.Errorf("it was given up after %v, want an hour", took)
		}
		a := w.sites["a"].living()
		if err := a.source.Recover(w.ctx, inst.UUID, ""); fault.KindOf(err) != fault.NotFound {
			t.Errorf("Recover of a frozen migration: %v, want not_found", err)
		}
		w.sites["a"].host.Faults().Clear()
		w.mu.Lock()
		rec := w.sites["a"].journal["source "+m.UUID]
		w.mu.Unlock()
		again, err := a.source.TakeUp(w.ctx, rec)
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.source.TakeUp(w.ctx, rec)
		wantKind(t, "TakeUp by what was known before", err, fault.Conflict)
		if m, err := a.source.Run(w.ctx, &again); err != nil || m.Status != instance.MigrationCompleted {
			t.Errorf("taken up it ended as %s: %v", m.Status, err)
		}
		w.check(inst, "b")
	})
}

// A request makes the next try begin at once.
func TestRecoverDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, torn(8), configure("a", func(c *migration.Config) { c.RetryFirst, c.RetryLimit = 10*time.Minute, time.Hour }))
		defer w.close()
		inst := w.guest("a", busy)
		f := w.migrate(inst, rushed)
		w.reach("a", migration.PhasePerform)
		a := w.sites["a"].living()
		for range 100 {
			<-time.After(10 * time.Second)
			if err := a.source.Recover(w.ctx, inst.UUID, ""); err != nil {
				break
			}
		}
		if m, err := f.wait(t); err != nil || m.EndedAt.Sub(m.StartedAt) > 9*time.Minute {
			t.Errorf("it ended as %s after %v: %v; want it before the second pause is over", m.Status, m.EndedAt.Sub(m.StartedAt), err)
		}
		w.check(inst, "b")
	})
}

// A migration that is not in post-copy has nothing to take up.
func TestRecoverOfPreCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		inst := w.guest("a")
		f := w.migrate(inst, slow)
		w.reach("a", migration.PhasePerform)
		if err := w.sites["a"].living().source.Recover(w.ctx, inst.UUID, ""); fault.KindOf(err) != fault.Conflict {
			t.Errorf("Recover in pre-copy: %v, want a conflict", err)
		}
		if m, err := f.wait(t); err != nil {
			t.Errorf("it ended as %s: %v", m.Status, err)
		}
		w.check(inst, "b")
	})
}

// A guest whose half on the destination is gone can't be put together: that is said at once.
func TestGuestThatIsLostInPostCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, torn(0))
		defer w.close()
		inst := w.guest("a", busy)
		f := w.migrate(inst, rushed)
		w.reach("a", migration.PhasePerform)
		<-time.After(20 * time.Second)
		b := w.sites["b"].living()
		if err := b.driver.Destroy(b.ctx, inst.UUID); err != nil {
			t.Fatal(err)
		}
		m, err := f.wait(t)
		if err == nil || m.Status != instance.MigrationError || !strings.Contains(err.Error(), "can't be put together") {
			t.Errorf("it ended as %s: %v; want error, and why", m.Status, err)
		}
		if took := time.Since(m.StartedAt); took > 5*time.Minute {
			t.Errorf("that was found after %v", took)
		}
	})
}

// A guest that its owner puts off, while half of its memory still waits on the source, is off:
// nothing has to be put together, and nothing of it stays on the source.
func TestGuestThatIsPutOffInPostCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, torn(0))
		defer w.close()
		inst := w.guest("a", busy)
		f := w.migrate(inst, rushed)
		w.reach("a", migration.PhasePerform)
		<-time.After(20 * time.Second)
		b := w.sites["b"].living()
		if err := b.driver.Destroy(b.ctx, inst.UUID); err != nil {
			t.Fatal(err)
		}
		if err := b.driver.Define(b.ctx, virt.Definition{Spec: inst.Spec, Generation: 2}); err != nil { // as the verb does
			t.Fatal(err)
		}
		if m, err := f.wait(t); err != nil || m.Status != instance.MigrationCompleted {
			t.Errorf("it ended as %s: %v; want completed", m.Status, err)
		}
		if _, err := w.sites["a"].living().driver.Lookup(w.ctx, inst.UUID); fault.KindOf(err) != fault.NotFound {
			t.Errorf("a copy is left on the source: %v", err)
		}
	})
}

// What a job did before its agent was killed is in the timeline at its end, but for the last minute.
func TestTimelineOutlivesTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		inst := w.guest("a")
		f := w.migrate(inst, api.MigrateArgs{BandwidthMiB: 2}) // about four minutes
		w.reach("a", migration.PhasePerform)
		<-time.After(150 * time.Second)
		w.sites["a"].crash()
		<-time.After(time.Second)
		w.sites["a"].start()
		m := w.ended("a", f.id)
		if m.Status != instance.MigrationCompleted || m.Result == nil || len(m.Result.Timeline) < 10 {
			t.Fatalf("it ended as %s with %+v", m.Status, m.Result)
		}
		line := m.Result.Timeline
		if first, last := line[0].AtMS, line[len(line)-1].AtMS; first > 5000 || last < 200_000 {
			t.Errorf("the timeline is from %d to %d ms, want the whole of it", first, last)
		}
		for i := 1; i < len(line); i++ {
			if line[i].AtMS < line[i-1].AtMS {
				t.Errorf("moment %d at %d ms comes after one at %d ms", i, line[i].AtMS, line[i-1].AtMS)
			}
		}
	})
}
