package rpc_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// slowAgent answers when it is told to.
func slowAgent(t *testing.T, c rpc.Transport) (answer chan<- struct{}) {
	t.Helper()
	now := make(chan struct{}, 8)
	stop, err := c.Serve(t.Context(), rpc.ServiceInfo{Host: "node1", Version: "1.0.0"}, func(_ context.Context, _ rpc.Message, respond func(rpc.Reply)) {
		go func() { <-now; respond(rpc.Reply{Body: []byte(`{"done":true}`)}) }()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stop() })
	return now
}

// A caller that asks for heartbeats hears them until the one reply; one that does
// not hears the reply and nothing else.
func TestHeartbeats(t *testing.T) {
	s := embeddedServer(t)
	answer := slowAgent(t, dial(t, testConfig(s.url)))
	nc, err := nats.Connect(s.url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ask := func(h nats.Header) *nats.Subscription {
		inbox := nc.NewInbox()
		sub, err := nc.SubscribeSync(inbox)
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.PublishMsg(&nats.Msg{Subject: "compute.call.node1.m", Reply: inbox, Header: h}); err != nil {
			t.Fatal(err)
		}
		return sub
	}
	asked, silent := ask(nats.Header{"Compute-Heartbeat": {"100ms"}}), ask(nil)
	for i := range 3 {
		m, err := asked.NextMsg(5 * time.Second)
		if err != nil || m.Header.Get("Compute-Heartbeat") != "100ms" || len(m.Data) != 0 {
			t.Fatalf("message %d: %+v, %v, want a heartbeat", i, m, err)
		}
	}
	answer <- struct{}{}
	answer <- struct{}{}
	for m, err := asked.NextMsg(5 * time.Second); ; m, err = asked.NextMsg(5 * time.Second) {
		if err != nil {
			t.Fatal(err)
		}
		if m.Header.Get("Compute-Heartbeat") == "" {
			break
		}
	}
	if m, err := silent.NextMsg(5 * time.Second); err != nil || string(m.Data) != `{"done":true}` {
		t.Errorf("without the header: %+v, %v, want the reply alone", m, err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for name, sub := range map[string]*nats.Subscription{"with heartbeats": asked, "without": silent} {
		if m, err := sub.NextMsg(250 * time.Millisecond); !errors.Is(err, nats.ErrTimeout) {
			t.Errorf("%s: after the reply came %+v, %v", name, m, err)
		}
	}
}

// Call waits as long as heartbeats come, and no longer.
func TestCallWithHeartbeats(t *testing.T) {
	s := embeddedServer(t)
	agent, ctl := dial(t, testConfig(s.url)), dial(t, testConfig(s.url))
	answer := slowAgent(t, agent)
	m := rpc.Message{Method: "m", Heartbeat: 100 * time.Millisecond}
	timer := time.AfterFunc(700*time.Millisecond, func() { answer <- struct{}{} })
	defer timer.Stop()
	if got, err := ctl.Call(t.Context(), "node1", m); err != nil || string(got) != `{"done":true}` {
		t.Errorf("a long call with heartbeats = %q, %v", got, err)
	}
	if _, err := ctl.Call(t.Context(), "node9", m); !errors.Is(err, fault.Unavailable) {
		t.Errorf("nobody there: %v, want unavailable at once", err)
	}
	nc, err := nats.Connect(s.url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Subscribe("compute.call.hung.*", func(*nats.Msg) {}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := ctl.Call(t.Context(), "hung", m); !errors.Is(err, fault.Unavailable) || time.Since(began) > 5*time.Second {
		t.Errorf("an agent that hangs: %v after %s, want unavailable soon", err, time.Since(began))
	}
	m.Heartbeat = time.Millisecond
	if _, err := ctl.Call(t.Context(), "node1", m); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("a thousand a second: %v, want invalid_argument", err)
	}
}

// The bus in memory does the same.
func TestCallWithHeartbeatsInMemory(t *testing.T) {
	bus := rpc.NewBus()
	answer := slowAgent(t, bus.Connect("agent"))
	timer := time.AfterFunc(700*time.Millisecond, func() { answer <- struct{}{} })
	defer timer.Stop()
	ctl := bus.Connect("ctl")
	if got, err := ctl.Call(t.Context(), "node1", rpc.Message{Method: "m", Heartbeat: 100 * time.Millisecond}); err != nil || string(got) != `{"done":true}` {
		t.Errorf("a long call with heartbeats = %q, %v", got, err)
	}
	bus.SetFaults(func(p rpc.Passage) rpc.Fate { return rpc.Fate{Drop: p.Leg == rpc.LegReply} })
	if _, err := ctl.Call(t.Context(), "node1", rpc.Message{Method: "m", Heartbeat: 100 * time.Millisecond}); !errors.Is(err, fault.Unavailable) {
		t.Errorf("heartbeats that are lost: %v, want unavailable", err)
	}
	answer <- struct{}{}
}
