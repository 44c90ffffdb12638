package sim_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/internal/compose"
	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/simulate"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// settleLimit is how long, in virtual time, everything may take to come to its end
// once all is whole again. The longest wait of an agent is a claim that runs out.
const settleLimit = 3 * time.Hour

// rig is one run: a fleet on a bus, and a controller that remembers what it asked for.
type rig struct {
	t     testing.TB
	ctx   context.Context //nolint:containedctx // the life of the run
	dir   string
	bus   *rpc.Bus
	ctl   rpc.Transport
	fleet *simulate.Fleet
	sites map[string]*site
	names []string
	plan  sync.WaitGroup // what was drawn to happen
	jobs  sync.WaitGroup // what goes on until the end

	mu       sync.Mutex
	requests map[string]*request
	events   map[string][]api.TaskEvent // by request id
	killed   map[string]bool            // guests whose QEMU the run itself killed
	left     map[string]books           // the journals, once check has read them
	broken   map[string]bool            // guests whose memory the run itself split in post-copy
}

// request is one cast, as its sender remembers it.
type request struct {
	host, instance string
	message        rpc.Message
}

// site is one host and who may start and stop its agent: whoever holds the token.
type site struct {
	*simulate.Host
	rig     *rig
	token   chan struct{}
	killAt  int           // transactions until the agent dies; guarded by rig.mu; 0: never
	written int           // transactions so far; guarded by rig.mu
	sick    bool          // its disk takes nothing; guarded by rig.mu
	died    chan struct{} // it did
}

// setup is what a run begins with.
type setup struct {
	hosts   []string
	node    func(host string) agent.Config
	machine fake.Config
	dir     string
	log     io.Writer // nil: none
}

