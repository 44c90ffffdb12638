package controllertest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// read takes casts until the reader is closed.
func (f *Fleet) read(ctx context.Context, host string, reader rpc.CastReader) error {
	for {
		batch, err := reader.Next(ctx, 16)
		if err != nil {
			if ctx.Err() != nil || !fault.Retryable(err) {
				return err
			}
			if err := green.Sleep(ctx, 10*time.Millisecond); err != nil {
				return err
			}
		}
		for _, d := range batch {
			if err := f.take(ctx, host, d); err != nil {
				return err
			}
		}
	}
}

// take accepts one cast and carries it out on a thread of its own.
func (f *Fleet) take(ctx context.Context, host string, d rpc.Delivery) error {
	if err := d.Ack(); err != nil {
		return err
	}
	f.mu.Lock()
	last, known := f.tasks[d.RequestID]
	if f.deaf > 0 && !known {
		f.deaf--
		f.mu.Unlock()
		return nil
	}
	f.tasks[d.RequestID] = api.TaskEvent{RequestID: d.RequestID, Method: d.Method, Host: host}
	f.mu.Unlock()
	if known {
		return f.tell(ctx, last, last.State)
	}
	if err := f.admit(ctx, host, d.Message); err != nil {
		return err
	}
	green.SpawnN(ctx, func(ctx context.Context) error { return f.carryOut(ctx, host, d.Message) })
	return nil
}

// admit publishes a migration when it is read, so that an abort that is read after
// it finds it.
func (f *Fleet) admit(ctx context.Context, host string, m rpc.Message) error {
	var args api.MigrateArgs
	if lawful := m.Method == api.LiveMigration && api.Decode(m.Method, m.Args, &args) == nil; !lawful {
		return nil
	}
	return f.publish(ctx, instance.Migration{
		UUID: args.Migration, Instance: args.Instance, Source: host, Dest: args.Dest, Status: instance.MigrationAccepted, Phase: "accept", StartedAt: time.Now(),
	})
}

// carryOut walks a task through its events.
func (f *Fleet) carryOut(ctx context.Context, host string, m rpc.Message) error {
	e := api.TaskEvent{RequestID: m.RequestID, Method: m.Method, Host: host}
	var subject struct {
		Instance, Migration string
		Spec                instance.Spec
	}
	if json.Unmarshal(m.Args, &subject) == nil {
		e.Instance, e.Migration = cmp.Or(subject.Instance, subject.Spec.UUID), subject.Migration
	}
	if refusal := f.refusal(host, m); refusal != nil {
		e.Error = refusal
		return f.tell(ctx, e, api.TaskRefused)
	}
	if err := errors.Join(f.tell(ctx, e, api.TaskAccepted), f.tell(ctx, e, api.TaskRunning)); err != nil {
		return err
	}
	f.mu.Lock()
	f.runs[m.RequestID]++
	f.mu.Unlock()
	if err := f.do(ctx, host, m); err != nil {
		e.Error = fault.Wire(err)
		return f.tell(ctx, e, api.TaskFailed)
	}
	return f.tell(ctx, e, api.TaskSucceeded)
}

func (f *Fleet) tell(ctx context.Context, e api.TaskEvent, state api.TaskState) error {
	e.State, e.At = state, time.Now()
	f.mu.Lock()
	f.tasks[e.RequestID] = e
	f.mu.Unlock()
	raw, err := rpc.JSON(e)
	if err != nil {
		return err
	}
	return f.bus.Publish(ctx, rpc.Event{Host: e.Host, Kind: api.EventTask, ID: e.RequestID, MsgID: e.RequestID + string(state), Body: raw})
}

func (f *Fleet) do(ctx context.Context, host string, m rpc.Message) error {
	switch m.Method {
	case api.BuildAndRunInstance:
		var args api.BuildArgs
		if err := api.Decode(m.Method, m.Args, &args); err != nil {
			return err
		}
		return f.build(ctx, host, args.Spec)
	case api.LiveMigration:
		var args api.MigrateArgs
		if err := api.Decode(m.Method, m.Args, &args); err != nil {
			return err
		}
		return f.migrate(ctx, host, args)
	case api.LiveMigrationAbort, api.LiveMigrationSetBandwidth, api.LiveMigrationRecover:
		return f.steer(m)
	}
	states := map[string]instance.VMState{
		api.StartInstance: instance.VMActive, api.StopInstance: instance.VMStopped, api.PauseInstance: instance.VMPaused, api.UnpauseInstance: instance.VMActive,
		api.SuspendInstance: instance.VMSuspended, api.ResumeInstance: instance.VMActive, api.RebootInstance: instance.VMActive, api.TerminateInstance: instance.VMDeleted,
	}
	state, ok := states[m.Method]
	if !ok {
		return fault.New(fault.UnsupportedMethod, m.Method, "", "this agent has no such method")
	}
	var args api.InstanceArgs
	if err := api.Decode(m.Method, m.Args, &args); err != nil {
		return err
	}
	return f.move(ctx, host, m.Method, args.Instance, state)
}

// steer does what is asked of a migration in progress. Taking one up that is not broken,
// and none here is, changes nothing.
func (f *Fleet) steer(m rpc.Message) error {
	var args api.BandwidthArgs // what the others have, and the limit
	if err := api.Decode(m.Method, m.Args, &args); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, in := range f.migrations {
		if in.Instance != args.Instance || in.Status.Ended() || args.Migration != "" && args.Migration != id {
			continue
		}
		switch m.Method {
		case api.LiveMigrationAbort:
			f.aborted[id] = true
		case api.LiveMigrationSetBandwidth:
			f.limits[id] = args.BandwidthMiB << 20
		}
		return nil
	}
	return fault.New(fault.Conflict, m.Method, args.Instance, "no migration of it is in progress")
}

