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

// An inventory that fails is taken again soon: a host without one has no room for
// anybody until the next round, ten minutes later.
func TestFailedInventoryIsTakenAgain(t *testing.T) {
	for _, method := range []string{"Host", "List"} {
		t.Run(method, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				n := r.nodes["a"]
				n.stop()
				n.machine.Faults().Add(fake.Fault{Method: method, Err: fault.New(fault.Internal, method, "", "it fails"), Times: 3})
				n.start()
				r.pass(30 * time.Second)
				var host api.HostView
				if err := r.call("a", api.GetHostInfo, api.NoArgs{}, &host); err != nil {
					t.Fatal(err)
				}
				if host.Hypervisor != "connected" || host.Resources.VCPUs == 0 {
					t.Errorf("half a minute later the host is %s with %d CPUs", host.Hypervisor, host.Resources.VCPUs)
				}
				r.build("a")
			}, "a")
		})
	}
}

// A guest whose domain is gone is reported when the hypervisor tells of it, not at the
// next inventory.
func TestGuestWithoutDomainIsReported(t *testing.T) {
	inBubble(t, func(r *rig) {
		id := r.build("a")
		d := r.nodes["a"].machine.Open()
		if err := errors.Join(d.Destroy(r.ctx, id), d.Undefine(r.ctx, id, true)); err != nil {
			t.Fatal(err)
		}
		r.pass(time.Second)
		if inst := r.show("a", id); inst.VMState != instance.VMError || inst.Fault == nil {
			t.Errorf("a second later the instance is %s, %v; want error with the reason", inst.VMState, inst.Fault)
		}
	}, "a")
}
