package agent_test

import (
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// frozen makes a migration from a to b whose outcome nobody can know: the handover is
// not answered, and b's agent is away for longer than facts are waited for.
func (r *rig) frozen() (inst, migration string) {
	r.t.Helper()
	inst, migration = r.build("a"), instance.NewUUID()
	r.nodes["a"].machine.Faults().Add(fake.Fault{
		Method: fake.PointFinish, Err: fault.New(fault.Unavailable, "test", "", "no answer"), Times: 1,
	})
	id := r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: inst, Dest: "b", Migration: migration, BandwidthMiB: 8})
	r.pass(3 * time.Second)
	r.nodes["b"].stop()
	r.pass(30 * time.Minute)
	r.failed(id, api.TaskFailed, fault.Internal)
	return inst, migration
}

func (r *rig) resolve(migration, as string) (res api.ResolveResult, err error) {
	r.t.Helper()
	err = r.call("a", api.ResolveMigration, api.ResolveArgs{Migration: migration, As: as}, &res)
	return res, err
}

func (r *rig) status(migration string) instance.MigrationStatus {
	r.t.Helper()
	var res api.MigrationResult
	if err := r.call("a", api.ShowMigration, api.ShowMigrationArgs{Migration: migration}, &res); err != nil {
		r.t.Fatal(err)
	}
	return res.Migration.Status
}

func TestFrozenInstanceWaitsForAPerson(t *testing.T) {
	inBubble(t, func(r *rig) {
		inst, id := r.frozen()
		r.pass(time.Hour) // inventories look again, and find nothing new
		same(t, "status", r.status(id), instance.MigrationError)
		for _, method := range []string{api.PauseInstance, api.TerminateInstance} {
			e := r.faultOf(r.cast("a", method, about(inst)), api.TaskRefused, fault.Conflict)
			if !strings.Contains(e.Hint, "migration resolve "+id) {
				t.Errorf("%s is refused with the hint %q", method, e.Hint)
			}
		}
		var host api.HostView
		if err := r.call("a", api.GetHostInfo, api.NoArgs{}, &host); err != nil || len(host.Problems) != 1 || !strings.Contains(host.Problems[0], "resolve "+id) {
			t.Errorf("the host's problems: %q, %v", host.Problems, err)
		}
		facts, err := r.resolve(id, "")
		if err != nil || facts.Source != "moving" || facts.Dest != "unknown" || facts.Outcome != "unknown" {
			t.Errorf("the facts: %+v, %v", facts, err)
		}
		if _, err := r.resolve(id, api.ResolveFailed); err != nil {
			t.Fatal(err)
		}
		r.pass(10 * time.Minute)
		same(t, "status", r.status(id), instance.MigrationFailed)
		same(t, "power", r.show("a", inst).PowerState, instance.PowerRunning)
		r.done(r.cast("a", api.PauseInstance, about(inst)))
	}, "a", "b")
}

// A host that comes back brings its facts: the next review ends the freeze.
func TestFrozenMigrationGoesOnByFacts(t *testing.T) {
	inBubble(t, func(r *rig) {
		inst, id := r.frozen()
		r.nodes["b"].start()
		r.pass(5 * time.Minute) // the next inventory comes later
		same(t, "status", r.status(id), instance.MigrationFailed)
		same(t, "power", r.show("a", inst).PowerState, instance.PowerRunning)
		if _, err := r.resolve(id, api.ResolveCompleted); fault.KindOf(err) != fault.Conflict {
			t.Errorf("resolving what has ended: %v, want conflict", err)
		}
	}, "a", "b")
}

// However many inventories come by, a frozen migration is looked at by one at a time.
func TestOneReviewAtATime(t *testing.T) {
	inBubble(t, func(r *rig) {
		_, id := r.frozen()
		a, peer := r.nodes["a"], &slowPeer{}
		a.stop()
		a.cfg.ReconcileInterval, a.cfg.ReviewInterval = 10*time.Second, 10*time.Second
		a.wrapBus = func(b agent.Bus) agent.Bus { peer.Bus = b; return peer }
		a.start()
		r.pass(10 * time.Minute)
		same(t, "status", r.status(id), instance.MigrationError)
		peer.mu.Lock()
		defer peer.mu.Unlock()
		same(t, "calls to the other host at once", peer.most, 1)
	}, "a", "b")
}
