package agent

import (
	"context"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// carryOut takes a task from accepted to its end: begin, the verb, end. held says
// that it has its instance's lane. When the agent stops meanwhile, the task stays
// running in the journal and is taken up at the next start.
func (a *Agent) carryOut(ctx context.Context, t Task, held bool) {
	ctx = logkit.With(ctx, logkit.RequestID.Of(t.ID), logkit.Instance.Of(t.Instance), logkit.Task.Of(t.Method))
	log := logkit.From(ctx)
	started := time.Now()
	j, err := a.begin(ctx, t, held)
	var out outcome
	if err == nil {
		out, err = a.act(ctx, j)
	}
	if a.stopping(ctx, err) {
		log.Info("the agent stops; the task goes on after its next start")
		return
	}
	done, jerr := a.end(context.WithoutCancel(ctx), j, out, err)
	switch {
	case jerr != nil: // the journal is away: the task is taken up at the next start
		log.Error("the end of a task can't be journaled; it is taken up at the next start", logkit.Err(jerr))
	case err != nil:
		log.Error("task failed", logkit.Took.Of(time.Since(started)), logkit.Err(err))
		a.ended(done)
	default:
		log.Info("task done", logkit.Took.Of(time.Since(started)))
		a.ended(done)
	}
}

// stopping tells an end by the agent's stop from one of the task's own.
func (a *Agent) stopping(ctx context.Context, err error) bool {
	return err != nil && errors.Is(context.Cause(ctx), migration.ErrStopping)
}

// begin journals that the task runs and that the instance is held by it.
func (a *Agent) begin(ctx context.Context, t Task, held bool) (*job, error) {
	j := &job{task: t, resumed: t.State == api.TaskRunning}
	args, err := decode(t.Method, t.Args)
	if err != nil {
		return j, err
	}
	j.args = args
	e := a.endpoints[t.Method]
	if e.op == OpRebootSoft && !j.resumed {
		j.task.DomainID = -1 // off, or not known: any number that runs later is a new start
		if d, err := a.hv.Lookup(ctx, t.Instance); err == nil {
			j.task.DomainID = d.ID
		}
	}
	j.task.State = api.TaskRunning
	return j, a.ledger.commit(ctx, func(c *change) error {
		inst, known, err := c.instance(t.Instance)
		if err != nil {
			return err
		}
		if !known && !e.newcomer {
			return a.unknownInstance(t.Method, t.Instance)
		}
		if t.Method == api.BuildAndRunInstance && !j.resumed {
			inst, known = newInstance(a.cfg.Host, args, c.now), true
		}
		if known && held && e.holds != instance.TaskNone {
			inst.TaskState = e.holds
			if err := c.putInstance(inst); err != nil {
				return err
			}
		}
		j.inst = inst
		return c.putTask(j.task)
	})
}

// newInstance is the first record of an instance.
func newInstance(host string, args any, now time.Time) instance.Instance {
	build, ok := args.(*api.BuildArgs)
	if !ok {
		return instance.Instance{}
	}
	spec := build.Spec
	inst := instance.Instance{
		UUID: spec.UUID, Name: spec.Name, Host: host, Generation: 1, VMState: instance.VMBuilding,
		PowerState: instance.PowerPending, Spec: spec, CreatedAt: now,
	}
	if inst.Name == "" {
		inst.Name = spec.UUID
	}
	for _, p := range spec.Ports {
		inst.Ports = append(inst.Ports, instance.PortStatus{Port: p, State: instance.PortUnplugged, Device: p.Device()})
	}
	return inst
}

// act runs the verb; its panic is green's to catch at the lane.
func (a *Agent) act(ctx context.Context, j *job) (outcome, error) {
	e := a.endpoints[j.task.Method]
	run := e.verb
	if run == nil {
		run = e.now
	}
	out, err := run(a, ctx, j)
	if err != nil && errors.Is(context.Cause(ctx), errTakenOver) {
		err = fault.WrapAs(fault.Cancelled, errTakenOver, j.task.Method, j.task.Instance)
	}
	return out, err
}

// end journals the outcome: the task's state, the record, the events, as one.
func (a *Agent) end(ctx context.Context, j *job, out outcome, failed error) (Task, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.JournalTimeout)
	defer cancel()
	t := j.task
	t.State, t.EndedAt = api.TaskSucceeded, time.Now().UTC()
	if failed != nil {
		t.State, t.Error = api.TaskFailed, fault.Wire(fault.Wrap(failed, "", ""))
		if t.Error.Op == "" {
			t.Error.Op, t.Error.Subject = t.Method, t.Instance
		}
	}
	if out.result != nil {
		raw, err := rpc.JSON(out.result)
		if err != nil {
			return t, err
		}
		t.Result = raw
	}
	power, seen := a.power(ctx, t.Instance)
	err := a.ledger.commit(ctx, func(c *change) error {
		if err := a.endInstance(c, j, out, failed, observed{power, seen}); err != nil {
			return err
		}
		return c.putTask(t)
	})
	return t, err
}

