package agent_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// deed is one verb with what has to happen before it makes sense.
type deed struct {
	name   string
	before []string
	method string
	args   func(id string) any
	first  string // the driver's method that it calls first to change something
	after  string // and the one of its last effect, as afterwards knows it
}

func deeds() []deed {
	plain := func(id string) any { return about(id) }
	reboot := func(kind string) func(string) any {
		return func(id string) any { return api.RebootArgs{Instance: id, RebootType: kind} }
	}
	return []deed{
		{"pause", nil, api.PauseInstance, plain, "Pause", "Pause"},
		{"unpause", []string{api.PauseInstance}, api.UnpauseInstance, plain, "Unpause", "Unpause"},
		{"stop", nil, api.StopInstance, func(id string) any { no := false; return api.StopArgs{Instance: id, CleanShutdown: &no} }, "Destroy", "Destroy"},
		{"start", []string{api.StopInstance}, api.StartInstance, plain, "Start", "Start"},
		{"suspend", nil, api.SuspendInstance, plain, "Save", "Save"},
		{"resume", []string{api.SuspendInstance}, api.ResumeInstance, plain, "Restore", "Restore"},
		{"soft reboot", nil, api.RebootInstance, reboot(api.RebootSoft), "Shutdown", "Start"},
		{"soft reboot between off and on", nil, api.RebootInstance, reboot(api.RebootSoft), "Start", "Start"},
		{"hard reboot", nil, api.RebootInstance, reboot(api.RebootHard), "Destroy", "Start"},
		{"terminate", nil, api.TerminateInstance, plain, "Destroy", "Destroy"},
		{"build", nil, api.BuildAndRunInstance, func(id string) any { s := guest(); s.UUID = id; return api.BuildArgs{Spec: s} }, "Start", "Start"},
	}
}

// prepare makes the instance that the deed is done to.
func (r *rig) prepare(d deed) string {
	r.t.Helper()
	if d.name == "build" {
		return instance.NewUUID()
	}
	id := r.build("a")
	for _, method := range d.before {
		r.done(r.cast("a", method, about(id)))
	}
	return id
}

// effects are those that may happen once only.
func effects(e fake.Effects) fake.Effects {
	e.Defines, e.Shutdowns, e.Prepares = 0, 0, 0 // asking twice does no harm
	return e
}

// undisturbed tells which effects a deed has when nothing goes wrong.
func (r *rig) undisturbed(d deed) fake.Effects {
	r.t.Helper()
	id := r.prepare(d)
	before := effects(r.nodes["a"].machine.Counts(id))
	r.done(r.cast("a", d.method, d.args(id)))
	return minus(effects(r.nodes["a"].machine.Counts(id)), before)
}

func minus(a, b fake.Effects) fake.Effects {
	a.Undefines -= b.Undefines
	a.Starts -= b.Starts
	a.Stops -= b.Stops
	a.Pauses -= b.Pauses
	a.Unpauses -= b.Unpauses
	a.Saves -= b.Saves
	a.Restores -= b.Restores
	return a
}

// point is a moment in a task's life at which the agent is killed.
type point struct {
	name string
	// reach sends the deed and returns when the agent may be killed.
	reach func(r *rig, n *node, h *afterwards, d deed, id, req string)
}

func points() []point {
	send := func(r *rig, d deed, id, req string) {
		r.castAs(req, "a", d.method, d.args(id))
		r.pass(300 * time.Millisecond)
	}
	return []point{
		{"delivered, not journaled", func(r *rig, n *node, _ *afterwards, d deed, id, req string) {
			_ = n.store.Close() // the journal takes nothing more
			send(r, d, id, req)
		}},
		{"accepted", func(r *rig, n *node, _ *afterwards, d deed, id, req string) {
			n.machine.Disconnect()
			n.crash()
			n.start() // without the hypervisor tasks wait for the first inventory
			send(r, d, id, req)
		}},
		{"before the effect", func(r *rig, n *node, _ *afterwards, d deed, id, req string) {
			n.machine.Faults().Add(hangs(d.first))
			send(r, d, id, req)
		}},
		{"after the effect", func(r *rig, _ *node, h *afterwards, d deed, id, req string) {
			h.arm(d.after)
			send(r, d, id, req)
			<-h.hung
		}},
		{"ended, not told", func(r *rig, n *node, _ *afterwards, d deed, id, req string) {
			release := n.machine.Faults().Add(hangs(d.first))
			send(r, d, id, req)
			r.bus.Partition("a")
			release()
			r.pass(time.Second)
		}},
	}
}

// Wherever in a task's life the agent is killed: after its next start the task
// succeeds, its effects have happened exactly once and its life is told whole. The
// casts' acknowledgements are lost as well, so that they come again.
func TestKilledAnywhere(t *testing.T) {
	for _, d := range deeds() {
		for _, p := range points() {
			t.Run(d.name+"/"+p.name, func(t *testing.T) {
				inBubble(t, func(r *rig) { killedAt(r, d, p) }, "a")
			})
		}
	}
}

