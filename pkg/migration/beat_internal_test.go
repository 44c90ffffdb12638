package migration

import (
	"context"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// moving is a hypervisor whose guests move on at each look.
type moving struct {
	Hypervisor // what is not used here
	looks      uint64
}

func (h *moving) Job(ctx context.Context, _ string) (virt.Job, error) {
	h.looks++
	return virt.Job{Type: virt.JobUnbounded, Iteration: 1, Bandwidth: 1, Memory: instance.Amount{Total: 1 << 40, Remaining: 1<<40 - h.looks}}, ctx.Err()
}

func (h *moving) SetMaxDowntime(context.Context, string, time.Duration) error { return nil }

// watching is a monitor in the middle of its job.
func watching(ctx context.Context) *monitor {
	s := &Source{cfg: Config{}.WithDefaults(), budget: newBudget(0), ports: SourcePorts{Hypervisor: &moving{}, Reporter: quiet{}}}
	m := newRun(s, Record{}).newMonitor()
	m.asks = newBound(ctx, time.Minute, theAnswer)
	_ = m.beat(ctx)            // sets the permitted downtime
	m.r.line.every = time.Hour // it grows for a while
	return m
}

// A beat that finds nothing to do makes nothing: there are twenty thousand a second.
func TestABeatMakesNothing(t *testing.T) {
	m := watching(t.Context())
	n := testing.AllocsPerRun(1000, func() {
		if err := m.beat(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	if n > 0 {
		t.Errorf("a beat makes %v allocations", n)
	}
}

// BenchmarkBeat is one beat, without hypervisor, timer and publishing.
func BenchmarkBeat(b *testing.B) {
	m := watching(b.Context())
	b.ReportAllocs()
	for b.Loop() {
		if err := m.beat(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
