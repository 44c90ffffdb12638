package migration_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// inWorld runs a test with two hosts and a guest on the first.
func inWorld(t *testing.T, test func(w *world, inst instance.Instance), opts ...option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, opts...)
		defer w.close()
		test(w, w.guest("a"))
	})
}

func announce(inst instance.Instance) (api.PeerMigrateArgs, api.PeerRefArgs) {
	return api.PeerMigrateArgs{Migration: migrationID, Generation: 2, Source: "a", Instance: inst},
		api.PeerRefArgs{Migration: migrationID, Generation: 2, Instance: inst.UUID}
}

func wantKind(t *testing.T, what string, err error, want fault.Kind) {
	t.Helper()
	if fault.KindOf(err) != want {
		t.Errorf("%s: %v (kind %q), want kind %q", what, err, fault.KindOf(err), want)
	}
}

func TestPrepareIsIdempotent(t *testing.T) {
	inWorld(t, func(w *world, inst instance.Instance) {
		b := w.sites["b"].living()
		args, ref := announce(inst)
		first, err := b.dest.Prepare(w.ctx, args)
		wantKind(t, "Prepare", err, "")
		said := len(w.said())
		again, err := b.dest.Prepare(w.ctx, args)
		wantKind(t, "Prepare again", err, "")
		if first.URI == "" || first != again || len(w.said()) != said {
			t.Errorf("Prepare = %+v, again %+v and it did %v; want the same and nothing done", first, again, w.said()[said:])
		}
		other := args
		other.Generation = 3
		_, err = b.dest.Prepare(w.ctx, other)
		wantKind(t, "Prepare with another generation", err, fault.Conflict)
		other = args
		other.Migration = "44444444-4444-4444-8444-444444444444"
		_, err = b.dest.Prepare(w.ctx, other)
		wantKind(t, "Prepare by another migration", err, fault.Conflict)
		res, err := b.dest.Post(w.ctx, ref)
		wantKind(t, "Post", err, "")
		if res.Owned || res.State != "" {
			t.Errorf("Post before the guest came = %+v", res)
		}
		wantKind(t, "Rollback", b.dest.Rollback(w.ctx, ref), "")
		wantKind(t, "Rollback again", b.dest.Rollback(w.ctx, ref), "")
		_, err = b.dest.Prepare(w.ctx, args)
		wantKind(t, "Prepare after Rollback", err, fault.Conflict)
		w.check(inst, "a")
	})
}

// TestRollbackFirst: the announcement is overtaken by the word that nobody comes.
func TestRollbackFirst(t *testing.T) {
	inWorld(t, func(w *world, inst instance.Instance) {
		args, ref := announce(inst)
		wantKind(t, "Rollback", w.sites["b"].living().dest.Rollback(w.ctx, ref), "")
		_, err := w.sites["b"].living().dest.Prepare(w.ctx, args)
		wantKind(t, "a late Prepare", err, fault.Conflict)
		w.sites["b"].stop(migration.ErrStopping)
		w.sites["b"].start()
		_, err = w.sites["b"].living().dest.Prepare(w.ctx, args)
		wantKind(t, "a late Prepare after a restart", err, fault.Conflict)
		w.check(inst, "a")
	})
}

func TestRollbackOfAGuestThatArrived(t *testing.T) {
	inWorld(t, func(w *world, inst instance.Instance) {
		if _, err := w.migrate(inst, api.MigrateArgs{}).wait(t); err != nil {
			t.Fatal(err)
		}
		_, ref := announce(inst)
		wantKind(t, "Rollback", w.sites["b"].living().dest.Rollback(w.ctx, ref), fault.Conflict)
		res, err := w.sites["b"].living().dest.Post(w.ctx, ref)
		if err != nil || !res.Owned || res.State != string(virt.Running) || res.DowntimeMS == 0 {
			t.Errorf("Post = %+v, %v, want owned, running, a downtime", res, err)
		}
		w.check(inst, "b")
	})
}

