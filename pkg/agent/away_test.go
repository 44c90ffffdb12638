package agent_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// The bus is away for an hour. Work that was accepted goes on; what happens
// meanwhile is told afterwards, in order, each thing once, and the views follow,
// entries of what is no more included.
func TestBusAwayForAnHour(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		stays, goes := r.build("a"), r.build("a")
		n.machine.Faults().Add(fake.Fault{Method: "Pause", Delay: 10 * time.Minute})
		n.machine.Faults().Add(fake.Fault{Method: "Destroy", Delay: time.Minute})
		ids := []string{
			r.cast("a", api.PauseInstance, about(stays)),
			r.cast("a", api.UnpauseInstance, about(stays)),
			r.cast("a", api.TerminateInstance, about(goes)),
		}
		r.pass(time.Second)
		r.bus.Partition("a")
		r.pass(30 * time.Minute)
		same(t, "pauses while the bus is away", n.machine.Counts(stays).Pauses, 1)
		if err := n.machine.GuestShutdown(stays); err != nil {
			t.Fatal(err)
		}
		r.pass(30 * time.Minute)
		later := r.cast("a", api.StartInstance, about(stays))
		if _, err := r.ctl.Call(r.ctx, "a", r.message(instance.NewUUID(), api.GetHostInfo, nil)); !errors.Is(err, fault.Unavailable) {
			t.Errorf("a call meanwhile: %v, want unavailable", err)
		}
		// somebody's forgotten entry, in the name of this host
		ghost := instance.NewUUID()
		if err := r.ctl.Put(r.ctx, rpc.Instances, []string{"a", ghost}, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		r.bus.Heal("a")
		r.done(later)
		for _, id := range ids {
			if d := cmp.Diff(wholeLife, r.life(id)); d != "" {
				t.Errorf("told (-want +got):\n%s", d)
			}
		}
		var names []string
		for _, e := range r.told(api.EventInstance, stays) {
			names = append(names, instanceEvent(t, e).Event)
		}
		if d := cmp.Diff([]string{"built", "paused", "unpaused", "stopped", "started"}, names); d != "" {
			t.Errorf("events of the instance (-want +got):\n%s", d)
		}
		r.pass(10 * time.Second)
		if v, ok := r.view("a", stays); !ok || v.VMState != instance.VMActive {
			t.Errorf("view of the one that stayed: %v %v", v.VMState, ok)
		}
		for _, id := range []string{goes, ghost} {
			if _, ok := r.view("a", id); ok {
				t.Errorf("the view still has %s", id)
			}
		}
	}, "a")
}

// More events than fit into memory wait in the journal, over a crash too.
func TestManyEventsWait(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		guests := make([]string, 60)
		for i := range guests {
			guests[i] = r.build("a")
		}
		release := n.machine.Faults().Add(hangs("Pause"))
		var ids []string
		for range 15 {
			for _, g := range guests {
				ids = append(ids, r.cast("a", api.PauseInstance, about(g)), r.cast("a", api.UnpauseInstance, about(g)))
			}
		}
		r.pass(10 * time.Second)
		r.bus.Partition("a")
		release()
		r.pass(time.Minute)
		n.crash()
		r.bus.Heal("a")
		n.start()
		r.pass(time.Minute)
		for _, id := range ids {
			if d := cmp.Diff(wholeLife, r.life(id)); d != "" {
				t.Fatalf("told (-want +got):\n%s", d)
			}
		}
	}, "a")
}

// A server that restarts under load: every cast is carried out once, in order.
func TestBusRestarts(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		id := r.build("a")
		var last string
		for i := range 30 {
			r.cast("a", api.PauseInstance, about(id))
			last = r.cast("a", api.UnpauseInstance, about(id))
			if i%7 == 3 {
				r.bus.Restart(func() { r.pass(time.Duration(i) * time.Second) })
			}
		}
		r.done(last)
		e := n.machine.Counts(id)
		same(t, "pauses", e.Pauses, 30)
		same(t, "unpauses", e.Unpauses, 30)
	}, "a")
}

