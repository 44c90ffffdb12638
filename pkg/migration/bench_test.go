package migration_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// instant is a world without waiting: a hypervisor whose job ends when it is told to,
// and a destination that says yes. It measures this package alone.
type instant struct {
	migration.Hypervisor // what is not used here
	end                  chan struct{}
	ended                atomic.Int64 // when the blocking call returned, in ns
	posted               atomic.Int64 // when the post step asked the destination
	gone                 atomic.Bool
}

func (w *instant) Subscribe(func(virt.Event)) func()            { return func() {} }
func (w *instant) Undefine(context.Context, string, bool) error { return nil }

func (w *instant) Lookup(_ context.Context, id string) (virt.Domain, error) {
	if w.gone.Load() {
		return virt.Domain{}, fault.New(fault.NotFound, "Lookup", id, "no such domain")
	}
	return virt.Domain{UUID: id, ID: 1, State: virt.Running}, nil
}

func (w *instant) Job(_ context.Context, id string) (virt.Job, error) {
	if w.gone.Load() {
		return virt.Job{}, fault.New(fault.NotFound, "Job", id, "no such domain")
	}
	return virt.Job{Type: virt.JobUnbounded, Iteration: 1, Bandwidth: 1, Memory: instance.Amount{Total: 100, Remaining: 50}}, nil
}
func (w *instant) SetMaxDowntime(context.Context, string, time.Duration) error { return nil }

func (w *instant) Migrate(context.Context, virt.MigrateRequest) error {
	<-w.end
	w.gone.Store(true)
	w.ended.Store(time.Now().UnixNano())
	return nil
}

// yes is the rest of the world.
type yes struct{ *instant }

func (y yes) Check(context.Context, string, api.PeerMigrateArgs) (api.CheckResult, error) {
	return api.CheckResult{}, nil
}

func (y yes) Prepare(context.Context, string, api.PeerMigrateArgs) (api.PreparedResult, error) {
	return api.PreparedResult{URI: "bench"}, nil
}

func (y yes) Post(context.Context, string, api.PeerRefArgs) (api.OwnedResult, error) {
	y.posted.CompareAndSwap(0, time.Now().UnixNano())
	return api.OwnedResult{Owned: true, State: "running"}, nil
}
func (y yes) Rollback(context.Context, string, api.PeerRefArgs) error { return nil }
func (y yes) Show(context.Context, string, string) (instance.Migration, error) {
	return instance.Migration{}, nil
}
func (y yes) Save(context.Context, *migration.Record, []instance.Moment) error { return nil }
func (y yes) Load(migration.Role, string) (r migration.Record, known bool)     { return r, false }
func (y yes) Report(instance.Migration)                                        {}
func (y yes) Plug(context.Context, string, []instance.Port) error              { return nil }
func (y yes) Ready(context.Context, string, []instance.Port) error             { return nil }
func (y yes) Activate(context.Context, string, []instance.Port) error          { return nil }
func (y yes) Unplug(context.Context, string, []instance.Port) error            { return nil }
func (y yes) CanClaim(context.Context, api.PeerMigrateArgs) (reasons []string) { return nil }
func (y yes) Claim(context.Context, migration.Record) error                    { return nil }
func (y yes) Unclaim(context.Context, migration.Record) error                  { return nil }
func (y yes) Own(context.Context, migration.Record) error                      { return nil }
func (y yes) Disown(context.Context, migration.Record) error                   { return nil }

// plugs is its wires.
type plugs struct{ yes }

func (plugs) Check(context.Context, string, []instance.Port) (reasons []string, err error) {
	return nil, nil
}

// BenchmarkFinishToPost measures from the end of the hypervisor's blocking call to the
// begin of the post step (target: at most 10 ms; nova: 231 ms median, 500 ms worst).
// The monitor beats each 0.5 s, so only the finish Event can be that fast.
func BenchmarkFinishToPost(b *testing.B) {
	var took []time.Duration
	for b.Loop() {
		w := &instant{end: make(chan struct{})}
		y := yes{w}
		s := migration.NewSource(migration.Config{Host: "a"}, migration.SourcePorts{
			Hypervisor: w, Peer: y, Plugger: plugs{y}, Journal: y, Owner: y, Reporter: y,
		})
		time.AfterFunc(2*time.Millisecond, func() { close(w.end) })
		inst := instance.Instance{UUID: instance.NewUUID(), Generation: 1, Spec: instance.Spec{MemoryMiB: 1024}}
		if m, err := s.Run(b.Context(), new(migration.NewRecord(inst, api.MigrateArgs{Instance: inst.UUID, Dest: "b"}, "a", ""))); err != nil {
			b.Fatalf("%+v, %v", m, err)
		}
		took = append(took, time.Duration(w.posted.Load()-w.ended.Load()))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
	b.ReportMetric(float64(took[len(took)-1].Microseconds()), "max-us")
}

// BenchmarkDecide is one look of the monitor, without the hypervisor.
func BenchmarkDecide(b *testing.B) {
	p, s := adaptive(migration.StallAbort), needs(time.Second, 9, 8)
	for b.Loop() {
		s.Track = s.Track.Observe(s.Job, s.Elapsed, 0.04)
		if p.Decide(s).Action != migration.ActSetDowntime {
			b.Fatal("unexpected")
		}
	}
}
