package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/internal/compose"
	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/logkit/logtest"
	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/vif"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// rig is a bus with hosts on it, and a controller that speaks the bare wire.
type rig struct {
	t     *testing.T
	ctx   context.Context //nolint:containedctx // the test's
	world *fake.World
	bus   *rpc.Bus
	ctl   rpc.Transport
	nodes map[string]*node
}

// node is one host: its machine, its journal's directory, and the agent while it runs.
type node struct {
	r       *rig
	name    string
	machine *fake.Host
	network *vif.MemoryNetwork
	dir     string
	cfg     agent.Config
	wrap    func(agent.Hypervisor) agent.Hypervisor // puts something before the driver
	wrapBus func(agent.Bus) agent.Bus               // and before the bus
	trouble atomic.Pointer[error]                   // of the journal's disk
	dies    atomic.Bool                             // nobody learns of what is on disk from now on

	driver *fake.Driver
	conn   rpc.Transport
	store  *state.Store
	agent  *agent.Agent
}

// inBubble runs a test on virtual time with the named hosts running.
func inBubble(t *testing.T, test func(r *rig), hosts ...string) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx := compose.Logging(logkit.Into(t.Context(), logtest.New(t)))
		r := &rig{t: t, ctx: ctx, world: fake.NewWorld(ctx), bus: rpc.NewBus(), nodes: map[string]*node{}}
		r.ctl = r.bus.Connect("controller")
		for _, name := range hosts {
			m, err := fake.NewHost(r.world, fake.Config{Name: name, VCPUs: 64, MemoryMiB: 65536})
			if err != nil {
				t.Fatal(err)
			}
			n := &node{
				r: r, name: name, machine: m, network: vif.Memory("br0"), dir: dir + "/" + name,
				cfg: agent.Config{Host: name, MachineID: "m-" + name, Driver: "fake"},
			}
			n.cfg.StateDir = n.dir
			r.nodes[name] = n
			n.start()
		}
		defer func() {
			for _, n := range r.nodes {
				n.stop()
			}
			_ = r.ctl.Close()
		}()
		r.pass(time.Second)
		test(r)
	})
}

func (n *node) start() {
	n.r.t.Helper()
	if err := n.begin(); err != nil {
		n.r.t.Fatalf("start %s: %v", n.name, err)
	}
}

// begin is start, and gives the agent's error.
func (n *node) begin() (err error) {
	t := n.r.t
	t.Helper()
	if n.store, err = state.Open(n.r.ctx, n.dir, state.Options{NoSync: true, Trouble: n.diskTrouble, Written: n.death}); err != nil {
		t.Fatal(err)
	}
	n.driver, n.conn = n.machine.Open(), n.r.bus.Connect(n.name)
	var hv agent.Hypervisor = n.driver
	if n.wrap != nil {
		hv = n.wrap(hv)
	}
	var bus agent.Bus = n.conn
	if n.wrapBus != nil {
		bus = n.wrapBus(bus)
	}
	n.agent = agent.New(n.cfg, agent.Ports{Hypervisor: hv, Bus: bus, Network: vif.New(vif.Config{}, n.network), Store: n.store})
	return n.agent.Start(n.r.ctx)
}

func (n *node) diskTrouble() error {
	if err := n.trouble.Load(); err != nil {
		return *err
	}
	return nil
}

func (n *node) death() error {
	if n.dies.Load() {
		return errors.New("the process died")
	}
	return nil
}

// stop ends the agent as a service manager does.
func (n *node) stop() {
	if n.agent == nil {
		return
	}
	if err := n.agent.Stop(n.r.ctx); err != nil {
		n.r.t.Errorf("stop %s: %v", n.name, err)
	}
	n.drop()
}

func (n *node) drop() {
	_ = errors.Join(n.store.Close(), n.driver.Close(), n.conn.Close())
	n.agent = nil
}

// crash ends the agent as SIGKILL does: from one moment on nothing more reaches its
// journal, the hypervisor or the bus. What is in the journal stays.
func (n *node) crash() {
	a := n.agent
	_ = n.store.Close()
	n.drop()
	_ = a.Stop(n.r.ctx) // only its goroutines
}

// pass lets virtual time go by.
func (r *rig) pass(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
	synctest.Wait()
}

// cast stores a cast and gives its request id.
func (r *rig) cast(host, method string, args any) string {
	r.t.Helper()
	id := instance.NewUUID()
	r.castAs(id, host, method, args)
	return id
}

func (r *rig) castAs(id, host, method string, args any) {
	r.t.Helper()
	if err := r.ctl.Cast(r.ctx, host, r.message(id, method, args)); err != nil {
		r.t.Fatalf("cast %s: %v", method, err)
	}
}

