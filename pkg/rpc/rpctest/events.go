package rpctest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

func eventCases() []testCase {
	return []testCase{
		{"event/order and content", eventOrder},
		{"event/deduplicated", eventDedup},
		{"event/filters", eventFilters},
		{"event/from last", eventFromLast},
		{"event/from all and sequence", eventFromAll},
		{"event/from now", eventFromNow},
		{"event/many at once", eventMany},
		{"event/refused", eventRefused},
		{"event/next gives up with its context", eventContext},
	}
}

func publish(t *testing.T, a rpc.Agent, host, kind, id, body string) {
	t.Helper()
	e := rpc.Event{Host: host, Kind: kind, ID: id, MsgID: host + kind + id + body, Body: []byte(body)}
	must(t, "Publish "+body, a.Publish(within(t), e))
}

// expect reads events whose bodies are these, in this order.
func expect(t *testing.T, r rpc.EventReader, bodies ...string) []rpc.Event {
	t.Helper()
	var all []rpc.Event
	for i, want := range bodies {
		e := next(t, r)
		if string(e.Body) != want {
			t.Fatalf("event %d is %q (%s/%s/%s), want %q", i, e.Body, e.Host, e.Kind, e.ID, want)
		}
		all = append(all, e)
	}
	return all
}

func eventOrder(t *testing.T, rig *Rig) {
	agent := rig.Connect(t, "agent")
	r := events(t, rig.Connect(t, "ctl"), rpc.EventFilter{})
	before := time.Now().Add(-time.Second)
	for i := range 100 {
		publish(t, agent, "node1.example", "task", fmt.Sprintf("req/%d", i%3), fmt.Sprint(i))
	}
	last := uint64(0)
	for i := range 100 {
		e := next(t, r)
		if string(e.Body) != fmt.Sprint(i) || e.Host != "node1.example" || e.Kind != "task" || e.ID != fmt.Sprintf("req/%d", i%3) ||
			e.Sequence <= last || e.At.Before(before) || e.MsgID == "" {
			t.Fatalf("event %d = %+v", i, e)
		}
		last = e.Sequence
	}
}

func eventDedup(t *testing.T, rig *Rig) {
	agent := rig.Connect(t, "agent")
	r := events(t, rig.Connect(t, "ctl"), rpc.EventFilter{From: rpc.FromAll})
	publish(t, agent, "node1", "task", "a", "1")
	publish(t, agent, "node1", "task", "a", "1")
	publish(t, agent, "node1", "task", "a", "2")
	e := rpc.Event{Host: "node1", Kind: "host", ID: "node1", Body: []byte("no id")}
	must(t, "Publish", agent.Publish(within(t), e))
	must(t, "Publish", agent.Publish(within(t), e))
	expect(t, r, "1", "2", "no id", "no id")
}

func eventFilters(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	for _, host := range []string{"node1.example", "node2"} {
		for _, kind := range []string{"task", "instance"} {
			for _, id := range []string{"a", "b"} {
				publish(t, agent, host, kind, id, host+"/"+kind+"/"+id)
			}
		}
	}
	all := rpc.FromAll
	expect(t, events(t, ctl, rpc.EventFilter{Host: "node1.example", From: all, Kind: "task"}), "node1.example/task/a", "node1.example/task/b")
	expect(t, events(t, ctl, rpc.EventFilter{ID: "b", From: all}), "node1.example/task/b", "node1.example/instance/b", "node2/task/b", "node2/instance/b")
	expect(t, events(t, ctl, rpc.EventFilter{Host: "node2", Kind: "instance", ID: "a", From: all}), "node2/instance/a")
}

func eventFromLast(t *testing.T, rig *Rig) {
	agent := rig.Connect(t, "agent")
	publish(t, agent, "node1", "task", "a", "a accepted")
	publish(t, agent, "node1", "task", "b", "b accepted")
	publish(t, agent, "node1", "task", "a", "a running")
	r := events(t, rig.Connect(t, "ctl"), rpc.EventFilter{Kind: "task", From: rpc.FromLast})
	expect(t, r, "b accepted", "a running")
	publish(t, agent, "node1", "task", "a", "a succeeded")
	expect(t, r, "a succeeded")
}

func eventFromAll(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	for i := range 5 {
		publish(t, agent, "node1", "task", "a", fmt.Sprint(i))
	}
	got := expect(t, events(t, ctl, rpc.EventFilter{From: rpc.FromAll}), "0", "1", "2", "3", "4")
	r := events(t, ctl, rpc.EventFilter{Sequence: got[3].Sequence})
	expect(t, r, "3", "4")
	publish(t, agent, "node1", "task", "a", "5")
	expect(t, r, "5")
}

func eventFromNow(t *testing.T, rig *Rig) {
	agent := rig.Connect(t, "agent")
	publish(t, agent, "node1", "task", "a", "before")
	r := events(t, rig.Connect(t, "ctl"), rpc.EventFilter{})
	publish(t, agent, "node1", "task", "a", "after")
	expect(t, r, "after")
}

func eventMany(t *testing.T, rig *Rig) {
	agent := rig.Connect(t, "agent")
	r := events(t, rig.Connect(t, "ctl"), rpc.EventFilter{From: rpc.FromAll})
	var all []rpc.Event
	for i := range 1200 {
		all = append(all, rpc.Event{Host: "node1", Kind: "task", ID: fmt.Sprint(i % 7), MsgID: fmt.Sprint(i), Body: []byte(fmt.Sprint(i))})
	}
	for _, part := range [][]rpc.Event{all[:10], all, nil} { // the first ten are repetitions then
		if n, err := agent.PublishAll(within(t), part); err != nil || n != len(part) {
			t.Fatalf("PublishAll of %d = %d, %v", len(part), n, err)
		}
	}
	for i := range all {
		if e := next(t, r); string(e.Body) != fmt.Sprint(i) {
			t.Fatalf("event %d is %q", i, e.Body)
		}
	}
	n, err := agent.PublishAll(within(t), []rpc.Event{
		{Host: "node1", Kind: "task", ID: "last", Body: []byte("last")}, {Host: "node1"}, {Host: "node1", Kind: "task", ID: "never", Body: []byte("never")},
	})
	wantKind(t, "PublishAll with a bad one", err, fault.InvalidArgument)
	if n != 1 {
		t.Errorf("PublishAll stored %d, want 1: what is before the bad one", n)
	}
	expect(t, r, "last")
}

func eventRefused(t *testing.T, rig *Rig) {
	agent := rig.Connect(t, "agent")
	for _, e := range []rpc.Event{
		{Kind: "task", ID: "a"},
		{Host: "node1", ID: "a"},
		{Host: "node1", Kind: "task"},
		{Host: "node1", Kind: "a.b", ID: "a"},
		{Host: "node1", Kind: "task", ID: "a", MsgID: "a\nb"},
	} {
		wantKind(t, fmt.Sprintf("Publish of %+v", e), agent.Publish(within(t), e), fault.InvalidArgument)
	}
}

func eventContext(t *testing.T, rig *Rig) {
	agent := rig.Connect(t, "agent")
	r := events(t, rig.Connect(t, "ctl"), rpc.EventFilter{})
	ctx, cancel := context.WithCancelCause(within(t))
	cause := errors.New("enough")
	time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
	if _, err := r.Next(ctx); !errors.Is(err, cause) {
		t.Errorf("Next = %v, want the cause of its context's end", err)
	}
	publish(t, agent, "node1", "task", "a", "later")
	expect(t, r, "later")
}
