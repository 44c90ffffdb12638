package migration_test

import (
	"errors"
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
		// The pauses grow by a second to 30 s; what the hypervisor tells of each try does not cut them short.
		if tries := w.sites["a"].host.Counts(inst.UUID).FailedMoves; tries < 100 || tries > 140 {
			t.Errorf("it was tried %d times within the hour", tries)
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

// halved makes a world with a guest whose post-copy is broken: its memory is on both hosts.
func halved(t *testing.T) (*world, instance.Instance, *inFlight) {
	t.Helper()
	w := newWorld(t, torn(0))
	inst := w.guest("a", busy)
	f := w.migrate(inst, rushed)
	w.reach("a", migration.PhasePerform)
	<-time.After(20 * time.Second)
	return w, inst, f
}

// A guest whose half on the destination is gone can't be put together: that is said at once.
func TestGuestThatIsLostInPostCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, inst, f := halved(t)
		defer w.close()
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
		w, inst, f := halved(t)
		defer w.close()
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

// A destination that can't ask its hypervisor does not say that the guest is not there: the
// post-copy is taken up when it can.
func TestBrokenPostCopyWhileTheDestinationsHypervisorIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, inst, f := halved(t)
		defer w.close()
		w.sites["b"].host.Disconnect()
		ref := api.PeerRefArgs{Migration: migrationID, Generation: 2, Instance: inst.UUID}
		b := w.sites["b"].living()
		if res, err := b.dest.Post(b.ctx, ref); err != nil || !res.Owned || virt.State(res.State) != virt.NoState {
			t.Errorf("Post = %+v, %v; want owned, and no word of its state", res, err)
		}
		<-time.After(5 * time.Minute)
		w.sites["a"].host.Faults().Clear()
		w.sites["b"].host.Reconnect()
		if m, err := f.wait(t); err != nil || m.Status != instance.MigrationCompleted {
			t.Errorf("it ended as %s: %v; want completed", m.Status, err)
		}
		w.check(inst, "b")
	})
}

// Neither does a source that can't ask its own: it does not judge what it can't see.
func TestBrokenPostCopyWhileTheSourcesHypervisorIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, inst, f := halved(t)
		defer w.close()
		faults("a", fake.Fault{Method: "Lookup", Err: errNo})(w)
		<-time.After(30 * time.Minute) // longer than SettleTimeout, shorter than RecoverTimeout
		w.sites["a"].host.Faults().Clear()
		if m, err := f.wait(t); err != nil || m.Status != instance.MigrationCompleted {
			t.Errorf("it ended as %s: %v; want completed", m.Status, err)
		}
		w.check(inst, "b")
	})
}

// A guest that has arrived does not wait for the source's hypervisor.
func TestPostCopyIsCompleteWhileTheSourcesHypervisorIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, configure("a", func(c *migration.Config) { c.PostCopyBandwidthMiB = 100 }))
		defer w.close()
		inst := w.guest("a", busy)
		w.migrate(inst, rushed)
		w.reach("a", migration.PhasePerform)
		<-time.After(5 * time.Second)
		w.sites["a"].host.Disconnect()
		<-time.After(time.Minute)
		if m := w.sites["a"].last(migrationID); m.Phase != string(migration.PhaseClean) {
			t.Errorf("after a minute it is in phase %s, want clean: the guest runs on b", m.Phase)
		}
		w.sites["a"].host.Reconnect()
		w.ended("a", migrationID)
		w.check(inst, "b")
	})
}

// startAnew takes the power of a guest away and starts it again, as a hard reboot does.
func (a *agent) startAnew(inst instance.Instance, generation uint64) {
	a.w.t.Helper()
	if err := errors.Join(a.driver.Destroy(a.ctx, inst.UUID),
		a.driver.Define(a.ctx, virt.Definition{Spec: inst.Spec, Generation: generation}), a.driver.Start(a.ctx, inst.UUID)); err != nil {
		a.w.t.Fatal(err)
	}
}