func (r *rig) message(id, method string, args any) rpc.Message {
	r.t.Helper()
	body, err := json.Marshal(args)
	if err != nil {
		r.t.Fatal(err)
	}
	return rpc.Message{Method: method, RequestID: id, Version: api.Version, Args: body}
}

func (r *rig) call(host, method string, args, result any) error {
	r.t.Helper()
	body, err := r.ctl.Call(r.ctx, host, r.message(instance.NewUUID(), method, args))
	if err == nil && result != nil {
		err = json.Unmarshal(body, result)
	}
	return err
}

// told gives every event of a kind and id that was published so far.
func (r *rig) told(kind, id string) []rpc.Event {
	r.t.Helper()
	reader, err := r.ctl.Events(r.ctx, rpc.EventFilter{Kind: kind, ID: id, From: rpc.FromAll})
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	var all []rpc.Event
	for {
		ctx, cancel := context.WithTimeout(r.ctx, time.Millisecond)
		e, err := reader.Next(ctx)
		cancel()
		if err != nil {
			return all
		}
		all = append(all, e)
	}
}

// life gives the states that a task was told to be in, in order.
func (r *rig) life(id string) []api.TaskState {
	r.t.Helper()
	var states []api.TaskState
	for _, e := range r.told(api.EventTask, id) {
		states = append(states, taskEvent(r.t, e).State)
	}
	return states
}

func taskEvent(t *testing.T, e rpc.Event) (te api.TaskEvent) {
	t.Helper()
	if err := json.Unmarshal(e.Body, &te); err != nil {
		t.Fatal(err)
	}
	return te
}

// end waits for the end of a task and gives its last event.
func (r *rig) end(id string) api.TaskEvent {
	r.t.Helper()
	reader, err := r.ctl.Events(r.ctx, rpc.EventFilter{Kind: api.EventTask, ID: id, From: rpc.FromAll})
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	ctx, cancel := context.WithTimeout(r.ctx, 20*time.Minute)
	defer cancel()
	for {
		e, err := reader.Next(ctx)
		if err != nil {
			r.t.Fatalf("task %s did not end: %v; told: %v", id, err, r.life(id))
		}
		if te := taskEvent(r.t, e); te.State.Ended() {
			return te
		}
	}
}

// done waits for a task that must succeed.
func (r *rig) done(id string) {
	r.t.Helper()
	if e := r.end(id); e.State != api.TaskSucceeded {
		r.t.Fatalf("%s ended as %s: %v", e.Method, e.State, e.Error)
	}
}

// failed waits for a task that must end with that kind of error.
func (r *rig) failed(id string, state api.TaskState, kind fault.Kind) {
	r.t.Helper()
	if e := r.faultOf(id, state, kind); e == nil {
		r.t.Fatalf("task %s ended without an error", id)
	}
}

// faultOf is failed, and gives the error.
func (r *rig) faultOf(id string, state api.TaskState, kind fault.Kind) *fault.Error {
	r.t.Helper()
	e := r.end(id)
	if e.State != state || e.Error == nil || e.Error.Kind != kind {
		r.t.Fatalf("%s ended as %s: %v, want %s with %s", e.Method, e.State, e.Error, state, kind)
	}
	return e.Error
}

// build makes a running instance and gives its UUID.
func (r *rig) build(host string) string {
	r.t.Helper()
	s := guest()
	r.done(r.cast(host, api.BuildAndRunInstance, api.BuildArgs{Spec: s}))
	return s.UUID
}

func guest() instance.Spec {
	return instance.Spec{
		UUID: instance.NewUUID(), Name: "guest", VCPUs: 1, MemoryMiB: 128,
		Ports: []instance.Port{{ID: uuid.NewString(), MAC: "52:54:00:00:00:01", Binding: instance.BindingBridge, Bridge: "br0"}},
	}
}

// show asks the agent for an instance.
func (r *rig) show(host, id string) instance.Instance {
	r.t.Helper()
	var res api.InstanceResult
	if err := r.call(host, api.ShowInstance, api.InstanceArgs{Instance: id}, &res); err != nil {
		r.t.Fatalf("show: %v", err)
	}
	return res.Instance
}

// view gives the bus's entry of an instance; ok is false without it.
func (r *rig) view(host, id string) (inst instance.Instance, ok bool) {
	r.t.Helper()
	e, err := r.ctl.Get(r.ctx, rpc.Instances, []string{host, id})
	if errors.Is(err, fault.NotFound) {
		return inst, false
	}
	if err == nil {
		err = json.Unmarshal(e.Value, &inst)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return inst, true
}

// about names an instance.
func about(id string) api.InstanceArgs { return api.InstanceArgs{Instance: id} }

// same fails the test unless got is want.
func same[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}
