package reboot_test

import (
	"context"
	"fmt"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/reboot"
	"github.com/compute-agent/compute-agent/pkg/vif"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// A guest that is paused can't answer: the soft reboot becomes a hard one at once, and says so.
func ExampleRebooter_Soft() {
	ctx := context.Background()
	host, err := fake.NewHost(fake.NewWorld(ctx), fake.Config{Name: "node1"})
	if err != nil {
		fmt.Println(err)
		return
	}
	machine := host.Open()
	defer func() { _ = machine.Close() }()
	d := virt.Definition{Spec: instance.Spec{UUID: "0b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b", Name: "web1", VCPUs: 1, MemoryMiB: 128}}
	fmt.Println(machine.Define(ctx, d), machine.Start(ctx, d.Spec.UUID), machine.Pause(ctx, d.Spec.UUID))

	before, err := machine.Lookup(ctx, d.Spec.UUID) // the caller keeps its ID across restarts
	if err != nil {
		fmt.Println(err)
		return
	}
	r := reboot.New(reboot.Config{}, machine, vif.New(vif.Config{}, vif.Memory()))
	result, err := r.Soft(ctx, d, before.ID)
	fmt.Println(result.Type, result.Reason, err)

	again, err := r.Soft(ctx, d, before.ID) // a task that is resumed: it has happened
	fmt.Println(again.Type, again.Reason, err)
	// Output:
	// <nil> <nil> <nil>
	// HARD soft was not possible: it is paused and can't answer <nil>
	// SOFT the guest runs under a new id (2 after 1): somebody restarted it <nil>
}
