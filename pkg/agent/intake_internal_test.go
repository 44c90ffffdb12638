package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// BenchmarkAccept is what an accepted cast costs: admission, journal, lane.
func BenchmarkAccept(b *testing.B) {
	store, err := state.Open(b.Context(), b.TempDir(), state.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = store.Close() })
	machine, err := fake.NewHost(fake.NewWorld(b.Context()), fake.Config{Name: "a", VCPUs: 4, MemoryMiB: 4096})
	if err != nil {
		b.Fatal(err)
	}
	a := New(Config{Host: "a"}, Ports{Store: store, Hypervisor: machine.Open()})
	bodies := make([][]byte, 0, readBatch)
	for i := range readBatch {
		id := instance.NewUUID()
		a.ledger.instances[id] = &instance.Instance{
			UUID: id, Name: fmt.Sprintf("web%d", i), Host: "a", Generation: 1, VMState: instance.VMActive, PowerState: instance.PowerRunning,
			CreatedAt: time.Now(), Spec: instance.Spec{UUID: id, Name: "web", VCPUs: 1, MemoryMiB: 64, Ports: []instance.Port{{ID: instance.NewPortID(), Bridge: "br0"}}},
		}
		bodies = append(bodies, fmt.Appendf(nil, `{"instance":%q}`, id))
	}
	in := &intake{agent: a}
	b.ReportAllocs()
	for b.Loop() {
		a.lanes, in.burst = newLanes(), in.burst[:0]
		clear(a.ledger.tasksOf)
		in.batch = in.batch[:0]
		for _, body := range bodies {
			in.batch = append(in.batch, rpc.Delivery{
				Message: rpc.Message{Method: api.PauseInstance, RequestID: instance.NewUUID(), Version: "1.0", Args: body},
				Sent:    time.Now(), Delivered: 1, Ack: func() error { return nil },
			})
		}
		if err := in.take(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*readBatch), "µs/cast")
}

// BenchmarkShow is what a call that reads costs beside the bus: decoding, a look at the hypervisor, encoding.
func BenchmarkShow(b *testing.B) {
	machine, err := fake.NewHost(fake.NewWorld(b.Context()), fake.Config{Name: "a", VCPUs: 4, MemoryMiB: 4096})
	if err != nil {
		b.Fatal(err)
	}
	hv := machine.Open()
	a := New(Config{Host: "a"}, Ports{Hypervisor: hv})
	id := instance.NewUUID()
	spec := instance.Spec{
		UUID: id, Name: "web", VCPUs: 1, MemoryMiB: 64, Metadata: map[string]string{"role": "bench", "by": "hand"},
		Ports: []instance.Port{{ID: instance.NewPortID(), MAC: "52:54:00:00:00:01", Binding: instance.BindingBridge, Bridge: "br0"}},
	}
	a.ledger.instances[id] = &instance.Instance{
		UUID: id, Name: "web", Host: "a", Generation: 1, VMState: instance.VMActive, PowerState: instance.PowerRunning,
		CreatedAt: time.Now(), UpdatedAt: time.Now(), Spec: spec, Ports: []instance.PortStatus{{Port: spec.Ports[0], State: instance.PortPlugged, Device: spec.Ports[0].Device()}},
	}
	if err := hv.Define(b.Context(), virt.Definition{Spec: spec, Generation: 1}); err != nil {
		b.Fatal(err)
	}
	m := rpc.Message{Method: api.ShowInstance, RequestID: instance.NewUUID(), Version: "1.0", Args: fmt.Appendf(nil, `{"instance":%q}`, id)}
	b.ReportAllocs()
	for b.Loop() {
		if r := a.answer(b.Context(), m); r.Err != nil {
			b.Fatal(r.Err)
		}
	}
}