func newRig(t testing.TB, ctx context.Context, s setup) *rig {
	t.Helper()
	opts := logkit.Options{Out: io.Discard, Level: "error"}
	if s.log != nil {
		opts = logkit.Options{Out: s.log, Level: "debug"}
	}
	log, err := logkit.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{
		t: t, ctx: compose.Logging(logkit.Into(ctx, log)), dir: s.dir, bus: rpc.NewBus(), names: s.hosts, sites: map[string]*site{},
		requests: map[string]*request{}, events: map[string][]api.TaskEvent{}, killed: map[string]bool{}, broken: map[string]bool{},
	}
	r.ctl = r.bus.Connect("controller")
	r.fleet, err = simulate.New(r.ctx, simulate.Config{
		Hosts: s.hosts, StateDir: s.dir,
		Dial: func(_ context.Context, host string) (rpc.Transport, error) { return r.bus.Connect(host), nil },
		Fake: s.machine, Node: compose.Config{State: state.Options{NoSync: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range s.hosts {
		h := r.fleet.Host(name)
		h.Node.Agent = s.node(name)
		si := &site{Host: h, rig: r, token: make(chan struct{}, 1), died: make(chan struct{}, 1)}
		h.Committed = func(int) { si.committed() }
		h.Trouble = si.trouble
		r.sites[name] = si
		if err := h.Start(r.ctx); err != nil {
			t.Fatal(err)
		}
	}
	r.listen()
	return r
}

// listen collects every task event from now on.
func (r *rig) listen() {
	reader, err := r.ctl.Events(r.ctx, rpc.EventFilter{Kind: api.EventTask, From: rpc.FromAll})
	if err != nil {
		r.t.Fatal(err)
	}
	r.jobs.Go(func() {
		for {
			e, err := reader.Next(r.ctx)
			if err != nil {
				return // the run is over
			}
			var task api.TaskEvent
			if err := json.Unmarshal(e.Body, &task); err != nil {
				r.t.Errorf("event %s can't be read: %v", e.MsgID, err)
				continue
			}
			r.mu.Lock()
			r.events[task.RequestID] = append(r.events[task.RequestID], task)
			r.mu.Unlock()
		}
	})
}

// committed counts a transaction, and kills the agent at the one that was drawn.
func (s *site) committed() {
	s.rig.mu.Lock()
	s.written++
	if s.killAt > 0 {
		s.killAt--
		if s.killAt == 0 {
			s.rig.mu.Unlock()
			s.Kill()
			select {
			case s.died <- struct{}{}:
			default:
			}
			return
		}
	}
	s.rig.mu.Unlock()
}

// errDisk is what a sick disk says.
var errDisk = errors.New("drawn: no space left on device")

func (s *site) trouble() error {
	s.rig.mu.Lock()
	defer s.rig.mu.Unlock()
	if s.sick {
		return errDisk
	}
	return nil
}

// disk makes the site's disk refuse all writes, or take them again.
func (s *site) disk(sick bool) {
	s.rig.mu.Lock()
	defer s.rig.mu.Unlock()
	s.sick = sick
}

// dieAfter has the agent killed at its n-th transaction from now.
func (s *site) dieAfter(n int) {
	s.rig.mu.Lock()
	defer s.rig.mu.Unlock()
	s.killAt = n
}

// restart ends the agent, by a kill or in good order, and starts it again after a while.
func (s *site) restart(kill bool, after time.Duration) {
	s.token <- struct{}{}
	defer func() { <-s.token }()
	if kill {
		s.Kill()
	}
	if err := s.Stop(s.rig.ctx); err != nil && !kill {
		s.rig.t.Logf("%s: stop: %v", s.Name, err)
	}
	pass(after)
	s.startLocked()
}

// startLocked starts the agent, as a service manager does: again until it runs.
func (s *site) startLocked() {
	for range 1000 {
		err := s.Start(s.rig.ctx)
		if err == nil && !s.Killed() {
			return
		}
		_ = s.Stop(s.rig.ctx)
		pass(time.Second)
	}
	s.rig.t.Errorf("%s: the agent does not start", s.Name)
}

// up makes sure that the agent runs.
func (s *site) up() {
	s.token <- struct{}{}
	defer func() { <-s.token }()
	if s.Killed() {
		_ = s.Stop(s.rig.ctx)
	}
	s.startLocked()
}

// cast sends a request and remembers it. What the bus did not take is sent again by settle.
func (r *rig) cast(host, instanceID, method string, args any) string {
	raw, err := rpc.JSON(args)
	if err != nil {
		r.t.Error(err)
	}
	q := &request{host: host, instance: instanceID, message: rpc.Message{
		Method: method, RequestID: instance.NewUUID(), Version: api.Version, Args: raw,
	}}
	r.mu.Lock()
	r.requests[q.message.RequestID] = q
	r.mu.Unlock()
	r.jobs.Go(func() { _ = r.ctl.Cast(r.ctx, host, q.message) })
	return q.message.RequestID
}

// outcome is the last state that a request was told to be in; empty: none yet.
func (r *rig) outcome(id string) api.TaskEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.events[id]; len(e) > 0 {
		return e[len(e)-1]
	}
	return api.TaskEvent{}
}

// await waits for the end of one request.
func (r *rig) await(id string) api.TaskEvent {
	for begin := time.Now(); time.Since(begin) < settleLimit; pass(100 * time.Millisecond) {
		if e := r.outcome(id); e.State.Ended() {
			return e
		}
	}
	r.t.Errorf("request %s has no end: %+v", id, r.outcome(id))
	return api.TaskEvent{}
}

// whole ends all trouble: every wire is whole, every agent and hypervisor is back.
func (r *rig) whole() {
	r.bus.SetFaults(nil)
	r.bus.Heal("controller")
	for _, s := range r.sites {
		s.dieAfter(0)
		s.disk(false)
	}
	for _, name := range r.names {
		s := r.sites[name]
		r.bus.Heal(name)
		s.Machine.Faults().Clear()
		s.Machine.Reconnect()
		s.up()
		if err := r.enable(name, true); err != nil {
			r.t.Errorf("%s can't be enabled: %v", name, err)
		}
	}
}

// enable switches a host for guests that come.
func (r *rig) enable(host string, on bool) error {
	raw, err := rpc.JSON(api.HostEnabledArgs{Enabled: on, Reason: "drained"})
	if err == nil {
		_, err = r.ctl.Call(r.ctx, host, rpc.Message{Method: api.SetHostEnabled, RequestID: instance.NewUUID(), Version: api.Version, Args: raw})
	}
	return err
}

// settle waits until every request has its outcome and no migration is under way.
func (r *rig) settle() {
	pause := 500 * time.Millisecond
	for begin := time.Now(); time.Since(begin) < settleLimit; pass(pause) {
		open := r.unheard()
		if len(open) == 0 && r.still() {
			return
		}
		for _, q := range open {
			_ = r.ctl.Cast(r.ctx, q.host, q.message)
		}
		pause = min(2*pause, 15*time.Second)
	}
	for _, q := range r.unheard() {
		r.t.Errorf("request %s (%s of %s at %s) has no outcome: %+v", q.message.RequestID, q.message.Method, q.instance, q.host, r.outcome(q.message.RequestID))
	}
	for _, m := range r.open() {
		r.t.Errorf("migration %s has not ended: %s, phase %s, %s to %s, fault %v", m.UUID, m.Status, m.Phase, m.Source, m.Dest, m.Fault)
	}
}

// unheard gives the requests without an outcome, in the order of their making.
func (r *rig) unheard() []*request {
	r.mu.Lock()
	defer r.mu.Unlock()
	var open []*request
	for _, id := range slices.Sorted(maps.Keys(r.requests)) {
		if e := r.events[id]; len(e) == 0 || !e[len(e)-1].State.Ended() {
			open = append(open, r.requests[id])
		}
	}
	return open
}

// still reports whether no migration is under way.
func (r *rig) still() bool { return len(r.open()) == 0 }

// open gives the migrations that are under way, as either host shows them. One of unknown
// outcome is, for looking again may make it known; but not when the run itself split the
// guest's memory ([rig.torn]): then it waits for people, on both hosts.
func (r *rig) open() (open []instance.Migration) {
	var all []instance.Migration
	waits := map[string]bool{}
	for _, name := range r.names {
		for _, m := range r.migrations(name) {
			all = append(all, m)
			if m.Status == instance.MigrationError && r.torn(m) {
				waits[m.UUID] = true
			}
		}
	}
	for _, m := range all {
		if (!m.Status.Ended() || m.Status == instance.MigrationError) && !waits[m.UUID] {
			open = append(open, m)
		}
	}
	return open
}

// torn reports whether the run itself may have split a guest's memory in a migration: it broke
// its post-copy, or killed the guest after post-copy was asked for.
func (r *rig) torn(m instance.Migration) bool {
	return r.broken[m.Instance] || r.killed[m.Instance] && m.Mode == instance.ModePostCopy
}

func (r *rig) migrations(host string) []instance.Migration {
	var res api.MigrationsResult
	raw, err := r.ctl.Call(r.ctx, host, rpc.Message{Method: api.ListMigrations, RequestID: instance.NewUUID(), Version: api.Version, Args: []byte("{}")})
	if err = errors.Join(err, json.Unmarshal(raw, &res)); err != nil {
		return []instance.Migration{{UUID: "none", Status: instance.MigrationRunning}} // ask again
	}
	return res.Migrations
}

// seen gives the instances as the view shows them: of two the higher generation.
func (r *rig) seen() map[string]instance.Instance {
	out := map[string]instance.Instance{}
	entries, _ := r.ctl.List(r.ctx, rpc.Instances, []string{"*", "*"})
	for _, e := range entries {
		var i instance.Instance
		if json.Unmarshal(e.Value, &i) == nil && i.Generation >= out[i.UUID].Generation {
			out[i.UUID] = i
		}
	}
	return out
}

// stop ends the agents in good order; the journals can be read then.
func (r *rig) stop() {
	for _, s := range r.sites {
		s.token <- struct{}{}
		if err := s.Stop(r.ctx); err != nil {
			r.t.Errorf("%s: stop: %v", s.Name, err)
		}
		<-s.token
	}
}
