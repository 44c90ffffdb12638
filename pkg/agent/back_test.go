package agent_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// move migrates a guest, and gives the migration's id.
func (r *rig) move(inst, from, to string) string {
	r.t.Helper()
	id := instance.NewUUID()
	r.done(r.cast(from, api.LiveMigration, api.MigrateArgs{Instance: inst, Dest: to, Migration: id}))
	return id
}

// unclean brings the journal of a stopped agent back to where its migration's last
// transaction had not come: the guest is given away, the end is not written.
func (n *node) unclean(id string) {
	t := n.r.t
	t.Helper()
	records := state.Table[migration.Record]{Name: "migrations", Version: 1}
	tasks := state.Table[agent.Task]{Name: "tasks", Version: 1}
	s, err := state.Open(n.r.ctx, n.dir, state.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Update(n.r.ctx, func(tx *state.Tx) error {
		rec, _, err := records.Get(tx, "source/"+id)
		if err != nil {
			return err
		}
		rec.Phase, rec.Migration.Status, rec.Migration.Result = migration.PhaseClean, instance.MigrationPost, nil
		if err := records.Put(tx, "source/"+id, rec); err != nil {
			return err
		}
		task, _, err := tasks.Get(tx, rec.Migration.RequestID)
		if err != nil {
			return err
		}
		task.State = api.TaskRunning
		return tasks.Put(tx, task.ID, task)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// lives asserts that the guest runs there, recorded and wired, with that generation,
// and nowhere else.
func (r *rig) lives(inst, on string, generation uint64) {
	r.t.Helper()
	for name, n := range r.nodes {
		d, err := n.driver.Lookup(r.ctx, inst)
		taps, _ := n.network.Taps(r.ctx)
		if name != on {
			if err == nil || len(taps) > 0 {
				r.t.Errorf("%s: the guest left a domain (%+v, %v) or taps (%v)", name, d, err, taps)
			}
			continue
		}
		if err != nil || !d.Active() || d.Generation != generation || len(taps) != 1 {
			r.t.Errorf("%s: domain %+v (%v), taps %v; want it to run with generation %d and one tap", name, d, err, taps, generation)
		}
		if got := r.show(name, inst); got.Generation != generation || got.Host != name || got.VMState != instance.VMActive {
			r.t.Errorf("%s: the record has host %s, generation %d, %s", name, got.Host, got.Generation, got.VMState)
		}
	}
}

// Each owner has a generation of its own, back and forth, and only the newest is kept.
func TestGenerationRisesBackAndForth(t *testing.T) {
	inBubble(t, func(r *rig) {
		inst, hosts := r.build("a"), []string{"a", "b"}
		for n := range 6 {
			from, to := hosts[n%2], hosts[(n+1)%2]
			r.move(inst, from, to)
			r.pass(time.Second)
			r.lives(inst, to, uint64(n+2))
			if _, left := r.view(from, inst); left {
				t.Errorf("move %d: the view of %s still has the guest", n+1, from)
			}
		}
	}, "a", "b")
}

// While a's clean-up has not ended, and may still remove what it finds, the guest can't
// come back; afterwards it can.
func TestGuestComesBackAfterTheCleanUpOnly(t *testing.T) {
	inBubble(t, func(r *rig) {
		inst, a := r.build("a"), r.nodes["a"]
		id := r.move(inst, "a", "b")
		a.stop()
		a.unclean(id)
		a.machine.Faults().Add(fake.Fault{Method: "Undefine", Err: errors.New("not now")})
		a.start()
		e := r.faultOf(r.cast("b", api.LiveMigration, api.MigrateArgs{Instance: inst, Dest: "a"}), api.TaskFailed, fault.PreconditionFailed)
		if !strings.Contains(e.Error(), "migration "+id+", which took it away from here, has not ended yet") {
			t.Errorf("the reason is %q", e.Error())
		}
		a.machine.Faults().Clear()
		r.pass(time.Minute)
		same(t, "status", r.status(id), instance.MigrationCompleted)
		r.move(inst, "b", "a")
		r.pass(time.Second)
		r.lives(inst, "a", 3)
	}, "a", "b")
}

// The clean-up of a's first migration is taken up when the guest has come back already.
func TestOldCleanUpLeavesTheGuestThatCameBack(t *testing.T) {
	inBubble(t, func(r *rig) {
		inst, a := r.build("a"), r.nodes["a"]
		id := r.move(inst, "a", "b")
		r.move(inst, "b", "a")
		a.stop()
		a.unclean(id)
		a.start()
		r.pass(time.Minute)
		same(t, "status", r.status(id), instance.MigrationCompleted)
		r.lives(inst, "a", 3)
	}, "a", "b")
}

// busy is a guest that writes faster than the link carries: only a pause ends its migration.
func (r *rig) busy(host string) string {
	r.t.Helper()
	s := guest()
	s.MemoryMiB, s.Metadata = 1024, map[string]string{"fake.working_set_mib": "200", "fake.dirty_mib": "900"}
	r.done(r.cast(host, api.BuildAndRunInstance, api.BuildArgs{Spec: s}))
	return s.UUID
}

// A guest that its migration paused is owned a moment before it goes on. A migration that
// is asked for in that moment waits: it must not take the guest for one that its user
// paused, which no policy would ever pause again.
func TestNextMigrationWaitsForTheArrival(t *testing.T) {
	inBubble(t, func(r *rig) {
		inst := r.busy("a")
		r.nodes["b"].machine.Faults().Add(fake.Fault{Method: "Unpause", Delay: 10 * time.Second, Times: 1})
		first := r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: inst, Dest: "b", Policy: "pause_now"})
		for range 1000 {
			if i, known := r.view("b", inst); known && i.Generation == 2 {
				break
			}
			r.pass(100 * time.Millisecond)
		}
		back := r.cast("b", api.LiveMigration, api.MigrateArgs{Instance: inst, Dest: "a", Policy: "pause_now"})
		r.done(first)
		r.done(back)
		r.pass(time.Second)
		r.lives(inst, "a", 3)
	}, "a", "b")
}

// When the hypervisor does not let the guest go on at all, the next migration says so in
// the end, and another one works when it does.
func TestNextMigrationIsRefusedWhileTheGuestIsStuck(t *testing.T) {
	inBubble(t, func(r *rig) {
		inst := r.busy("a")
		r.nodes["b"].machine.Faults().Add(fake.Fault{Method: "Unpause", Err: errors.New("not now")})
		first := r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: inst, Dest: "b", Policy: "pause_now"})
		r.done(first)
		e := r.faultOf(r.cast("b", api.LiveMigration, api.MigrateArgs{Instance: inst, Dest: "a"}), api.TaskFailed, fault.Conflict)
		if !strings.Contains(e.Error(), "its arrival by migration") {
			t.Errorf("the error is %q", e.Error())
		}
		r.nodes["b"].machine.Faults().Clear()
		r.pass(time.Minute)
		r.lives(inst, "b", 2)
		r.done(r.cast("b", api.LiveMigration, api.MigrateArgs{Instance: inst, Dest: "a", Policy: "pause_now"}))
		r.pass(time.Second)
		r.lives(inst, "a", 3)
	}, "a", "b")
}