func TestInboundSlots(t *testing.T) {
	inWorld(t, func(w *world, inst instance.Instance) {
		b := w.sites["b"].living()
		args, ref := announce(inst)
		_, err := b.dest.Prepare(w.ctx, args)
		wantKind(t, "Prepare", err, "")
		second := args
		second.Migration, second.Instance.UUID = "44444444-4444-4444-8444-444444444444", "55555555-5555-4555-8555-555555555555"
		second.Instance.Spec.UUID = second.Instance.UUID
		_, err = b.dest.Prepare(w.ctx, second)
		wantKind(t, "Prepare without a slot", err, fault.Busy)
		_, err = b.dest.Check(w.ctx, second)
		wantKind(t, "Check without a slot", err, fault.Busy)
		if s := fault.DetailsOf(err)["retry_after_seconds"]; s != 10 {
			t.Errorf("retry after %v s, want 10", s)
		}
		wantKind(t, "Rollback", b.dest.Rollback(w.ctx, ref), "")
		_, err = b.dest.Prepare(w.ctx, second)
		wantKind(t, "Prepare with the slot that came free", err, "")
		wantKind(t, "Rollback", b.dest.Rollback(w.ctx, api.PeerRefArgs{Migration: second.Migration, Generation: 2, Instance: second.Instance.UUID}), "")
		w.check(inst, "a")
	}, configure("b", func(c *migration.Config) { c.InboundSlots = 1 }))
}

// A prepare that is given up while the journal takes nothing keeps no place: it is undone as soon
// as that can be written, though the source asks for it no more.
func TestPrepareThatCantBeUndoneYet(t *testing.T) {
	inWorld(t, func(w *world, inst instance.Instance) {
		b, full := w.sites["b"].living(), time.Now().Add(2*time.Minute)
		w.setHook(func(p string) error {
			if strings.HasPrefix(p, "b save ") && p != "b save claim" && time.Now().Before(full) {
				return errNo
			}
			return nil
		})
		args, _ := announce(inst)
		_, err := b.dest.Prepare(w.ctx, args)
		if err == nil || b.dest.Active() != 1 {
			t.Errorf("Prepare gives %v with %d arrivals, want an error, and one that is left", err, b.dest.Active())
		}
		<-time.After(3 * time.Minute) // the claim would run out after ten
		w.check(inst, "a")
	})
}

// TestClaimRunsOut: a destination that was prepared hears nothing more.
func TestClaimRunsOut(t *testing.T) {
	for name, source := range map[string]func(*world){
		"the source does not know it": func(*world) {},
		"the source does not answer":  func(w *world) { w.sever(true) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world, inst instance.Instance) {
				args, ref := announce(inst)
				b := w.sites["b"].living()
				_, err := b.dest.Prepare(w.ctx, args)
				wantKind(t, "Prepare", err, "")
				source(w)
				<-time.After(599 * time.Second)
				if b.dest.Active() != 1 {
					t.Error("the claim ended before its time")
				}
				<-time.After(2 * time.Second)
				w.check(inst, "a")
				_, err = b.driver.PrepareIncoming(w.ctx, virt.Incoming{Definition: virt.Definition{Spec: inst.Spec, Generation: 2, Migration: "other"}, Source: "a"})
				wantKind(t, "the place is free", err, "")
				wantKind(t, "Rollback", b.dest.Rollback(w.ctx, ref), "")
			})
		})
	}
}

func TestDestCheck(t *testing.T) {
	inWorld(t, func(w *world, inst instance.Instance) {
		w.sites["b"].disabled = "for repairs"
		args, _ := announce(inst)
		args.Instance.Spec.Disks = []instance.Disk{
			{Source: instance.DiskSource{File: "/img/local"}}, // of which the source tells nothing
			{Source: instance.DiskSource{File: "/img/shared"}, Shared: true},
		}
		args.Instance.Spec.Machine = "pc-q35-99"
		res, err := w.sites["b"].living().dest.Check(w.ctx, args)
		wantKind(t, "Check", err, "")
		if len(res.Reasons) != 3 {
			t.Errorf("reasons %q, want the disk, the host, the machine type", res.Reasons)
		}
		args.Source = "b"
		res, _ = w.sites["b"].living().dest.Check(w.ctx, args)
		if len(res.Reasons) != 4 {
			t.Errorf("reasons %q, want also that it is the same host", res.Reasons)
		}
		before := len(w.said())
		reasons, err := w.sites["a"].living().source.Check(w.ctx, inst, api.MigrateArgs{Instance: inst.UUID, Dest: "b"})
		wantKind(t, "Source.Check", err, "")
		if diff := cmp.Diff([]string{"on b: the host is disabled: for repairs"}, reasons); diff != "" {
			t.Errorf("reasons (-want +got):\n%s", diff)
		}
		block := true
		reasons, err = w.sites["a"].living().source.Check(w.ctx, inst, api.MigrateArgs{Instance: inst.UUID, Dest: "a", BlockMigration: &block})
		if err != nil || len(reasons) != 1 {
			t.Errorf("Check to itself = %q, %v, want one reason", reasons, err)
		}
		for _, line := range w.said()[before:] {
			if line != "a ⇒ b check: ok" {
				t.Errorf("Check did %q", line)
			}
		}
		w.mu.Lock()
		if n := len(w.sites["a"].reports); n > 0 {
			t.Errorf("Check reported %d times", n)
		}
		w.mu.Unlock()
		w.check(inst, "a")
	})
}

