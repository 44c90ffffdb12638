package vif_test

import (
	"context"
	"fmt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/vif"
)

// A port is plugged, waited for, shown and unplugged. On a host it is vif.Linux() in place of the memory.
func ExampleManager() {
	ctx := context.Background()
	m := vif.New(vif.Config{}, vif.Memory("br-int0"))
	ports := []instance.Port{{
		ID: "df8e1f1a-9f5c-4a55-8a5b-0c1d2e3f4a5b", MAC: "52:54:00:00:00:01", Binding: instance.BindingBridge, Bridge: "br-int0", WaitForEvent: true,
	}}
	const instanceID = "0b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"

	// The network's owner is quick: its word is kept until somebody waits for it.
	m.Event(api.ExternalEvent{Name: vif.EventPlugged, Instance: instanceID, Tag: ports[0].ID, Status: "completed"})
	fmt.Println(m.Plug(ctx, instanceID, ports), m.Ready(ctx, instanceID, ports))
	for _, s := range m.Status(instanceID, ports) {
		fmt.Println(s.Device, s.State)
	}
	fmt.Println(m.Unplug(ctx, instanceID, ports), m.Unplug(ctx, instanceID, ports))

	ports[0].Bridge = "br-itn0"
	err := m.Plug(ctx, instanceID, ports)
	fmt.Println(fault.KindOf(err), fault.HintOf(err))
	// Output:
	// <nil> <nil>
	// tapdf8e1f1a-9f plugged
	// <nil> <nil>
	// precondition_failed did you mean br-int0?
}