// move changes the state of an instance.
func (f *Fleet) move(ctx context.Context, host, method, id string, to instance.VMState) error {
	f.mu.Lock()
	i := f.instances[id]
	if i == nil || i.Host != host {
		f.mu.Unlock()
		return fault.New(fault.NotFound, method, id, "no such instance on this host")
	}
	i.VMState = to
	i.PowerState = map[bool]instance.PowerState{true: instance.PowerRunning, false: instance.PowerShutdown}[to == instance.VMActive]
	i.UpdatedAt = time.Now()
	record := *i
	if to == instance.VMDeleted {
		delete(f.instances, id)
	}
	f.mu.Unlock()
	if to == instance.VMDeleted {
		return f.bus.Delete(ctx, rpc.Instances, []string{host, id})
	}
	return f.put(ctx, rpc.Instances, record, host, id)
}

func (f *Fleet) build(ctx context.Context, host string, spec instance.Spec) error {
	now := time.Now()
	i := &instance.Instance{
		UUID: spec.UUID, Name: spec.Name, Host: host, Generation: 1, VMState: instance.VMActive, PowerState: instance.PowerRunning,
		Spec: spec, CreatedAt: now, UpdatedAt: now,
	}
	for _, p := range spec.Ports {
		i.Ports = append(i.Ports, instance.PortStatus{Port: p, State: instance.PortPlugged, Device: p.Device()})
	}
	f.mu.Lock()
	if f.instances[spec.UUID] != nil {
		f.mu.Unlock()
		return fault.New(fault.Conflict, api.BuildAndRunInstance, spec.UUID, "there is an instance of this UUID")
	}
	f.instances[spec.UUID] = i
	record := *i
	f.mu.Unlock()
	return f.put(ctx, rpc.Instances, record, host, spec.UUID)
}

// migrate moves an instance in steps, each published in the view.
func (f *Fleet) migrate(ctx context.Context, host string, args api.MigrateArgs) error {
	const total = 4 << 30
	m := instance.Migration{
		UUID: args.Migration, Generation: 2, Instance: args.Instance, Source: host, Dest: args.Dest, Status: instance.MigrationPreparing,
		Phase: "prepare", Mode: instance.ModePreCopy, Policy: "adaptive", StartedAt: time.Now(),
	}
	if err := f.publish(ctx, m); err != nil {
		return err
	}
	m.Status, m.Phase = instance.MigrationRunning, "perform"
	for step := range f.Steps {
		if err := green.Sleep(ctx, f.step()); err != nil {
			return err
		}
		if f.isAborted(m.UUID) {
			return f.cancel(ctx, m)
		}
		if err := f.brokenTo(m.Dest); err != nil {
			m.Status, m.EndedAt, m.Fault = instance.MigrationFailed, time.Now(), err
			return errors.Join(err, f.publish(ctx, m))
		}
		moved := uint64(total) / uint64(f.Steps) * uint64(step+1)
		m.Progress.Memory = instance.Amount{Total: total, Processed: moved, Remaining: total - moved}
		m.Progress.Percent, m.Progress.Bandwidth, m.Progress.DirtyRate = min(99, 100*(step+1)/f.Steps), f.rate(m.UUID), 1<<28
		if err := f.publish(ctx, m); err != nil {
			return err
		}
	}
	if err := f.hand(ctx, host, args.Dest, args.Instance); err != nil {
		return err
	}
	m.Status, m.Phase, m.EndedAt = instance.MigrationCompleted, "end", time.Now()
	m.Result = &instance.Result{DowntimeMS: 41, TotalMS: 3200, Bytes: total, Iterations: 5}
	return f.publish(ctx, m)
}

func (f *Fleet) cancel(ctx context.Context, m instance.Migration) error {
	err := fault.New(fault.Cancelled, api.LiveMigration, m.Instance, "the migration was aborted; the guest runs on "+m.Source)
	m.Status, m.EndedAt, m.Fault = instance.MigrationCancelled, time.Now(), err
	return errors.Join(err, f.publish(ctx, m))
}

func (f *Fleet) brokenTo(dest string) *fault.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.broken[dest]
}

func (f *Fleet) isAborted(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.aborted[id]
}

// rate is what a migration moves a second: 1 GiB, or what it was limited to.
func (f *Fleet) rate(id string) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return cmp.Or(f.limits[id], 1<<30)
}

func (f *Fleet) publish(ctx context.Context, m instance.Migration) error {
	m.UpdatedAt = time.Now()
	f.mu.Lock()
	f.migrations[m.UUID] = &m
	f.mu.Unlock()
	raw, err := rpc.JSON(api.MigrationEvent{Migration: m, At: m.UpdatedAt})
	if err != nil {
		return err
	}
	return errors.Join(f.put(ctx, rpc.Migrations, m, m.Source, m.UUID),
		f.bus.Publish(ctx, rpc.Event{Host: m.Source, Kind: api.EventMigration, ID: m.UUID, MsgID: instance.NewUUID(), Body: raw}))
}

// hand gives an instance from one host to the other: for a moment both publish it.
func (f *Fleet) hand(ctx context.Context, from, to, id string) error {
	f.mu.Lock()
	i := f.instances[id]
	if i == nil || i.Host != from {
		f.mu.Unlock()
		return fault.New(fault.NotFound, api.LiveMigration, id, "no such instance on this host")
	}
	i.Host = to
	i.Generation++
	record := *i
	f.mu.Unlock()
	if err := f.put(ctx, rpc.Instances, record, to, id); err != nil {
		return err
	}
	return f.bus.Delete(ctx, rpc.Instances, []string{from, id})
}
