package agent

import (
	"context"
	"encoding/json"
	"errors"
	"runtime/debug"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// carryOut takes a task from accepted to its end: begin, the verb, end. held says
// that it has its instance's lane. When the agent stops meanwhile, the task stays
// running in the journal and is taken up at the next start.
func (a *Agent) carryOut(ctx context.Context, t Task, held bool) {
	a.carryTurn(named(ctx, &t), &turn{task: &t, cancel: func(error) {}}, held)
}

// carryTurn is carryOut for a lane; false: the task was left for the next start.
func (a *Agent) carryTurn(ctx context.Context, t *turn, held bool) bool {
	started := time.Now()
	j := &job{task: t.task, args: t.args, held: held, resumed: t.task.State == api.TaskRunning && !t.begun}
	err := guarded(ctx, t.task.Method, func() (err error) {
		if err = a.begin(ctx, j, t); err == nil {
			err = a.act(ctx, j)
		}
		return err
	})
	if a.stopping(ctx, err) {
		logkit.From(ctx).Info("the agent stops; the task goes on after its next start")
		return false
	}
	if err != nil && errors.Is(context.Cause(ctx), errTakenOver) {
		err = j.gaveWay()
	}
	return a.finish(ctx, j, err, started)
}

// gaveWay is how a task ends that had to. Its copy of the task stays off the lane's stack.
//
//go:noinline
func (j *job) gaveWay() error { return takenOver(*j.task) }

// named gives the log of a task its name.
func named(ctx context.Context, t *Task) context.Context {
	return logkit.With(ctx, logkit.RequestID.Of(t.ID), logkit.Instance.Of(t.Instance), logkit.Task.Of(t.Method))
}

// finish journals the end of a turn and tells of it.
func (a *Agent) finish(ctx context.Context, j *job, err error, started time.Time) bool {
	log := logkit.From(ctx)
	done, jerr := a.end(ctx, j, j.out, err)
	switch {
	case jerr != nil: // the journal is away for good: the task is taken up at the next start
		log.Error("the end of a task can't be journaled; it is taken up at the next start", logkit.Err(jerr))
		return false
	case done.Error != nil:
		log.Error("task failed", logkit.Took.Of(time.Since(started)), logkit.Err(done.Error))
	default:
		log.Info("task done", logkit.Took.Of(time.Since(started)))
	}
	a.ended(done)
	return true
}

// stopping tells an end by the agent's stop from one of the task's own.
func (a *Agent) stopping(ctx context.Context, err error) bool {
	return err != nil && (errors.Is(context.Cause(ctx), migration.ErrStopping) || errors.Is(err, state.ErrClosed))
}

// guarded runs fn and turns its panic into an error: a defect in one verb fails
// one task, and its lane goes on.
func guarded(ctx context.Context, method string, fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.Newf(fault.Internal, method, "", "a defect of the agent: %v", p).
				WithHint("the agent's log has the place; please report it")
			logkit.From(ctx).Error("a verb panicked", logkit.Err(err), logkit.Key("stack").Of(string(debug.Stack())))
		}
	}()
	return fn()
}

// begin journals that the task runs and that the instance is held by it. One that
// an earlier run has begun, or that began when it was accepted, is in the journal already.
func (a *Agent) begin(ctx context.Context, j *job, t *turn) error {
	journaled := j.resumed || t.begun
	if t.overtaken && !journaled {
		return takenOver(*j.task)
	}
	e, err := a.rowOf(j)
	if err == nil && journaled {
		err = a.goOn(j, e)
	}
	if err == nil && j.held {
		err = a.lanes.unpinned(ctx, j.task.Instance)
	}
	if err == nil && !j.begun {
		err = a.beginAnew(ctx, j, e)
	}
	if err == nil && t.overtaken {
		a.overtake(t)
	}
	return err
}

// rowOf finds the row of a task's method and, where admission did not, decodes its
// arguments.
func (a *Agent) rowOf(j *job) (e endpoint, err error) {
	e, err = a.route(j.task.Method, j.task.Style)
	if err == nil && j.args == nil {
		j.args, err = decode(j.task.Method, j.task.Args)
	}
	return e, err
}

// goOn takes up a task whose begin is in the journal.
func (a *Agent) goOn(j *job, e endpoint) error {
	inst, known := a.ledger.shared(j.task.Instance)
	if !known && !e.newcomer && !e.leaver {
		return a.unknownInstance(j.task.Method, j.task.Instance)
	}
	j.inst = inst
	j.begun = true
	return nil
}

// beginAnew journals the begin.
func (a *Agent) beginAnew(ctx context.Context, j *job, e endpoint) (err error) {
	if e.op == OpRebootSoft {
		if j.task.DomainID, err = a.domainID(ctx, j.task.Instance); err != nil {
			return err
		}
	}
	if op := e.opOf(j.args); op == OpMigrate || op == OpFreeze {
		if err := a.awaitArrival(ctx, j.task.Method, j.task.Instance); err != nil {
			return err
		}
	}
	j.task.State = api.TaskRunning
	err = a.persist(ctx, func(c *change) error { return a.hold(c, j, e) })
	j.begun = err == nil
	return err
}

// overtake lets a task that was taken up give way to the one that waits behind it.
func (a *Agent) overtake(t *turn) {
	if t.op != OpMigrate {
		t.cancel(errTakenOver)
		return
	}
	a.spawn(func(ctx context.Context) { a.giveWay(ctx, t.task.Instance, t.task.Migration) })
}

// domainID is the hypervisor's number of a guest before its reboot; -1: it is off.
func (a *Agent) domainID(ctx context.Context, id string) (int, error) {
	d, err := a.hv.Lookup(ctx, id)
	switch {
	case err == nil:
		return d.ID, nil
	case isGone(err):
		return -1, nil
	default:
		return 0, err
	}
}

