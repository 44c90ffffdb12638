package main

import (
	"context"
	"encoding/json"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/internal/collector"
	"github.com/compute-agent/compute-agent/internal/compose"
	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/sdnotify"
	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/vif"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// member describes an agent that is put together as `compute-agent run` does it,
// with two differences: its fake machines are not kept in a file, and it may count
// how often each guest's job is looked at.
type member struct {
	Host    string
	URL     string
	Dir     string
	Slots   int    // migrations at a time, each way
	Count   bool   // the beats of monitors
	Batches bool   // the streams take them
	Profile string // file for a CPU profile of its whole life, with Count of the measurement alone; empty: none
}

// member starts an agent in a process of its own.
func (e *env) member(ctx context.Context, m member, environment ...string) (*process, error) {
	m.Dir = e.folder("state")
	if e.profile != "" {
		m.Profile = e.profile + "." + m.Host
		if m.Count { // what is held is looked at too; elsewhere that would be a tenth of the profile
			environment = append(environment, "GODEBUG=memprofilerate=4096")
		}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return e.notified(ctx, environment, e.self, "-role", "member", string(raw))
}

// roleMember is that process. It answers on bench.member.<host>.<command>.
func roleMember(ctx context.Context, text string) error {
	var m member
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return err
	}
	defer collector.Start()()
	if m.Profile != "" && !m.Count {
		if err := startProfile(m.Profile); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	log, err := logkit.New(logkit.Options{Out: os.Stderr, Level: "warning", Format: "text"})
	if err != nil {
		return err
	}
	life := compose.Logging(logkit.Into(context.WithoutCancel(ctx), log))
	cfg := rpc.Config{URLs: []string{m.URL}, AutoSetup: true, Name: m.Host}
	if m.Batches {
		cfg.Batches = rpc.BatchesOn
	}
	bus, err := rpc.Dial(life, cfg)
	if err != nil {
		return err
	}
	beats := &beatCounter{last: map[string]time.Time{}, profile: m.Profile}
	node, err := m.node(life, bus, beats)
	if err != nil {
		return err
	}
	nc, err := nats.Connect(m.URL)
	if err != nil {
		return err
	}
	if _, err := nc.Subscribe("bench.member."+m.Host+".*", beats.answer); err != nil {
		return err
	}
	if err := sdnotify.Ready(); err != nil {
		return err
	}
	<-ctx.Done()
	return node.Stop(life)
}

// startProfile begins a CPU profile.
func startProfile(file string) error {
	f, err := os.Create(file) //nolint:gosec // the user names it
	if err != nil {
		return err
	}
	return pprof.StartCPUProfile(f)
}

// holds writes what is held at this moment: the heap and the goroutines' stacks.
func holds(file string) {
	for _, name := range []string{"heap", "goroutine"} {
		f, err := os.Create(file + "." + name) //nolint:gosec // the user names it
		if err != nil {
			continue
		}
		_ = pprof.Lookup(name).WriteTo(f, 0)
		_ = f.Close()
	}
}

func (m member) node(ctx context.Context, bus rpc.Transport, beats *beatCounter) (*compose.Node, error) {
	host, err := fake.NewHost(fake.NewWorld(ctx), fake.Config{Name: m.Host, Listen: "127.0.0.1:0", VCPUs: 1 << 20, MemoryMiB: 1 << 30})
	if err != nil {
		return nil, err
	}
	driver := compose.Driver(host.Open())
	if m.Count {
		driver = counted{driver, beats}
	}
	cfg := compose.Config{Network: vif.Memory("br-int0"), Agent: agent.Config{
		Host: m.Host, Driver: "fake", MachineID: "bench-" + m.Host, StateDir: m.Dir, MaxAcceptedTasks: 20_000,
		Migration: migration.Config{OutboundSlots: m.Slots, InboundSlots: m.Slots},
	}}
	node, err := compose.New(ctx, cfg, driver, bus)
	if err != nil {
		return nil, err
	}
	return node, node.Start(ctx)
}

// counted is a driver that tells of each look at a job.
type counted struct {
	compose.Driver
	beats *beatCounter
}

// Job implements migration.Hypervisor.
func (c counted) Job(ctx context.Context, id string) (j virt.Job, err error) {
	j, err = c.Driver.Job(ctx, id)
	if err == nil && j.Type == virt.JobUnbounded {
		c.beats.beat(id)
	}
	return j, err
}

// beatCounter gathers the time between two looks at the same job.
type beatCounter struct {
	profile string // see member

	mu      sync.Mutex
	last    map[string]time.Time
	on      bool
	periods samples // ms
}

// beatReport is what a member answers.
type beatReport struct {
	Guests       int // whose job was looked at within the last two seconds
	Beats        int
	P1, P50, P99 float64 // ms
	Max          float64
	Live         uint64 // bytes of heap and stacks after some collections
	Stacks       uint64 // of it, stacks
	Goroutines   int
}

func (b *beatCounter) beat(id string) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if before, known := b.last[id]; known && b.on {
		b.periods = append(b.periods, ms(now.Sub(before)))
	}
	b.last[id] = now
}

// answer serves the commands: begin and end of a measurement, a collection, a look.
func (b *beatCounter) answer(m *nats.Msg) {
	r := beatReport{Goroutines: runtime.NumGoroutine()}
	command := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	if command == "gc" {
		for range 4 { // each halves a stack that is mostly empty
			runtime.GC()
		}
		debug.FreeOSMemory()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		r.Live, r.Stacks = stats.HeapAlloc+stats.StackInuse, stats.StackInuse
		if b.profile != "" {
			holds(b.profile)
		}
	}
	b.mu.Lock()
	switch command {
	case "begin":
		b.periods, b.on = nil, true
		if b.profile != "" {
			_ = startProfile(b.profile)
		}
	case "end":
		b.on = false
		if b.profile != "" {
			pprof.StopCPUProfile()
		}
		r.Beats = len(b.periods)
		r.P1, r.P50, r.P99, r.Max = b.periods.at(0.01), b.periods.at(0.5), b.periods.at(0.99), b.periods.max()
	}
	for _, at := range b.last {
		if time.Since(at) < 2*time.Second {
			r.Guests++
		}
	}
	b.mu.Unlock()
	if raw, err := json.Marshal(r); err == nil {
		_ = m.Respond(raw)
	}
}