// What is against wiring the guest's ports there is said with every other reason, before
// anything is done.
func TestDestCheckLooksAtThePorts(t *testing.T) {
	inWorld(t, func(w *world, inst instance.Instance) {
		w.sites["b"].disabled = "for repairs"
		w.sites["b"].unwired = []string{"port 1: there is no bridge br-ex on this host", "port 2: binding ovs is not supported"}
		want := []string{"on b: the host is disabled: for repairs", "on b: port 1: there is no bridge br-ex on this host", "on b: port 2: binding ovs is not supported"}
		reasons, err := w.sites["a"].living().source.Check(w.ctx, inst, api.MigrateArgs{Instance: inst.UUID, Dest: "b"})
		wantKind(t, "Source.Check", err, "")
		if diff := cmp.Diff(want, reasons); diff != "" {
			t.Errorf("reasons (-want +got):\n%s", diff)
		}
		if _, err := w.migrate(inst, slow).wait(t); fault.KindOf(err) != fault.PreconditionFailed || slices.Contains(w.said(), "b records: claim") {
			t.Errorf("the migration: %v, want it refused before it is prepared: %q", err, w.said())
		}
		w.setHook(func(p string) error {
			if p == "b check ports" {
				return fault.New(fault.Unavailable, "test", "b", "netlink is busy")
			}
			return nil
		})
		args, _ := announce(inst)
		_, err = w.sites["b"].living().dest.Check(w.ctx, args)
		wantKind(t, "Check of a network that can't be asked", err, fault.Unavailable)
		w.check(inst, "a")
	})
}

func TestNoSuchMigration(t *testing.T) {
	inWorld(t, func(w *world, inst instance.Instance) {
		a := w.sites["a"].living()
		wantKind(t, "Abort", a.source.Abort(w.ctx, inst.UUID, ""), fault.NotFound)
		wantKind(t, "ForceComplete", a.source.ForceComplete(w.ctx, inst.UUID, migrationID), fault.NotFound)
		f := w.migrate(inst, slow)
		wantKind(t, "Abort of another one", a.source.Abort(w.ctx, inst.UUID, inst.UUID), fault.NotFound)
		wantKind(t, "ForceComplete while nothing moves", a.source.ForceComplete(w.ctx, inst.UUID, ""), fault.Conflict)
		second := w.migrate(inst, api.MigrateArgs{Migration: "44444444-4444-4444-8444-444444444444"})
		_, err := second.wait(t)
		wantKind(t, "a second migration", err, fault.Conflict)
		if _, err := f.wait(t); err != nil {
			t.Error(err)
		}
		wantKind(t, "Abort after the end", a.source.Abort(w.ctx, inst.UUID, ""), fault.NotFound)
		w.check(inst, "b")
	})
}

// TestAcceptedIsAbortable: between its acceptance and its turn a migration can be
// aborted, and no restart loses that.
func TestAcceptedIsAbortable(t *testing.T) {
	inWorld(t, func(w *world, inst instance.Instance) {
		a := w.sites["a"].living()
		rec := migration.NewRecord(inst, api.MigrateArgs{Instance: inst.UUID, Dest: "b", Migration: migrationID}, "a", "request")
		wantKind(t, "Accept", a.source.Accept(w.ctx, rec), "")
		wantKind(t, "Abort", a.source.Abort(w.ctx, inst.UUID, migrationID), "")
		w.sites["a"].stop(migration.ErrStopping)
		w.sites["a"].start()
		if m := w.ended("a", migrationID); m.Status != instance.MigrationCancelled {
			t.Errorf("it ended as %s, want cancelled", m.Status)
		}
		w.check(inst, "a")
	})
}

// TestThereAndBack: a guest comes back, with a generation above.
func TestThereAndBack(t *testing.T) {
	inWorld(t, func(w *world, inst instance.Instance) {
		if _, err := w.migrate(inst, slow).wait(t); err != nil {
			t.Fatal(err)
		}
		w.check(inst, "b")
		w.mu.Lock()
		there := w.sites["b"].instances[inst.UUID]
		w.mu.Unlock()
		if there.Generation != 2 || there.Host != "b" {
			t.Errorf("the record there: %+v", there)
		}
		back := w.migrate(there, api.MigrateArgs{Dest: "a", Migration: "44444444-4444-4444-8444-444444444444"})
		if _, err := back.wait(t); err != nil {
			t.Fatal(err)
		}
		w.check(inst, "a")
	})
}

