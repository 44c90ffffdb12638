package loss_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/internal/compose"
	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/rpc/embedded"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/vif"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

var (
	casts = flag.Int("casts", 3000, "how many casts are sent in all")
	limit = flag.Duration("limit", 2*time.Minute, "how long the run may take")
)

const (
	host    = "node1"
	senders = 4
	guests  = 8 // of each sender
	ackWait = time.Second
)

// rig is a server that can be restarted and an agent that can be killed.
type rig struct {
	t       *testing.T
	ctx     context.Context //nolint:containedctx // the test's
	dir     string
	server  *embedded.Server
	listen  string
	machine *fake.Host
	network *vif.MemoryNetwork

	agent  *agent.Agent
	store  *state.Store
	driver *fake.Driver
	conn   rpc.Transport
}

// Every request id has one outcome and its effect happened exactly once.
func TestNothingIsLostAndNothingTwice(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), *limit)
	defer cancel()
	r := &rig{t: t, ctx: ctx, dir: t.TempDir(), listen: "127.0.0.1:0", network: vif.Memory()}
	var err error
	if r.machine, err = fake.NewHost(fake.NewWorld(ctx), fake.Config{Name: host, VCPUs: 1024, MemoryMiB: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	r.serve()
	r.start()
	defer func() { r.kill(); r.server.Shutdown() }()

	var ids [senders][]string
	for i := range ids {
		ids[i] = r.build()
	}
	var sent atomic.Int64
	var all sync.WaitGroup
	requests := make([]map[string]string, senders) // the instance, by request id
	for i := range senders {
		c := r.dial("sender")
		all.Go(func() { requests[i] = r.send(c, ids[i], &sent) })
	}
	sending := make(chan struct{})
	go func() { all.Wait(); close(sending) }()
	kills, restarts := r.trouble(sending, &sent)
	outcomes := r.outcomes(requests)
	for i := range senders {
		r.judge(ids[i], requests[i], outcomes)
	}
	t.Logf("%d casts; the agent was killed %d times, the server restarted %d times", sent.Load(), kills, restarts)
	if kills == 0 || restarts == 0 {
		t.Errorf("%d kills and %d restarts: the run shows nothing", kills, restarts)
	}
}

func (r *rig) serve() {
	r.t.Helper()
	var err error
	if r.server, err = embedded.Start(r.ctx, embedded.Config{Listen: r.listen, StoreDir: r.dir + "/nats"}); err != nil {
		r.t.Fatal(err)
	}
	r.listen = strings.TrimPrefix(r.server.URL(), "nats://") // the same one after a restart
}

func (r *rig) dial(name string) rpc.Transport {
	r.t.Helper()
	c, err := rpc.Dial(r.ctx, rpc.Config{URLs: []string{r.server.URL()}, Name: name, AutoSetup: true, AckWait: ackWait, ReconnectLimit: 200 * time.Millisecond})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) start() {
	r.t.Helper()
	ctx := compose.Logging(r.ctx)
	var err error
	if r.store, err = state.Open(ctx, r.dir+"/state", state.Options{}); err != nil {
		r.t.Fatal(err)
	}
	r.conn, r.driver = r.dial(host), r.machine.Open()
	r.agent = agent.New(agent.Config{Host: host, MachineID: "m", StateDir: r.dir + "/state", Driver: "fake", AckWait: ackWait},
		agent.Ports{Hypervisor: r.driver, Bus: r.conn, Network: vif.New(vif.Config{}, r.network), Store: r.store})
	if err := r.agent.Start(ctx); err != nil {
		r.t.Fatal(err)
	}
}

// kill ends the agent as SIGKILL does: from one moment on its journal takes nothing,
// so nothing more is begun, acknowledged or told.
func (r *rig) kill() {
	_ = errors.Join(r.store.Close(), r.driver.Close(), r.conn.Close())
	_ = r.agent.Stop(r.ctx) // only its goroutines
}

// build makes a sender's guests, running.
func (r *rig) build() []string {
	r.t.Helper()
	ids := make([]string, guests)
	for i := range ids {
		ids[i] = instance.NewUUID()
		args, err := json.Marshal(api.BuildArgs{Spec: instance.Spec{UUID: ids[i], VCPUs: 1, MemoryMiB: 64}})
		if err != nil {
			r.t.Fatal(err)
		}
		if err := r.conn.Cast(r.ctx, host, rpc.Message{Method: api.BuildAndRunInstance, RequestID: instance.NewUUID(), Args: args}); err != nil {
			r.t.Fatal(err)
		}
	}
	r.until("the guests", func() bool {
		for _, id := range ids {
			if d, err := r.driver.Lookup(r.ctx, id); err != nil || !d.Active() {
				return false
			}
		}
		return true
	})
	return ids
}

// send pauses and unpauses guests in turn, each cast until the stream has it. Every
// seventh is sent once more past the duplicate window.
func (r *rig) send(c rpc.Transport, ids []string, sent *atomic.Int64) map[string]string {
	defer func() { _ = c.Close() }()
	raw, err := nats.Connect(r.server.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		r.t.Error(err)
		return nil
	}
	defer raw.Close()
	requests := map[string]string{}
	for n := range *casts / senders {
		id := ids[n%len(ids)]
		m := rpc.Message{Method: []string{api.PauseInstance, api.UnpauseInstance}[n/len(ids)%2], RequestID: instance.NewUUID(), Args: []byte(`{"instance":"` + id + `"}`)}
		for err := c.Cast(r.ctx, host, m); err != nil; err = c.Cast(r.ctx, host, m) {
			if r.ctx.Err() != nil {
				r.t.Errorf("the time is over: %v", err)
				return requests
			}
		}
		requests[m.RequestID] = id
		sent.Add(1)
		if n%7 == 0 {
			again := &nats.Msg{Subject: "compute.cast." + host + "." + m.Method, Data: m.Args, Header: nats.Header{"Compute-Request-Id": {m.RequestID}}}
			if err := raw.PublishMsg(again); err != nil {
				r.t.Error(err)
			}
		}
	}
	return requests
}

// trouble kills the agent every few hundred casts and restarts the server twice,
// until all is sent.
func (r *rig) trouble(sending <-chan struct{}, sent *atomic.Int64) (kills, restarts int) {
	beat := time.NewTicker(10 * time.Millisecond)
	defer beat.Stop()
	step := int64(max(*casts/12, 50))
	for next := step; ; {
		select {
		case <-sending:
			return kills, restarts
		case <-beat.C:
		}
		if sent.Load() < next {
			continue
		}
		next += step
		if kills%4 == 3 {
			restarts++
			r.server.Shutdown()
			r.serve()
		}
		kills++
		r.kill()
		r.start()
	}
}

// outcomes reads the event stream until each request has ended, and gives the
// different outcomes of each.
func (r *rig) outcomes(requests []map[string]string) map[string]map[api.TaskState]bool {
	r.t.Helper()
	reader, err := r.conn.Events(r.ctx, rpc.EventFilter{Kind: api.EventTask, From: rpc.FromAll})
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	open := map[string]bool{}
	for _, of := range requests {
		for id := range of {
			open[id] = true
		}
	}
	found := map[string]map[api.TaskState]bool{}
	for len(open) > 0 {
		e, err := reader.Next(r.ctx)
		if err != nil {
			r.t.Fatalf("%d requests have no outcome: %v", len(open), err)
		}
		var te api.TaskEvent
		if err := json.Unmarshal(e.Body, &te); err != nil {
			r.t.Fatal(err)
		}
		if !te.State.Ended() {
			continue
		}
		if found[te.RequestID] == nil {
			found[te.RequestID] = map[api.TaskState]bool{}
		}
		found[te.RequestID][te.State] = true
		delete(open, te.RequestID)
	}
	return found
}

func (r *rig) judge(ids []string, requests map[string]string, outcomes map[string]map[api.TaskState]bool) {
	r.t.Helper()
	want := map[string]int{}
	for request, id := range requests {
		if o := outcomes[request]; len(o) != 1 || !o[api.TaskSucceeded] {
			r.t.Errorf("request %s has the outcomes %v", request, o)
		}
		want[id]++
	}
	for _, id := range ids {
		if e := r.machine.Counts(id); e.Pauses+e.Unpauses != want[id] {
			r.t.Errorf("guest %s was paused %d and unpaused %d times by %d requests", id, e.Pauses, e.Unpauses, want[id])
		}
	}
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	beat := time.NewTicker(5 * time.Millisecond)
	defer beat.Stop()
	for !ok() {
		select {
		case <-beat.C:
		case <-r.ctx.Done():
			r.t.Fatalf("the time is over, waiting for %s", what)
		}
	}
}
