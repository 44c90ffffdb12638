package agent

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
)

// plan is what admission decided for one message, before the journal has it.
type plan struct {
	task    Task
	verdict Verdict // zero: nothing new, see repeat
	repeat  bool    // the id is known: tell its last state again
	now     bool    // carried out at admission
}

// admit judges a message that was read now. lane tells what holds the instance,
// earlier messages of the same batch included. It changes nothing.
func (a *Agent) admit(m rpc.Message, style api.Style, sequence uint64, lane func(string) (Op, []Op)) plan {
	known, ok, err := a.ledger.task(m.RequestID)
	if err != nil {
		return refused(a.newTask(m, style, sequence), err)
	}
	if ok {
		return a.admitAgain(known, m, style)
	}
	t := a.newTask(m, style, sequence)
	e, err := a.route(m.Method, style)
	if err == nil && m.RequestID == "" {
		err = fault.New(fault.InvalidArgument, m.Method, "Compute-Request-Id", "the request has no id")
	}
	if err == nil {
		err = api.CheckVersion(api.Version, m.Version)
	}
	if err != nil {
		return refused(t, err)
	}
	args, err := decode(m.Method, m.Args)
	if err != nil {
		return refused(t, err)
	}
	t.Instance, t.Migration = subjectOf(args)
	if v, isMigrate := args.(*api.MigrateArgs); isMigrate && v.Migration == "" {
		t.Migration = instance.NewUUID()
	}
	if err := a.lawful(e, t, args); err != nil {
		return refused(t, err)
	}
	running, waiting := lane(t.Instance)
	verdict, held := admitAll(running, waiting, opOf(t))
	if verdict == Refuse {
		return refused(t, refusal(t.Method, t.Instance, held))
	}
	return plan{task: t, verdict: verdict, now: e.now != nil}
}

// admitAgain handles an id that is known: the same request is told its state once
// more, another one is refused and leaves the first as it is.
func (a *Agent) admitAgain(known Task, m rpc.Message, style api.Style) plan {
	if known.same(m) {
		return plan{task: known, repeat: true}
	}
	other := a.newTask(m, style, 0)
	other.ID = known.ID
	p := refused(other, fault.Newf(fault.Conflict, m.Method, m.RequestID, "this request id was used for another %s", known.Method).
		WithHint("make a new id for each request"))
	p.repeat = true // not journaled: the id belongs to the first
	return p
}

func (a *Agent) newTask(m rpc.Message, style api.Style, sequence uint64) Task {
	return Task{
		ID: m.RequestID, Sequence: sequence, Style: style, Method: m.Method, Args: m.Args, Trace: m.Trace,
		State: api.TaskAccepted, AcceptedAt: time.Now().UTC(),
	}
}

func refused(t Task, err error) plan {
	t.State, t.Error, t.EndedAt = api.TaskRefused, fault.Wire(fault.Wrap(err, "", "")), time.Now().UTC()
	if len(t.Args) == 0 || !jsonObject(t.Args) {
		t.Args = []byte("{}")
	}
	return plan{task: t, verdict: Refuse}
}

func jsonObject(raw []byte) bool { return len(compact(raw)) > 0 && compact(raw)[0] == '{' }

// lawful checks what admission can know at once: that the instance is here, that
// the host takes newcomers, that a migration does not end where it begins.
func (a *Agent) lawful(e endpoint, t Task, args any) error {
	inst, known := a.ledger.instance(t.Instance)
	if !e.newcomer && !known {
		return a.unknownInstance(t.Method, t.Instance)
	}
	if e.now == nil {
		if err := a.frozen(t.Method, t.Instance); err != nil {
			return err
		}
	}
	switch v := args.(type) {
	case *api.BuildArgs:
		return a.lawfulBuild(t.Instance, inst, known)
	case *api.MigrateArgs:
		if v.Dest == a.cfg.Host {
			return alreadyHere(t.Method, v.Dest)
		}
		if inst.VMState != instance.VMActive && inst.VMState != instance.VMPaused {
			return fault.Newf(fault.Conflict, t.Method, t.Instance, "the instance is %s; only an active or paused one can be migrated live", inst.VMState).
				WithHint("start it first: compute-agent instance start %s", t.Instance)
		}
	}
	return nil
}