// hold writes the begin of a task and of its hold on the instance.
func (a *Agent) hold(c *change, j *job, e endpoint) error {
	inst, known := c.instance(j.task.Instance)
	if err := a.lawful(e, *j.task, j.args, inst, known); err != nil {
		return err
	}
	if build, ok := j.args.(*api.BuildArgs); ok {
		old := inst
		j.fresh = !known
		inst, known = newInstance(a.cfg.Host, build.Spec, c.now), true
		inst.Generation = max(inst.Generation, old.Generation)
	}
	if known && j.held && e.holds != instance.TaskNone {
		inst.TaskState = e.holds
		if err := c.putInstance(inst); err != nil {
			return err
		}
	}
	j.inst = c.shared(inst)
	return c.putTask(*j.task)
}

// persist commits what must not be lost: while the journal can't be written it is
// tried again, until ctx ends.
func (a *Agent) persist(ctx context.Context, fn func(*change) error) error {
	err := a.ledger.commit(ctx, fn)
	if !errors.Is(err, state.ErrCommit) {
		return err
	}
	retry := green.Retry{
		Max: -1, First: a.cfg.RetryFirst, Limit: a.cfg.RetryLimit,
		Retryable: func(err error) bool { return errors.Is(err, state.ErrCommit) },
		OnRetry: func(_ int, err error, sleep time.Duration) {
			logkit.From(ctx).Error("the journal can't be written, trying again", logkit.Err(err), logkit.Key("pause").Of(sleep))
		},
	}
	_, err = green.RetryCall(ctx, retry, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, a.ledger.commit(ctx, fn)
	})
	return err
}

// newInstance is the first record of an instance.
func newInstance(host string, spec instance.Spec, now time.Time) instance.Instance {
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

// act runs the verb.
func (a *Agent) act(ctx context.Context, j *job) (err error) {
	do := a.endpoints[j.task.Method].verb
	if do == nil {
		do = a.endpoints[j.task.Method].now
	}
	j.out, err = do(a, ctx, j)
	return err
}

// end journals the outcome: the task's state, the record, the events, as one. It is
// tried until it is written or the agent stops.
func (a *Agent) end(ctx context.Context, j *job, out outcome, failed error) (Task, error) {
	ctx = context.WithoutCancel(ctx)
	var raw json.RawMessage
	if out.result != nil {
		var err error
		if raw, err = rpc.JSON(out.result); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	var now observed
	if j.begun && j.held {
		now = a.observe(ctx, j.task.Instance)
	}
	t := endedTask(*j.task, raw, failed)
	over := func(c *change) error {
		if j.held { // whoever hears of the end may ask for the next thing at once
			c.then = append(c.then, func() { a.lanes.over(t.Instance) })
		}
		c.leave(t.Instance)
		return c.putTask(t)
	}
	err := a.insist(ctx, func(c *change) error {
		if err := a.endInstance(c, j, out, failed, now); err != nil {
			return err
		}
		return over(c)
	})
	if err == nil || a.base.Err() != nil || errors.Is(err, state.ErrClosed) {
		return t, err
	}
	t = endedTask(*j.task, raw, errors.Join(failed, err)) // the record is the trouble: the task ends without it
	return t, a.insist(ctx, over)
}

// insist is persist without an end but the agent's: then the journal has another
// JournalTimeout.
func (a *Agent) insist(ctx context.Context, fn func(*change) error) error {
	for {
		bounded, cancel := context.WithTimeout(ctx, a.cfg.JournalTimeout)
		err := a.persist(bounded, fn)
		late := bounded.Err() != nil
		cancel()
		if err == nil || !late || a.base.Err() != nil {
			return err
		}
	}
}

// endedTask is a task with its outcome.
func endedTask(t Task, result json.RawMessage, failed error) Task {
	t.State, t.EndedAt, t.Result = api.TaskSucceeded, time.Now().UTC(), result
	if failed != nil {
		t.State, t.Error = api.TaskFailed, fault.Wire(fault.Wrap(failed, "", ""))
		if t.Error.Op == "" {
			t.Error.Op, t.Error.Subject = t.Method, t.Instance
		}
	}
	return t
}

// observed is what the hypervisor said of an instance when its task ended.
type observed struct {
	power instance.PowerState
	seen  bool
}

func (a *Agent) observe(ctx context.Context, id string) observed {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.LookTimeout)
	defer cancel()
	power, seen := a.power(ctx, id)
	return observed{power, seen}
}

// endInstance brings the record to its state after the task. A record of another
// generation is a guest that left and came back meanwhile: it is not this task's.
func (a *Agent) endInstance(c *change, j *job, out outcome, failed error, now observed) error {
	if !j.held || !j.begun && !j.resumed {
		return nil
	}
	inst, known := c.instance(j.task.Instance)
	if !known || j.begun && inst.Generation != j.inst.Generation {
		return nil
	}
	switch {
	case out.remove:
		inst.VMState, inst.TaskState, inst.PowerState = instance.VMDeleted, instance.TaskNone, instance.PowerPending
		if err := c.dropInstance(inst.UUID); err != nil {
			return err
		}
	case j.refused:
		return c.dropInstance(inst.UUID)
	default:
		out = settled(&inst, j.task.Method, out, failed, now)
		inst.Ports = a.portStatuses(inst)
		if err := c.putInstance(inst); err != nil {
			return err
		}
	}
	return c.instanceEvent(inst, out.event, out.detail, j.task.ID)
}

// settled brings a record that stays to its state after a task.
func settled(inst *instance.Instance, method string, out outcome, failed error, now observed) outcome {
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
		out.event, out.detail = "failed", method
	} else if out.change != nil {
		out.change(inst)
	}
	return out
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