// A guest that its owner wants destroyed, and that lives all the same, needs what is left of it.
func TestGuestThatCouldNotBeDestroyedIsNotSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		inst := w.moved()
		b := w.sites["b"].living()
		if err := b.dest.Supersede(b.ctx, inst.UUID); err != nil {
			t.Fatal(err)
		}
		for _, destroyed := range []bool{false, true} {
			if destroyed {
				if err := b.driver.Destroy(b.ctx, inst.UUID); err != nil {
					t.Fatal(err)
				}
			}
			res, err := b.dest.Post(b.ctx, api.PeerRefArgs{Migration: migrationID, Generation: 2, Instance: inst.UUID})
			if err != nil || !res.Owned || res.Superseded != destroyed {
				t.Errorf("Post = %+v, %v; want superseded %t", res, err, destroyed)
			}
		}
	})
}

// Of a guest that its owner has destroyed nothing that arrived is wanted any more, also when
// it could not be started anew, and after a restart of the agent.
func TestGuestThatItsOwnerDestroyedIsSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		inst := w.moved()
		b := w.sites["b"].living()
		if err := errors.Join(b.driver.Destroy(b.ctx, inst.UUID), b.driver.Undefine(b.ctx, inst.UUID, false)); err != nil {
			t.Fatal(err)
		}
		superseded := func(want bool) {
			t.Helper()
			b := w.sites["b"].living()
			res, err := b.dest.Post(b.ctx, api.PeerRefArgs{Migration: migrationID, Generation: 2, Instance: inst.UUID})
			if err != nil || !res.Owned || res.State != "" || res.Superseded != want {
				t.Errorf("Post = %+v, %v; want no domain, superseded %t", res, err, want)
			}
		}
		superseded(false)
		for range 2 { // the second time changes nothing
			if err := b.dest.Supersede(b.ctx, inst.UUID); err != nil {
				t.Fatal(err)
			}
		}
		superseded(true)
		w.sites["b"].crash()
		w.sites["b"].start()
		superseded(true)
	})
}

// A guest that was started anew where it is owned has superseded what the migration brought,
// however it stands since then; but not when it crashed, for a copy elsewhere is the better one
// then.
func TestGuestThatWasStartedAnewIsSuperseded(t *testing.T) {
	for name, c := range map[string]struct {
		do         func(w *world, b *agent, inst instance.Instance) error
		state      virt.State
		superseded bool
	}{
		"it runs":       {func(*world, *agent, instance.Instance) error { return nil }, virt.Running, true},
		"paused":        {func(_ *world, b *agent, inst instance.Instance) error { return b.driver.Pause(b.ctx, inst.UUID) }, virt.Paused, true},
		"moving on":     {func(w *world, _ *agent, inst instance.Instance) error { w.sendOn(inst, time.Minute); return nil }, "", true},
		"off":           {func(_ *world, b *agent, inst instance.Instance) error { return b.driver.Destroy(b.ctx, inst.UUID) }, virt.Shutoff, false},
		"crashed, kept": {func(_ *world, b *agent, inst instance.Instance) error { return b.host.Panic(inst.UUID) }, virt.Crashed, false},
		"crashed":       {func(_ *world, b *agent, inst instance.Instance) error { return b.host.Crash(inst.UUID) }, virt.Shutoff, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				inst := w.moved()
				b := w.sites["b"].living()
				ref := api.PeerRefArgs{Migration: migrationID, Generation: 2, Instance: inst.UUID}
				if res, err := b.dest.Post(b.ctx, ref); err != nil || !res.Owned || res.Superseded {
					t.Errorf("as it came: %+v, %v", res, err)
				}
				b.startAnew(inst, 2)
				if err := c.do(w, b, inst); err != nil {
					t.Fatal(err)
				}
				res, err := b.dest.Post(b.ctx, ref)
				if err != nil || !res.Owned || virt.State(res.State) != c.state || res.Superseded != c.superseded {
					t.Errorf("Post = %+v, %v; want state %q, superseded %t", res, err, c.state, c.superseded)
				}
				<-time.After(time.Minute)
			})
		})
	}
}
