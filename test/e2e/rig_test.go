package e2e_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/internal/compose"
	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/logkit/logtest"
	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/inventory"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/simulate"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// rig is a fleet and a controller on one bus.
type rig struct {
	*simulate.Fleet
	c   *controller.Client
	bus rpc.Transport
}

// limit bounds every test: what takes longer hangs.
const limit = 60 * time.Second

// guest answers the power button soon and dirties little, so that tests are quick.
func guest() fake.Guest {
	g := fake.DefaultGuest()
	g.ACPIAfter, g.Boot = 20*time.Millisecond, 20*time.Millisecond
	return g
}

// newRig starts n hosts, called node1.example … on the bus that dial reaches.
func newRig(t *testing.T, dial func(ctx context.Context, name string) (rpc.Transport, error), hosts ...string) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	ctx = compose.Logging(logkit.Into(ctx, logtest.New(t)))
	f, err := simulate.Start(ctx, simulate.Config{
		Hosts: hosts, StateDir: t.TempDir(), Dial: dial,
		Fake: fake.Config{Guest: guest(), VCPUs: 8, MemoryMiB: 8192},
		Node: compose.Config{Agent: agent.Config{
			Inventory: inventory.Config{RAMAllocationRatio: 1}, ReportInterval: time.Second, ViewInterval: 5 * time.Millisecond,
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Stop(context.WithoutCancel(ctx)); err != nil {
			t.Errorf("stopping the fleet: %v", err)
		}
	})
	bus, err := dial(ctx, "controller")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bus.Close() })
	r := &rig{Fleet: f, c: controller.New(bus, controller.Options{ResendInterval: time.Second}), bus: bus}
	r.eventually(t, "every host to report", func() bool {
		hs, err := r.c.Hosts(ctx)
		for _, h := range hs {
			if h.Hypervisor != "connected" {
				return false
			}
		}
		return err == nil && len(hs) == len(hosts)
	})
	return r
}

// eventually polls until ok, and fails when the test's time is over.
func (r *rig) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	give := time.NewTimer(10 * time.Second)
	defer give.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-give.C:
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// done waits for a task and fails the test when it did not succeed.
func done(t *testing.T, task *controller.Task, err error) {
	t.Helper()
	if err := end(t, task, err); err != nil {
		t.Fatalf("%v", err)
	}
}

// end waits for a task and gives its error.
func end(t *testing.T, task *controller.Task, err error) error {
	t.Helper()
	if err != nil {
		return err
	}
	defer func() { _ = task.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	_, err = task.Wait(ctx)
	return err
}

// spec is a guest with one port on the bridge that every host has.
func spec(name string) instance.Spec {
	return instance.Spec{
		UUID: instance.NewUUID(), Name: name, VCPUs: 1, MemoryMiB: 128,
		Ports: []instance.Port{{ID: uuid.NewString(), MAC: "52:54:00:00:00:01", Binding: instance.BindingBridge, Bridge: "br-int0"}},
	}
}