// A bus that takes no view entries must not keep a guest that has arrived from going on.
func TestGuestGoesOnWhileTheBusIsDeaf(t *testing.T) {
	inBubble(t, func(r *rig) {
		inst := r.busy("a")
		r.bus.SetFaults(func(p rpc.Passage) rpc.Fate {
			return rpc.Fate{Drop: p.Leg == rpc.LegStore && strings.HasPrefix(p.Subject, "$KV.")}
		})
		id := r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: inst, Dest: "b", Policy: "pause_now"})
		var owned, ran time.Time
		for n := 0; n < 10_000 && ran.IsZero(); n++ {
			d, err := r.nodes["b"].driver.Lookup(r.ctx, inst)
			if err == nil && d.State == virt.Running {
				ran = time.Now()
				continue
			}
			if err == nil && d.State == virt.Paused && d.Reason == virt.ReasonUser && owned.IsZero() {
				owned = time.Now()
			}
			r.pass(10 * time.Millisecond)
		}
		if owned.IsZero() || ran.IsZero() {
			t.Fatalf("the guest was seen paused at %v and running at %v, want both", owned, ran)
		}
		if stood := ran.Sub(owned); stood > time.Second {
			t.Errorf("the guest stood still for %v after its arrival", stood)
		}
		r.bus.SetFaults(nil)
		r.done(id)
		r.pass(30 * time.Second)
		r.lives(inst, "b", 2)
	}, "a", "b")
}

// Whoever destroys the guest that arrived, on its owner's word: the source is told that
// nothing of it is wanted any more, also when the guest can't be started again, or removed, or
// the hypervisor's answer is lost; but not when the guest lives.
func TestDestroyedGuestSupersedesWhatArrived(t *testing.T) {
	hard := func(id string) any { return api.RebootArgs{Instance: id, RebootType: api.RebootHard} }
	removed := func(id string) any { return about(id) }
	for name, c := range map[string]struct {
		method string
		args   func(id string) any
		fault  fake.Fault
		want   bool
	}{
		"a reboot can't define":       {api.RebootInstance, hard, fake.Fault{Method: "Define"}, true},
		"a deletion can't undefine":   {api.TerminateInstance, removed, fake.Fault{Method: "Undefine"}, true},
		"a deletion's answer is lost": {api.TerminateInstance, removed, fake.Fault{Method: "Destroy", After: true}, true},
		"a deletion can't destroy":    {api.TerminateInstance, removed, fake.Fault{Method: "Destroy"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				inst := r.build("a")
				id := r.move(inst, "a", "b")
				superseded := func(want bool) {
					t.Helper()
					var res api.OwnedResult
					if err := r.call("b", api.PostLiveMigration, api.PeerRefArgs{Migration: id, Generation: 2, Instance: inst}, &res); err != nil {
						t.Fatal(err)
					}
					same(t, "owned", res.Owned, true)
					same(t, "superseded", res.Superseded, want)
				}
				superseded(false)
				c.fault.Err = errors.New("not now")
				r.nodes["b"].machine.Faults().Add(c.fault)
				_ = r.faultOf(r.cast("b", c.method, c.args(inst)), api.TaskFailed, fault.Internal)
				superseded(c.want)
				r.nodes["b"].crash()
				r.nodes["b"].start()
				superseded(c.want)
			}, "a", "b")
		})
	}
}