func (a *Agent) lawfulBuild(id string, inst instance.Instance, known bool) error {
	if r, claimed := a.claimOf(id); claimed {
		return fault.Newf(fault.Conflict, api.BuildAndRunInstance, id, "the instance is on its way here from %s (migration %s)", r.Migration.Source, r.Migration.UUID).
			WithHint("use a new UUID for a new instance")
	}
	if set := a.ledger.switched(); set.Disabled {
		return disabledFault(a.cfg.Host, set.Reason)
	}
	if known && (inst.VMState != instance.VMError || inst.TaskState != instance.TaskNone) {
		return fault.Newf(fault.Conflict, api.BuildAndRunInstance, inst.UUID, "the instance exists here (%s)", inst.VMState).
			WithHint("use a new UUID for a new instance")
	}
	return nil
}

func disabledFault(host, reason string) error {
	if reason == "" {
		reason = "no reason was given"
	}
	return fault.Newf(fault.Conflict, "", host, "the host is disabled: %s", reason).
		WithHint("choose another host, or enable this one: compute-agent host enable %s", host)
}

func (a *Agent) unknownInstance(method, id string) error {
	f := fault.Newf(fault.NotFound, method, id, "no such instance on host %s", a.cfg.Host)
	for _, r := range a.ledger.migrations() {
		if r.Migration.Instance != id {
			continue
		}
		if r.Migration.Dest != a.cfg.Host && r.Migration.Status.Ended() {
			return f.WithHint("it moved to %s (migration %s)", r.Migration.Dest, r.Migration.UUID)
		}
		if r.Migration.Dest == a.cfg.Host && !r.Migration.Status.Ended() {
			return f.WithHint("it is on its way here from %s (migration %s)", r.Migration.Source, r.Migration.UUID)
		}
	}
	return f.WithHint("compute-agent instance list shows where instances are")
}

// journal makes the plans durable in one transaction.
func (a *Agent) journal(ctx context.Context, plans []plan) error {
	return a.ledger.commit(ctx, func(c *change) error {
		for i := range plans {
			p := &plans[i]
			switch {
			case p.repeat && p.task.Style == api.Cast:
				again := state.OutEvent{Kind: api.EventTask, ID: p.task.ID, MsgID: p.task.ID + "/again/" + instance.NewUUID()}
				if err := c.event(again, p.task.event(c.host, c.now)); err != nil {
					return err
				}
			case p.repeat:
			default:
				if err := c.putTask(p.task); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// launch starts what a durable plan asks for.
func (a *Agent) launch(ctx context.Context, p plan) {
	log := logkit.From(ctx)
	fields := []logkit.Field{logkit.RequestID.Of(p.task.ID), logkit.Task.Of(p.task.Method), logkit.Instance.Of(p.task.Instance)}
	switch {
	case p.repeat:
		log.Debug("the request is known, its state was told again", fields...)
	case p.verdict == Refuse:
		log.Warn("request refused", append(fields, logkit.Err(p.task.Error))...)
		a.ended(p.task)
	case p.now:
		green.SpawnN(ctx, func(ctx context.Context) error { a.carryOut(ctx, p.task, false); return nil })
	default:
		a.lanes.add(p.task)
		if p.verdict == TakeOver {
			a.takeOver(ctx, p.task)
		}
	}
}

// takeOver ends what holds the lane: a migration by its abort, anything else by
// ending its waits.
func (a *Agent) takeOver(ctx context.Context, by Task) {
	running, _ := a.lanes.held(by.Instance)
	if running != OpMigrate {
		a.lanes.takeOver(by.Instance)
		return
	}
	green.SpawnN(ctx, func(ctx context.Context) error {
		if err := a.source.Abort(ctx, by.Instance, ""); err != nil {
			logkit.From(ctx).Warn("the migration was not aborted; the request waits for its end",
				logkit.Instance.Of(by.Instance), logkit.Task.Of(by.Method), logkit.Err(err))
		}
		return nil
	})
}