// observed is what the hypervisor said of an instance when its task ended.
type observed struct {
	power instance.PowerState
	seen  bool
}

// endInstance brings the record to its state after the task.
func (a *Agent) endInstance(c *change, j *job, out outcome, failed error, now observed) error {
	if a.endpoints[j.task.Method].holds == instance.TaskNone {
		return nil
	}
	inst, known, err := c.instance(j.task.Instance)
	if err != nil || !known {
		return err
	}
	if out.remove {
		inst.VMState, inst.TaskState, inst.PowerState = instance.VMDeleted, instance.TaskNone, instance.PowerPending
		if err := c.dropInstance(inst.UUID); err != nil {
			return err
		}
		return c.instanceEvent(inst, out.event, out.detail, j.task.ID)
	}
	if j.refused {
		return c.dropInstance(inst.UUID)
	}
	inst.TaskState, inst.Fault = instance.TaskNone, nil
	if now.seen {
		inst.PowerState = now.power
		if inst.VMState != instance.VMBuilding {
			inst.VMState = instance.VMStateOf(now.power, inst.VMState)
		}
	}
	if failed != nil {
		inst.Fault = fault.Wire(failed)
		if inst.VMState == instance.VMBuilding {
			inst.VMState = instance.VMError
		}
		out.event, out.detail = "failed", j.task.Method
	} else if out.change != nil {
		out.change(&inst)
	}
	inst.Ports = a.portStatuses(inst)
	if err := c.putInstance(inst); err != nil {
		return err
	}
	if out.event == "" {
		return nil
	}
	return c.instanceEvent(inst, out.event, out.detail, j.task.ID)
}

// power asks the hypervisor; ok is false when it can't tell.
func (a *Agent) power(ctx context.Context, id string) (p instance.PowerState, ok bool) {
	if id == "" {
		return "", false
	}
	d, err := a.hv.Lookup(ctx, id)
	switch {
	case err == nil:
		return d.Power(), true
	case errors.Is(err, fault.NotFound):
		return instance.PowerPending, true
	default:
		return "", false
	}
}

func (a *Agent) portStatuses(inst instance.Instance) []instance.PortStatus {
	ports := portsOf(inst)
	if len(ports) == 0 {
		return nil
	}
	return a.net.Status(inst.UUID, ports)
}

// portsOf gives the ports of a record.
func portsOf(inst instance.Instance) []instance.Port {
	ports := make([]instance.Port, 0, len(inst.Ports))
	for _, p := range inst.Ports {
		ports = append(ports, p.Port)
	}
	return ports
}

// definitionOf is the record as a driver is to know it.
func definitionOf(inst instance.Instance) (d virt.Definition) {
	d.Spec, d.Generation = inst.Spec, inst.Generation
	d.Spec.Ports = portsOf(inst)
	return d
}
