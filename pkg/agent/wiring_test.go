package agent_test

import (
	"errors"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// wired tells whether the guest's port is made on a host.
func (n *node) wired(id string) bool {
	n.r.t.Helper()
	taps, err := n.network.Taps(n.r.ctx)
	if err != nil {
		n.r.t.Fatal(err)
	}
	for _, tap := range taps {
		if tap.Instance == id {
			return true
		}
	}
	return false
}

// A guest that could not be destroyed runs on: it must not lose its port.
func TestDeletionThatFailsLeavesThePort(t *testing.T) {
	inBubble(t, func(r *rig) {
		id, n := r.build("a"), r.nodes["a"]
		n.machine.Faults().Add(fake.Fault{Method: "Destroy", Err: errors.New("not now")})
		if e := r.end(r.cast("a", api.TerminateInstance, about(id))); e.State != api.TaskFailed {
			t.Fatalf("the deletion ended as %s", e.State)
		}
		same(t, "wired", n.wired(id), true)
		n.machine.Faults().Clear()
		r.done(r.cast("a", api.TerminateInstance, about(id)))
		same(t, "wired", n.wired(id), false)
	}, "a")
}

// An inventory leaves an instance to the task that holds it. When that ends without a
// look at the ports, they are made again all the same.
func TestPortsAreMadeAgainAfterTheTask(t *testing.T) {
	inBubble(t, func(r *rig) {
		id, n := r.build("a"), r.nodes["a"]
		n.machine.Faults().Add(fake.Fault{Method: "Pause", Delay: 20 * time.Second, Err: fault.New(fault.Internal, "test", "", "no")})
		pause := r.cast("a", api.PauseInstance, about(id))
		r.pass(time.Second)
		taps, _ := n.network.Taps(r.ctx)
		for _, tap := range taps { // somebody cleans up too much
			if err := n.network.Remove(r.ctx, tap.Name, tap.Port); err != nil {
				t.Fatal(err)
			}
		}
		n.machine.Disconnect()
		n.machine.Reconnect()
		r.pass(time.Second)
		same(t, "wired", n.wired(id), false)
		r.failed(pause, api.TaskFailed, fault.Internal)
		r.pass(30 * time.Second)
		same(t, "wired", n.wired(id), true)
		same(t, "vm_state", r.show("a", id).VMState, instance.VMActive)
	}, "a")
}

// What the hypervisor tells while the journal can't be written is written down later.
func TestChangeIsSeenWhileTheDiskIsFull(t *testing.T) {
	inBubble(t, func(r *rig) {
		id, n := r.build("a"), r.nodes["a"]
		full := errors.New("no space left on device")
		n.trouble.Store(&full)
		if err := n.machine.Crash(id); err != nil {
			t.Fatal(err)
		}
		r.pass(time.Minute)
		same(t, "vm_state", r.show("a", id).VMState, instance.VMActive)
		n.trouble.Store(nil)
		r.pass(10 * time.Second)
		same(t, "vm_state", r.show("a", id).VMState, instance.VMStopped)
	}, "a")
}