// A guest that its owner starts anew, while half of its memory still waits on the source, does
// not want it any more.
func TestGuestThatIsStartedAnewInPostCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, inst, f := halved(t)
		defer w.close()
		w.sites["b"].living().startAnew(inst, 2)
		m, err := f.wait(t)
		if err != nil || m.Status != instance.MigrationCompleted {
			t.Errorf("it ended as %s: %v; want completed", m.Status, err)
		}
		if took := time.Since(m.StartedAt); took > 5*time.Minute {
			t.Errorf("that was found after %v", took)
		}
		w.check(inst, "b")
	})
}

// sendOn lets the hypervisor of b alone send a guest to a third host, which has no agent. At
// the switch-over the guest stands still for so long; it is on its way when sendOn returns.
func (w *world) sendOn(inst instance.Instance, still time.Duration) {
	w.t.Helper()
	const id = "77777777-7777-4777-8777-777777777777"
	third, err := fake.NewHost(w.fakes, fake.Config{Name: "c"})
	if err != nil {
		w.t.Fatal(err)
	}
	def := virt.Definition{Spec: inst.Spec, Generation: 3, Migration: id}
	in, err := third.Open().PrepareIncoming(w.ctx, virt.Incoming{Definition: def, Source: "b"})
	if err != nil {
		w.t.Fatal(err)
	}
	b := w.sites["b"].living()
	b.host.Faults().Add(fake.Fault{Method: fake.PointFinish, Delay: still})
	b.spawn(func() {
		if err := b.driver.Migrate(b.ctx, virt.MigrateRequest{Instance: inst.UUID, Migration: id, Generation: 3, Inbound: in}); err != nil {
			w.t.Errorf("the guest is not sent on: %v", err)
		}
	})
	<-time.After(still / 2)
}

// A post-copy is broken and left to people; its guest is started anew where it is owned, and
// is about to move on. While it stands still no sight of it says anything of the first
// migration, but it is superseded, and that ends the freeze.
func TestFreezeOfAGuestThatWasStartedAnewAndMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, torn(0))
		defer w.close()
		inst := w.guest("a")
		if m, err := w.migrate(inst, rushed).wait(t); err == nil || m.Status != instance.MigrationError {
			t.Fatalf("it ended as %s: %v; want error", m.Status, err)
		}
		w.sites["b"].living().startAnew(inst, 2)
		w.sendOn(inst, time.Minute)
		w.wantLook(migration.SightLost, migration.SightAbsent, migration.VerdictCompleted)
		if m, err := w.settle(migration.VerdictCompleted, false); err != nil || m.Status != instance.MigrationCompleted {
			t.Errorf("it ended as %s: %v; want completed", m.Status, err)
		}
		if d, here := w.sites["a"].host.Look(inst.UUID); here {
			t.Errorf("a copy is left on the source: %+v", d)
		}
		<-time.After(time.Minute)
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
		if again := w.record().Timeline; len(again) > 0 {
			t.Errorf("the ended record has %d moments beside its result's", len(again))
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

// A job that goes on while the connection to its hypervisor is lost is no older for that: its
// policy's clock goes on as it did.
func TestClockOfAJobThatLostItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		inst := w.guest("a")
		f := w.migrate(inst, api.MigrateArgs{BandwidthMiB: 2}) // about four minutes
		w.reach("a", migration.PhasePerform)
		<-time.After(100 * time.Second)
		w.sites["a"].host.Disconnect()
		<-time.After(10 * time.Second)
		w.sites["a"].host.Reconnect()
		m, err := f.wait(t)
		if err != nil || m.Result == nil || len(m.Result.Timeline) == 0 {
			t.Fatalf("it ended as %s with %+v: %v", m.Status, m.Result, err)
		}
		if last := m.Result.Timeline[len(m.Result.Timeline)-1].AtMS; last > m.Result.TotalMS {
			t.Errorf("its clock stands at %d ms after %d ms", last, m.Result.TotalMS)
		}
	})
}
