package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

func echoHandler(_ context.Context, m rpc.Message, respond func(rpc.Reply)) {
	respond(rpc.Reply{Body: m.Args})
}

func serveMemory(t *testing.T, c rpc.Transport, host string, h rpc.Handler) {
	t.Helper()
	if _, err := c.Serve(t.Context(), rpc.ServiceInfo{Host: host, Version: "1.0.0"}, h); err != nil {
		t.Fatal(err)
	}
}

// strike makes a judge that gives fate to messages on one leg, the first n times.
func strike(leg rpc.Leg, n int, fate rpc.Fate) func(rpc.Passage) rpc.Fate {
	return func(p rpc.Passage) rpc.Fate {
		if p.Leg != leg || n == 0 {
			return rpc.Fate{}
		}
		n--
		return fate
	}
}

func TestMemoryCallFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := rpc.NewBus()
		ctl := bus.Connect("ctl")
		handled := 0
		serveMemory(t, bus.Connect("agent"), "node1", func(ctx context.Context, m rpc.Message, respond func(rpc.Reply)) {
			handled++
			echoHandler(ctx, m, respond)
		})
		call := func() (time.Duration, error) {
			start := time.Now()
			_, err := ctl.Call(t.Context(), "node1", rpc.Message{Method: "m"})
			return time.Since(start), err
		}
		for _, c := range []struct {
			leg     rpc.Leg
			fate    rpc.Fate
			took    time.Duration
			kind    fault.Kind
			handled int
		}{
			{rpc.LegCall, rpc.Fate{Drop: true}, 60 * time.Second, fault.Timeout, 0},
			{rpc.LegReply, rpc.Fate{Drop: true}, 60 * time.Second, fault.Timeout, 1},
			{rpc.LegCall, rpc.Fate{Duplicate: true}, 0, "", 2},
			{rpc.LegReply, rpc.Fate{Duplicate: true}, 0, "", 1},
			{rpc.LegCall, rpc.Fate{Delay: 3 * time.Second}, 3 * time.Second, "", 1},
			{rpc.LegReply, rpc.Fate{Delay: 3 * time.Second}, 3 * time.Second, "", 1},
		} {
			handled = 0
			bus.SetFaults(strike(c.leg, 1, c.fate))
			took, err := call()
			if took != c.took || fault.KindOf(err) != c.kind || handled != c.handled {
				t.Errorf("%s %+v: took %s, %v, handled %d times; want %s, kind %q, %d", c.leg, c.fate, took, err, handled, c.took, c.kind, c.handled)
			}
		}
	})
}

func TestMemoryCastFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			leg  rpc.Leg
			fate rpc.Fate
			err  fault.Kind
			want []string // id(delivered)@seconds
		}{
			{rpc.LegStore, rpc.Fate{Drop: true}, fault.Timeout, []string{"b(1)@5"}},
			{rpc.LegStored, rpc.Fate{Drop: true}, fault.Timeout, []string{"a(1)@5", "b(1)@5"}},
			{rpc.LegStore, rpc.Fate{Duplicate: true}, "", []string{"a(1)@0", "b(1)@0"}},
			{rpc.LegDelivery, rpc.Fate{Drop: true}, "", []string{"b(1)@0", "a(2)@5"}},
			{rpc.LegDelivery, rpc.Fate{Duplicate: true}, "", []string{"a(1)@0", "a(1)@0", "b(1)@0"}},
			{rpc.LegDelivery, rpc.Fate{Delay: 2 * time.Second}, "", []string{"b(1)@0", "a(1)@2"}},
			{rpc.LegAck, rpc.Fate{Drop: true}, "", []string{"a(1)@0", "b(1)@0", "a(2)@5"}},
		} {
			bus := rpc.NewBus()
			ctl, agent := bus.Connect("ctl"), bus.Connect("agent")
			start := time.Now()
			bus.SetFaults(strike(c.leg, 1, c.fate))
			if err := ctl.Cast(t.Context(), "node1", rpc.Message{Method: "m", RequestID: "a"}); fault.KindOf(err) != c.err {
				t.Errorf("%s %+v: Cast = %v, want kind %q", c.leg, c.fate, err, c.err)
			}
			if err := ctl.Cast(t.Context(), "node1", rpc.Message{Method: "m", RequestID: "b"}); err != nil {
				t.Errorf("Cast = %v", err)
			}
			r, err := agent.Casts(t.Context(), "node1")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			for {
				batch, err := r.Next(ctx, 10)
				if errors.Is(err, context.DeadlineExceeded) {
					break
				}
				for _, d := range batch {
					got = append(got, fmt.Sprintf("%s(%d)@%.0f", d.RequestID, d.Delivered, time.Since(start).Seconds()))
					if err := d.Ack(); err != nil {
						t.Error(err)
					}
				}
			}
			cancel()
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s %+v (-want +got):\n%s", c.leg, c.fate, diff)
			}
		}
	})
}

func TestMemoryPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := rpc.NewBus()
		ctl, agent := bus.Connect("ctl"), bus.Connect("agent")
		var states []bool
		agent.OnState(func(up bool) { states = append(states, up) })
		serveMemory(t, agent, "node1", echoHandler)
		r, err := agent.Casts(t.Context(), "node1")
		if err != nil {
			t.Fatal(err)
		}
		bus.Partition("agent")
		bus.Partition("agent")
		if _, err := ctl.Call(t.Context(), "node1", rpc.Message{Method: "m"}); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("Call to an agent that is cut off = %v, want unavailable", err)
		}
		if err := agent.Publish(t.Context(), rpc.Event{Host: "node1", Kind: "host", ID: "node1"}); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("Publish = %v, want unavailable", err)
		}
		if err := ctl.Cast(t.Context(), "node1", rpc.Message{Method: "m", RequestID: "a"}); err != nil {
			t.Errorf("Cast to an agent that is cut off = %v, want it stored", err)
		}
		healed := time.AfterFunc(time.Hour, func() { bus.Heal("agent") })
		defer healed.Stop()
		start := time.Now()
		batch, err := r.Next(t.Context(), 1)
		if err != nil || len(batch) != 1 || time.Since(start) != time.Hour {
			t.Errorf("Next = %v, %v after %s, want the cast when the hour is over", batch, err, time.Since(start))
		}
		if _, err := ctl.Call(t.Context(), "node1", rpc.Message{Method: "m"}); err != nil {
			t.Errorf("Call after the partition = %v", err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]bool{false, true}, states); diff != "" {
			t.Errorf("states (-want +got):\n%s", diff)
		}
	})
}

func TestMemoryThousandHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := rpc.NewBus()
		ctl := bus.Connect("ctl")
		for i := range 1000 {
			host := fmt.Sprintf("node%d", i)
			agent := bus.Connect(host)
			serveMemory(t, agent, host, echoHandler)
			if err := agent.Put(t.Context(), rpc.Hosts, []string{host}, []byte("{}")); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 1000 {
			if _, err := ctl.Call(t.Context(), fmt.Sprintf("node%d", i), rpc.Message{Method: "m"}); err != nil {
				t.Fatal(err)
			}
		}
		if hosts, err := ctl.List(t.Context(), rpc.Hosts, []string{"*"}); err != nil || len(hosts) != 1000 {
			t.Errorf("List = %d hosts, %v, want 1000", len(hosts), err)
		}
	})
}

func TestMemoryForgetsOldEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := rpc.NewBus()
		c := bus.Connect("agent")
		publish := func(id string) {
			if err := c.Publish(t.Context(), rpc.Event{Host: "n", Kind: "task", ID: id}); err != nil {
				t.Fatal(err)
			}
		}
		publish("old")
		<-time.NewTimer(25 * time.Hour).C
		publish("new")
		r, err := c.Events(t.Context(), rpc.EventFilter{From: rpc.FromAll})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := r.Next(t.Context()); err != nil || e.ID != "new" {
			t.Errorf("Next = %+v, %v, want the one younger than a day", e, err)
		}
	})
}

// What is on its way when its connection closes is lost, so that it can't come after what
// the next connection of the same process says.
func TestMemoryCloseLosesWhatIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := rpc.NewBus()
		old, next := bus.Connect("agent"), bus.Connect("agent")
		bus.SetFaults(strike(rpc.LegStore, 1, rpc.Fate{Delay: 3 * time.Second}))
		time.AfterFunc(time.Second, func() { _ = old.Close() })
		if err := old.Put(t.Context(), rpc.Hosts, []string{"node1"}, []byte(`"old"`)); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("Put on a connection that closes = %v, want unavailable", err)
		}
		if err := next.Put(t.Context(), rpc.Hosts, []string{"node1"}, []byte(`"new"`)); err != nil {
			t.Fatal(err)
		}
		<-time.NewTimer(time.Minute).C
		if e, err := next.Get(t.Context(), rpc.Hosts, []string{"node1"}); err != nil || string(e.Value) != `"new"` {
			t.Errorf("Get = %s, %v, want what the later connection wrote", e.Value, err)
		}
	})
}

// TestMemoryViewsKeepTheOrderOfAConnection: an entry whose writer has given it up may be
// stored later, and is not newer than what the same connection has put since.
func TestMemoryViewsKeepTheOrderOfAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := rpc.NewBus()
		agent, key := bus.Connect("agent"), []string{"node1"}
		bus.SetFaults(strike(rpc.LegStore, 1, rpc.Fate{Delay: 2 * time.Second, Duplicate: true}))
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := agent.Put(short, rpc.Hosts, key, []byte("old")); fault.KindOf(err) != fault.Timeout {
			t.Fatalf("got %v, want a timeout", err)
		}
		if err := agent.Put(t.Context(), rpc.Hosts, key, []byte("new")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		e, err := agent.Get(t.Context(), rpc.Hosts, key)
		if err != nil || string(e.Value) != "new" {
			t.Errorf("got %q, %v", e.Value, err)
		}
	})
}
