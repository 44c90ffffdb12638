package controller_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// A call that takes longer than CallTimeout is waited for while heartbeats come, and
// given up soon when they stop; without the option there is one reply, in time or not.
func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := rpc.NewBus()
		agent := bus.Connect("agent")
		stop, err := agent.Serve(t.Context(), rpc.ServiceInfo{Host: "node1", Version: "1.0.0"}, func(_ context.Context, m rpc.Message, respond func(rpc.Reply)) {
			time.AfterFunc(5*time.Minute, func() { respond(rpc.Reply{Body: []byte(`{"asked":"` + m.Heartbeat.String() + `"}`)}) })
		})
		if err != nil {
			t.Fatal(err)
		}
		ask := func(o controller.Options) (string, time.Duration, error) {
			var got struct{ Asked string }
			began := time.Now()
			err := controller.New(bus.Connect("ctl"), o).Call(t.Context(), "node1", "slow", struct{}{}, &got)
			return got.Asked, time.Since(began), err
		}
		if got, _, err := ask(controller.Options{Heartbeat: time.Second}); err != nil || got != "1s" {
			t.Errorf("with heartbeats: %q, %v", got, err)
		}
		_, took, err := ask(controller.Options{})
		wantKind(t, "without", err, fault.Timeout)
		if took > time.Minute {
			t.Errorf("without heartbeats it took %v, want CallTimeout", took)
		}
		_, took, err = ask(controller.Options{Heartbeat: time.Second, TaskTimeout: time.Minute})
		wantKind(t, "longer than TaskTimeout", err, fault.Timeout)
		if took != time.Minute {
			t.Errorf("it took %v, want TaskTimeout", took)
		}
		_, _, err = ask(controller.Options{Heartbeat: time.Millisecond})
		wantKind(t, "a thousand a second", err, fault.InvalidArgument)
		bus.SetFaults(func(p rpc.Passage) rpc.Fate { return rpc.Fate{Drop: p.Leg == rpc.LegReply} })
		_, took, err = ask(controller.Options{Heartbeat: time.Second, BusPatience: time.Millisecond})
		wantKind(t, "heartbeats that are lost, of a host that does not report", err, fault.NotFound)
		if took > 5*time.Second {
			t.Errorf("silence was noticed after %v, want 2 s", took)
		}
		<-time.After(10 * time.Minute) // what is under way ends
		_ = stop()
	})
}
