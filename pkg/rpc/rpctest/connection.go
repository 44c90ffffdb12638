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

func connectionCases() []testCase {
	return []testCase{
		{"connection/state", connectionState},
		{"connection/closed", connectionClosed},
		{"connection/unavailable while away", connectionAway},
		{"connection/calls after a restart", restartCalls},
		{"connection/casts over a restart", restartCasts},
		{"connection/events over a restart", restartEvents},
		{"connection/watch over a restart", restartWatch},
	}
}

// states follows a connection's state in a channel.
func states(t *testing.T, c rpc.Transport) <-chan bool {
	t.Helper()
	ch := make(chan bool, 100)
	t.Cleanup(c.OnState(func(up bool) { ch <- up }))
	return ch
}

func wantState(t *testing.T, ch <-chan bool, want bool) {
	t.Helper()
	ctx := within(t)
	for {
		select {
		case got := <-ch:
			if got == want {
				return
			}
		case <-ctx.Done():
			t.Fatalf("the state did not become connected=%v", want)
		}
	}
}

func connectionState(t *testing.T, rig *Rig) {
	c := rig.Connect(t, "agent")
	seen := states(t, c)
	silent := make(chan bool, 100)
	cancel := c.OnState(func(up bool) { silent <- up })
	cancel()
	cancel()
	rig.Restart(t, func() { wantState(t, seen, false) })
	wantState(t, seen, true)
	if len(silent) != 0 {
		t.Error("a cancelled function was called")
	}
}

func connectionClosed(t *testing.T, rig *Rig) {
	c := rig.Connect(t, "agent")
	r, err := c.Casts(within(t), "node1")
	must(t, "Casts", err)
	ended := make(chan struct{})
	_, err = c.Serve(within(t), info("node2", "m"), func(ctx context.Context, _ rpc.Message, _ func(rpc.Reply)) {
		context.AfterFunc(ctx, func() { close(ended) })
		time.AfterFunc(0, func() { _ = c.Close() })
	})
	must(t, "Serve", err)
	_, err = rig.Connect(t, "ctl").Call(withinTime(t, 200*time.Millisecond), "node2", rpc.Message{Method: "m"})
	wantKind(t, "Call to an agent that closes its connection", err, fault.Timeout)
	<-ended
	must(t, "Close again", c.Close())
	_, err = c.Call(within(t), "node1", rpc.Message{Method: "m"})
	wantKind(t, "Call", err, fault.Unavailable)
	wantKind(t, "Publish", c.Publish(within(t), rpc.Event{Host: "h", Kind: "k", ID: "i"}), fault.Unavailable)
	_, err = r.Next(within(t), 1)
	wantKind(t, "Next", err, fault.Unavailable)
}

func connectionAway(t *testing.T, rig *Rig) {
	c := rig.Connect(t, "agent")
	seen := states(t, c)
	rig.Restart(t, func() {
		wantState(t, seen, false)
		start := time.Now()
		_, err := c.Call(within(t), "node1", rpc.Message{Method: "m"})
		wantKind(t, "Call", err, fault.Unavailable)
		wantKind(t, "Cast", c.Cast(within(t), "node1", rpc.Message{Method: "m", RequestID: "a"}), fault.Unavailable)
		wantKind(t, "Publish", c.Publish(within(t), rpc.Event{Host: "h", Kind: "k", ID: "i"}), fault.Unavailable)
		wantKind(t, "Put", c.Put(within(t), rpc.Hosts, []string{"h"}, nil), fault.Unavailable)
		if took := time.Since(start); took > Patience/2 {
			t.Errorf("it took %s to learn that the bus is away", took)
		}
	})
	wantState(t, seen, true)
}

// eventually repeats fn while its error is one that may pass.
func eventually(t *testing.T, what string, fn func(context.Context) error) {
	t.Helper()
	ctx := within(t)
	for {
		err := fn(ctx)
		if err == nil {
			return
		}
		if !fault.Retryable(err) || ctx.Err() != nil {
			t.Fatalf("%s = %v", what, err)
		}
		<-time.NewTimer(10 * time.Millisecond).C
	}
}

func restartCalls(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	serve(t, agent, "node1", answer(echo))
	rig.Restart(t, func() {})
	eventually(t, "Call after a restart", func(ctx context.Context) error {
		_, err := ctl.Call(ctx, "node1", rpc.Message{Method: "m", Args: []byte("{}")})
		return err
	})
}

func restartCasts(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	r := reader(t, agent, "node1")
	for i := range 5 {
		cast(t, ctl, "node1", fmt.Sprint(i), "{}")
	}
	ack(t, read(t, r, 2)...)
	unacked(t, r, 0)
	rig.Restart(t, func() {})
	for i := 5; i < 10; i++ {
		eventually(t, "Cast after a restart", func(ctx context.Context) error {
			return ctl.Cast(ctx, "node1", rpc.Message{Method: "m", RequestID: fmt.Sprint(i)})
		})
	}
	ctx, seen := within(t), map[string]bool{}
	for len(seen) < 8 {
		batch, err := r.Next(ctx, 4)
		if err != nil && (!errors.Is(err, fault.Unavailable) || ctx.Err() != nil) {
			t.Fatalf("Next after a restart = %v, have %v", err, seen)
		}
		for _, d := range batch {
			seen[d.RequestID] = true
			eventually(t, "Ack after a restart", func(context.Context) error { return d.Ack() })
		}
	}
	if seen["0"] || seen["1"] {
		t.Errorf("acknowledged casts came again: %v", seen)
	}
}

func restartEvents(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	all, fresh := events(t, ctl, rpc.EventFilter{From: rpc.FromAll}), events(t, ctl, rpc.EventFilter{})
	publish(t, agent, "node1", "task", "a", "1")
	expect(t, all, "1")
	rig.Restart(t, func() {})
	eventually(t, "Publish after a restart", func(ctx context.Context) error {
		return agent.Publish(ctx, rpc.Event{Host: "node1", Kind: "task", ID: "a", MsgID: "2", Body: []byte("2")})
	})
	expect(t, all, "2")
	expect(t, fresh, "1", "2")
}

func restartWatch(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	put(t, agent, rpc.Hosts, "1", "node1")
	done, ctx := errors.New("done"), within(t)
	n := 0
	err := ctl.Watch(ctx, rpc.Hosts, []string{"*"}, func(e rpc.Entry) error {
		n++
		if n == 1 {
			rig.Restart(t, func() {})
			eventually(t, "Put after a restart", func(ctx context.Context) error {
				return agent.Put(ctx, rpc.Hosts, []string{"node1"}, []byte("2"))
			})
			return nil
		}
		if n > 2 || string(e.Value) != "2" || e.Initial {
			t.Errorf("entry %d is %q, initial %v: want each change once", n, e.Value, e.Initial)
		}
		return done
	})
	if !errors.Is(err, done) {
		t.Fatalf("Watch = %v", err)
	}
}
