// Package controllertest has agents that keep the wire contract and nothing else:
// they answer calls, accept casts, publish events and views, and move instances
// from one to the other in a few steps. Controllers and the command line are
// tested with them, on any transport, without hypervisors.
package controllertest

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// Fleet is some hosts on one bus. Its agents do what they are asked at once, but
// for a migration, which has Steps steps of Step each.
type Fleet struct {
	Steps int           // default 4
	Step  time.Duration // default 0; SetStep changes it later

	mu         sync.Mutex
	bus        rpc.Transport
	hosts      map[string]*api.HostView
	instances  map[string]*instance.Instance
	migrations map[string]*instance.Migration
	aborted    map[string]bool
	limits     map[string]uint64 // bytes a second
	tasks      map[string]api.TaskEvent
	refusals   map[string]*fault.Error
	judge      func(host string, m rpc.Message) *fault.Error
	broken     map[string]*fault.Error
	deaf       int
	runs       map[string]int
}

// NewFleet starts an agent for each host; they end with the test.
func NewFleet(tb testing.TB, bus rpc.Transport, hosts ...string) *Fleet {
	tb.Helper()
	f := &Fleet{
		Steps: 4, bus: bus, hosts: map[string]*api.HostView{}, instances: map[string]*instance.Instance{}, migrations: map[string]*instance.Migration{},
		aborted: map[string]bool{}, limits: map[string]uint64{}, tasks: map[string]api.TaskEvent{}, refusals: map[string]*fault.Error{}, broken: map[string]*fault.Error{}, runs: map[string]int{},
	}
	for _, host := range hosts {
		f.start(tb, host)
	}
	return f
}

func (f *Fleet) start(tb testing.TB, host string) {
	tb.Helper()
	ctx := tb.Context()
	now := time.Now()
	f.hosts[host] = &api.HostView{
		Host: host, Agent: "1.2.3", APIVersion: api.Version, Enabled: true, Driver: "fake", Hypervisor: "connected", HypervisorType: "fake",
		Resources: api.Resources{VCPUs: 8, MemoryMiB: 16384, DiskGiB: 100, DiskFreeGiB: 90}, StartedAt: now, ReportedAt: now, ReportIntervalMS: 10_000,
	}
	f.Report(tb, host, now)
	stop, err := f.bus.Serve(ctx, rpc.ServiceInfo{Host: host, Version: "1.2.3", Metadata: map[string]string{"host": host}}, f.handle(host))
	if err != nil {
		tb.Fatalf("Serve(%s) = %v", host, err)
	}
	reader, err := f.bus.Casts(ctx, host)
	if err != nil {
		tb.Fatalf("Casts(%s) = %v", host, err)
	}
	loop := green.Spawn(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, f.read(ctx, host, reader) })
	tb.Cleanup(func() { // ctx has ended by now
		_ = stop()
		_ = reader.Close()
		_, _ = loop.Wait(context.WithoutCancel(ctx))
	})
}

// Report writes the host's view as of at; an old one makes the host look down.
func (f *Fleet) Report(tb testing.TB, host string, at time.Time) {
	tb.Helper()
	f.mu.Lock()
	view := *f.hosts[host]
	f.mu.Unlock()
	view.ReportedAt = at
	if err := f.put(tb.Context(), rpc.Hosts, view, host); err != nil {
		tb.Fatal(err)
	}
}

// Add puts a running instance on a host, as if it had been built.
func (f *Fleet) Add(tb testing.TB, host, name, uuid string) {
	tb.Helper()
	if err := f.build(tb.Context(), host, instance.Spec{UUID: uuid, Name: name, VCPUs: 2, MemoryMiB: 2048}); err != nil {
		tb.Fatal(err)
	}
}

// Refuse makes casts and calls of a method fail with err before anything is done.
func (f *Fleet) Refuse(method string, err *fault.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusals[method] = err
}

// Judge has fn look at each call and cast before anything is done; an error of it is
// the answer. nil ends it.
func (f *Fleet) Judge(fn func(host string, m rpc.Message) *fault.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.judge = fn
}

// Break makes every migration to dest fail with err after its first step; nil mends it.
func (f *Fleet) Break(dest string, err *fault.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken[dest] = err
}

// SetStep changes Step, also of migrations that are in progress.
func (f *Fleet) SetStep(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Step = d
}