// With the hypervisor away what needs it is unavailable and the rest works; when it
// is back everything does.
func TestHypervisorAway(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		n.machine.Disconnect()
		r.pass(time.Second)
		for _, c := range []struct {
			method string
			args   any
		}{{api.PauseInstance, about(id)}, {api.RebootInstance, api.RebootArgs{Instance: id, RebootType: api.RebootHard}}, {api.StartInstance, about(id)}} {
			r.failed(r.cast("a", c.method, c.args), api.TaskFailed, fault.Unavailable)
		}
		if err := r.call("a", api.ShowInstance, about(id), nil); !errors.Is(err, fault.Unavailable) {
			t.Errorf("show_instance: %v, want unavailable", err)
		}
		var host api.HostView
		if err := r.call("a", api.GetHostInfo, api.NoArgs{}, &host); err != nil || host.Hypervisor != "away" {
			t.Errorf("the host's view: %q, %v; want away", host.Hypervisor, err)
		}
		n.machine.Reconnect()
		r.pass(10 * time.Second)
		r.done(r.cast("a", api.RebootInstance, api.RebootArgs{Instance: id, RebootType: api.RebootHard}))
		same(t, "starts", n.machine.Counts(id).Starts, 2) // the build's and the reboot's: the failed one did nothing, and was not taken for done
		if err := r.call("a", api.GetHostInfo, api.NoArgs{}, &host); err != nil || host.Hypervisor != "connected" {
			t.Errorf("the host's view: %q, %v; want connected", host.Hypervisor, err)
		}
	}, "a")
}

// An agent starts without its hypervisor, takes casts, and carries them out when the
// hypervisor is there.
func TestStartWithoutHypervisor(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		n.stop()
		n.machine.Disconnect()
		n.start()
		req := r.cast("a", api.PauseInstance, about(id))
		r.pass(5 * time.Second)
		if d := cmp.Diff([]api.TaskState{api.TaskAccepted}, r.life(req)); d != "" {
			t.Errorf("told (-want +got):\n%s", d)
		}
		n.machine.Reconnect()
		r.done(req)
		same(t, "vm_state", r.show("a", id).VMState, instance.VMPaused)
	}, "a")
}

// The bus goes away while an agent starts: it waits for it, up to BusWait.
func TestBusGoesDuringTheStart(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		id := r.build("a")
		n.stop()
		n.wrap = func(hv agent.Hypervisor) agent.Hypervisor { r.bus.Partition("a"); return hv } // it is dialled, and not yet started
		heal := time.AfterFunc(30*time.Second, func() { r.bus.Heal("a") })
		defer heal.Stop()
		began := time.Now()
		n.start()
		if took := time.Since(began); took < 30*time.Second || took > 40*time.Second {
			t.Errorf("the start took %v, want until the bus was back after 30 s", took)
		}
		r.done(r.cast("a", api.PauseInstance, about(id)))
	}, "a")
}

// Half a deletion, left by a crash, is the deletion's to finish and no problem that
// waits for a person.
func TestHalfDoneIsNotAProblem(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		id := r.build("a")
		n.machine.Faults().Add(fake.Fault{Method: "Undefine", Hang: true})
		req := r.cast("a", api.TerminateInstance, about(id))
		r.pass(time.Second)
		n.crash()
		n.machine.Faults().Clear()
		d := n.machine.Open() // it had come so far that the domain is gone
		if err := errors.Join(d.Undefine(r.ctx, id, true), d.Close()); err != nil {
			t.Fatal(err)
		}
		n.start()
		r.done(req)
		var host api.HostView
		if err := r.call("a", api.GetHostInfo, api.NoArgs{}, &host); err != nil || len(host.Problems) > 0 {
			t.Errorf("the host's problems: %q, %v, want none", host.Problems, err)
		}
	}, "a")
}