func killedAt(r *rig, d deed, p point) {
	n := r.nodes["a"]
	h := &afterwards{}
	n.stop()
	n.wrap = func(hv agent.Hypervisor) agent.Hypervisor { h.Hypervisor = hv; return h }
	n.start()
	want := r.undisturbed(d)
	id, req := r.prepare(d), instance.NewUUID()
	before := effects(n.machine.Counts(id))
	r.bus.SetFaults(func(p rpc.Passage) rpc.Fate { return rpc.Fate{Drop: p.Leg == rpc.LegAck && p.Request == req} })
	p.reach(r, n, h, d, id, req)
	n.crash()
	h.disarm()
	n.machine.Faults().Clear()
	n.machine.Reconnect()
	r.bus.SetFaults(nil)
	r.bus.Heal("a")
	n.start()
	r.done(req)
	r.pass(10 * time.Second) // everything that comes again has come
	if got := minus(effects(n.machine.Counts(id)), before); got != want {
		r.t.Errorf("effects %+v, want %+v", got, want)
	}
	if diff := cmp.Diff(wholeLife, slices.Compact(r.life(req))); diff != "" { // what comes again is told again
		r.t.Errorf("told (-want +got):\n%s", diff)
	}
	if d.method == api.TerminateInstance {
		return
	}
	same(r.t, "task_state", r.show("a", id).TaskState, instance.TaskNone)
}

// A task that finds its instance free begins in the transaction that accepts it. When the
// agent dies right behind that one, before anybody has heard of it, the task goes on at the
// next start, and happens once.
func TestKilledWhenBegun(t *testing.T) {
	later := map[string]bool{api.BuildAndRunInstance: true, api.RebootInstance: true} // they begin in their turn only
	for _, d := range deeds() {
		t.Run(d.name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				n := r.nodes["a"]
				want := r.undisturbed(d)
				id, req := r.prepare(d), instance.NewUUID()
				r.pass(time.Second) // the journal is at rest
				before := effects(n.machine.Counts(id))
				n.dies.Store(true)
				r.castAs(req, "a", d.method, d.args(id))
				r.pass(50 * time.Millisecond)
				if got := minus(effects(n.machine.Counts(id)), before); got != (fake.Effects{}) {
					t.Errorf("effects before the death %+v", got)
				}
				n.crash()
				n.dies.Store(false)
				n.wantTask(req, map[bool]api.TaskState{true: api.TaskAccepted, false: api.TaskRunning}[later[d.method]])
				n.start()
				r.done(req)
				r.pass(10 * time.Second)
				if got := minus(effects(n.machine.Counts(id)), before); got != want {
					t.Errorf("effects %+v, want %+v", got, want)
				}
				if diff := cmp.Diff(wholeLife, slices.Compact(r.life(req))); diff != "" {
					t.Errorf("told (-want +got):\n%s", diff)
				}
			}, "a")
		})
	}
}

// wantTask looks at a task in the journal of an agent that does not run.
func (n *node) wantTask(req string, want api.TaskState) {
	n.r.t.Helper()
	s, err := state.Open(n.r.ctx, n.dir, state.Options{NoSync: true})
	if err != nil {
		n.r.t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	tasks := state.Table[agent.Task]{Name: "tasks", Version: 1}
	_ = s.View(func(tx *state.Tx) error {
		if got, known, err := tasks.Get(tx, req); !known || err != nil || got.State != want {
			n.r.t.Errorf("the task is journaled as %q, %v, %v; want %s", got.State, known, err, want)
		}
		return nil
	})
}

// A clean stop in the middle of a task is no other thing: it goes on at the next start.
func TestStoppedInTheMiddle(t *testing.T) {
	for _, d := range deeds() {
		t.Run(d.name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				n := r.nodes["a"]
				want := r.undisturbed(d)
				id, req := r.prepare(d), instance.NewUUID()
				before := effects(n.machine.Counts(id))
				n.machine.Faults().Add(hangs(d.first))
				r.castAs(req, "a", d.method, d.args(id))
				r.pass(300 * time.Millisecond)
				stopped := time.Now()
				n.stop()
				if took := time.Since(stopped); took > 5*time.Second {
					t.Errorf("stopping took %v", took)
				}
				n.machine.Faults().Clear()
				n.start()
				r.done(req)
				if got := minus(effects(n.machine.Counts(id)), before); got != want {
					t.Errorf("effects %+v, want %+v", got, want)
				}
			}, "a")
		})
	}
}

// A journal that is killed over and over while tasks of many instances are under
// way loses none of them and does none twice.
func TestKilledAgainAndAgain(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		guests := make([]string, 8)
		for i := range guests {
			guests[i] = r.build("a")
		}
		n.machine.Faults().Add(fake.Fault{Delay: 30 * time.Millisecond, Method: "Pause"})
		n.machine.Faults().Add(fake.Fault{Delay: 30 * time.Millisecond, Method: "Unpause"})
		const rounds = 12
		var last []string
		for round := range rounds {
			last = last[:0]
			for _, g := range guests {
				method := []string{api.PauseInstance, api.UnpauseInstance}[round%2]
				last = append(last, r.cast("a", method, about(g)))
			}
			r.pass(time.Duration(7*round) * time.Millisecond)
			n.crash()
			n.start()
		}
		for _, req := range last {
			r.done(req)
		}
		for _, g := range guests {
			e := n.machine.Counts(g)
			same(t, "pauses", e.Pauses, rounds/2)
			same(t, "unpauses", e.Unpauses, rounds/2)
		}
	}, "a")
}