func (f *Fleet) step() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Step
}

// Set changes the state of an instance, as if it had happened on its host.
func (f *Fleet) Set(tb testing.TB, uuid string, state instance.VMState) {
	tb.Helper()
	f.mu.Lock()
	host := f.instances[uuid].Host
	f.mu.Unlock()
	if err := f.move(tb.Context(), host, "", uuid, state); err != nil {
		tb.Fatal(err)
	}
}

// refusal is what was ordered to be answered to a request, if anything.
func (f *Fleet) refusal(host string, m rpc.Message) *fault.Error {
	f.mu.Lock()
	judge, err := f.judge, f.refusals[m.Method]
	f.mu.Unlock()
	if err == nil && judge != nil {
		err = judge(host, m)
	}
	return err
}

// IgnoreCasts drops the next n casts without a trace, as an agent that crashes
// after the bus has stored them and before it has read them.
func (f *Fleet) IgnoreCasts(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deaf = n
}

// Runs tells how often a request was carried out.
func (f *Fleet) Runs(requestID string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.runs[requestID]
}

func (f *Fleet) put(ctx context.Context, b rpc.Bucket, v any, key ...string) error {
	raw, err := rpc.JSON(v)
	if err != nil {
		return err
	}
	return f.bus.Put(ctx, b, key, raw)
}

func (f *Fleet) handle(host string) rpc.Handler {
	return func(ctx context.Context, m rpc.Message, respond func(rpc.Reply)) {
		green.SpawnN(ctx, func(ctx context.Context) error {
			result, err := f.answer(ctx, host, m)
			if err != nil {
				respond(rpc.Reply{Err: fault.Wire(err)})
				return nil
			}
			raw, err := json.Marshal(result)
			respond(rpc.Reply{Body: raw, Err: fault.Wire(err)})
			return nil
		})
	}
}

// answer carries a call out.
func (f *Fleet) answer(ctx context.Context, host string, m rpc.Message) (any, error) {
	if err := f.refusal(host, m); err != nil {
		return nil, err
	}
	var named struct {
		Instance, Migration, Reason string
		Enabled                     bool
	}
	if err := json.Unmarshal(m.Args, &named); err != nil {
		return nil, fault.WrapAs(fault.InvalidArgument, err, m.Method, "")
	}
	if m.Method == api.SetHostEnabled {
		return f.enable(ctx, host, named.Enabled, named.Reason)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch m.Method {
	case api.GetHostInfo:
		return f.hosts[host], nil
	case api.GetAvailableResource:
		return f.hosts[host].Resources, nil
	case api.ListInstances:
		return f.listLocked(host), nil
	case api.CheckMigrateSource:
		return api.CheckResult{Reasons: []string{}}, nil
	case api.ShowMigration:
		if mig := f.migrations[named.Migration]; mig != nil {
			return api.MigrationResult{Migration: *mig}, nil
		}
		return nil, fault.New(fault.NotFound, m.Method, named.Migration, "no such migration on this host")
	case api.ShowInstance, api.GetConsoleOutput:
		return f.showLocked(host, m.Method, named.Instance)
	}
	return nil, fault.New(fault.UnsupportedMethod, m.Method, "", "this agent has no such method")
}

// enable opens or closes a host and publishes that.
func (f *Fleet) enable(ctx context.Context, host string, enabled bool, reason string) (any, error) {
	f.mu.Lock()
	f.hosts[host].Enabled, f.hosts[host].DisabledReason = enabled, reason
	view := *f.hosts[host]
	f.mu.Unlock()
	return view, f.put(ctx, rpc.Hosts, view, host)
}

func (f *Fleet) listLocked(host string) api.InstancesResult {
	list := api.InstancesResult{Instances: []instance.Instance{}}
	for _, i := range f.instances {
		if i.Host == host {
			list.Instances = append(list.Instances, *i)
		}
	}
	return list
}

func (f *Fleet) showLocked(host, method, id string) (any, error) {
	i := f.instances[id]
	if i == nil || i.Host != host {
		return nil, fault.New(fault.NotFound, method, id, "no such instance on this host")
	}
	if method == api.GetConsoleOutput {
		return api.ConsoleResult{Output: "login: "}, nil
	}
	return api.InstanceResult{Instance: *i}, nil
}
