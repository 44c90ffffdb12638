package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
)

// plan is what admission decided for one message, and then what became of it in
// the journal.
type plan struct {
	message *rpc.Message
	task    Task
	op      Op
	args    any     // decoded
	verdict Verdict // zero: nothing new, see known
	now     bool    // carried out at admission
	known   *Task   // the id is taken: its task as the journal has it
	clash   bool    // and this message asks for something else
	alone   bool    // it came with few others: it may begin when it is accepted
	begun   bool    // it found its instance free and did
}

// waits reports whether the plan's task is to join its instance's lane.
func (p *plan) waits() bool {
	return p.known == nil && !p.now && (p.verdict == Queue || p.verdict == TakeOver)
}

// admit judges a message whose id is not known. lane tells what holds the instance,
// earlier messages of the same batch included. It changes nothing.
func (a *Agent) admit(m *rpc.Message, style api.Style, sequence uint64, lane func(string) (Op, []Op)) plan {
	t := a.newTask(m, style, sequence)
	e, err := a.route(m.Method, style)
	if err == nil && m.RequestID == "" {
		err = fault.New(fault.InvalidArgument, m.Method, "Compute-Request-Id", "the request has no id")
	}
	if err == nil {
		err = api.CheckVersion(a.cfg.APIVersion, m.Version)
	}
	if err != nil {
		return refused(m, t, err)
	}
	args, err := decode(m.Method, m.Args)
	if err != nil {
		return refused(m, t, err)
	}
	t.Instance, t.Migration = subjectOf(args)
	if v, isMigrate := args.(*api.MigrateArgs); isMigrate && v.Migration == "" {
		t.Migration = instance.NewUUID()
	}
	running, waiting := lane(t.Instance)
	if running == OpNone && len(waiting) == 0 { // else it is asked when its turn has come
		inst, known := a.ledger.instance(t.Instance)
		if err := a.lawful(e, t, args, inst, known); err != nil {
			return refused(m, t, err)
		}
	}
	op := e.opOf(args)
	verdict, held := admitAll(running, waiting, op)
	if verdict == Refuse {
		return refused(m, t, refusal(t.Method, t.Instance, held))
	}
	return plan{message: m, task: t, op: op, args: args, verdict: verdict, now: e.now != nil}
}

// again handles an id that is known: the same request is told its state once more,
// another one is refused and leaves the first as it is.
func (a *Agent) again(p plan, known Task) plan {
	if known.same(p.message) {
		return plan{message: p.message, task: known, known: &known}
	}
	t := a.newTask(p.message, p.task.Style, 0)
	p = refused(p.message, t, fault.Newf(fault.Conflict, t.Method, t.ID, "this request id was used for another %s", known.Method).
		WithHint("make a new id for each request"))
	p.known, p.clash = &known, true
	return p
}

func (a *Agent) newTask(m *rpc.Message, style api.Style, sequence uint64) Task {
	return Task{
		ID: m.RequestID, Order: a.ledger.order.Add(1), Sequence: sequence, Style: style, Method: m.Method, Args: m.Args, Trace: m.Trace,
		State: api.TaskAccepted, AcceptedAt: time.Now().UTC(),
	}
}

// refused plans the end of a message that asks for what can't be done. Arguments
// that are no JSON object are not kept.
func refused(m *rpc.Message, t Task, err error) plan {
	t.State, t.Error, t.EndedAt = api.TaskRefused, fault.Wire(fault.Wrap(err, "", "")), time.Now().UTC()
	if !json.Valid(t.Args) || !bytes.HasPrefix(compact(t.Args), []byte("{")) {
		t.Args = []byte("{}")
	}
	return plan{message: m, task: t, verdict: Refuse}
}

// journal gives an update that makes the plans durable in one transaction, which also
// looks once more whether an id was used meanwhile: calls and casts are admitted side
// by side. The tasks join their lanes as the journal has them, in its order, and go on
// when they are kicked. taken is given the plans as they were carried out.
func (a *Agent) journal(plans []plan, taken func([]plan)) func(*change) error {
	return func(c *change) error {
		written := slices.Clone(plans) // this function may run again
		for i := range written {
			if err := a.write(c, &written[i]); err != nil {
				return err
			}
		}
		c.then = append(c.then, func() {
			for _, p := range written {
				if p.waits() {
					a.lanes.add(p.task.Instance, entry{task: p.task, op: p.op, args: p.args, begun: p.begun})
				}
			}
			taken(written)
		})
		return nil
	}
}

func (a *Agent) write(c *change, p *plan) error {
	switch known, ok, err := c.task(p.task.ID); {
	case err != nil: // it can't be read: it is not overwritten, and what asks for it is told
		*p = refused(p.message, p.task, err)
		p.known, p.clash = &Task{ID: p.task.ID}, true
	case ok: // as it is now: it may have gone on since admission read it
		*p = a.again(*p, known)
	case p.known == nil:
		return a.take(c, p)
	}
	if p.task.Style != api.Cast {
		return nil
	}
	if err := a.tellAgain(c, p.task); err != nil || !p.clash || p.known.Method == "" {
		return err
	}
	return a.tellAgain(c, *p.known) // the last word under this id is the first request's
}

// take writes a new task. One that finds its instance free, and is not part of a burst,
// is accepted and begins in the same transaction; another begins when its turn comes.
func (a *Agent) take(c *change, p *plan) error {
	if p.task.State.Ended() {
		return c.putTask(p.task)
	}
	free := c.take(p.task.Instance)
	e := a.endpoints[p.task.Method]
	_, arrives := a.arrivalOf(p.task.Instance)
	if !p.alone || !free || arrives || !p.waits() || !e.plain() || a.lanes.shutGate() != nil {
		return c.putTask(p.task)
	}
	inst, known := c.instance(p.task.Instance)
	if a.lawful(e, p.task, p.args, inst, known) != nil { // its turn ends it
		return c.putTask(p.task)
	}
	if err := c.taskEvent(p.task, ""); err != nil {
		return err
	}
	p.begun, p.task.State = true, api.TaskRunning
	return a.hold(c, &job{task: &p.task, args: p.args, held: true}, e)
}

// tellAgain publishes a state that was, or may have been, told before.
func (a *Agent) tellAgain(c *change, t Task) error {
	return c.event(state.OutEvent{Kind: api.EventTask, ID: t.ID, MsgID: t.ID + "/again/" + instance.NewUUID()}, t.event(c.host, c.now))
}

// launch starts what a durable plan asks for.
func (a *Agent) launch(ctx context.Context, p plan) {
	log := logkit.From(ctx)
	fields := func() []logkit.Field {
		return []logkit.Field{logkit.RequestID.Of(p.task.ID), logkit.Task.Of(p.task.Method), logkit.Instance.Of(p.task.Instance)}
	}
	switch {
	case p.verdict == Refuse:
		log.Warn("request refused", append(fields(), logkit.Err(p.task.Error))...)
		if p.known == nil {
			a.ended(p.task)
		}
	case p.known != nil:
		log.Debug("the request is known, its state was told again", fields()...)
	case p.now:
		a.atOnce(p.task, p.op)
	default:
		a.lanes.kick(p.task.Instance)
		if p.verdict == TakeOver {
			a.takeOver(p.task, p.op)
		}
	}
}

// atOnce carries out what waits for no lane. What is told of one subject is told
// in its order.
func (a *Agent) atOnce(t Task, op Op) {
	if op == OpTell {
		a.asides.add(t.Method+"/"+t.Instance, entry{task: t, op: op})
		a.asides.kick(t.Method + "/" + t.Instance)
		return
	}
	a.spawn(func(ctx context.Context) { a.carryOut(ctx, t, false) })
}

// takeOver ends what a task waits behind: a migration by its abort, anything else by
// ending its waits.
func (a *Agent) takeOver(by Task, op Op) {
	if moving := a.lanes.takeOver(by.Instance, by.ID, op); moving != "" {
		a.spawn(func(ctx context.Context) { a.giveWay(ctx, by.Instance, moving) })
	}
}

// giveWay aborts a migration for a request that waits behind it.
func (a *Agent) giveWay(ctx context.Context, id, migrationID string) {
	if err := a.abort(ctx, id, migrationID); err != nil {
		logkit.From(ctx).Warn("the migration was not aborted; the request behind it waits for its end", logkit.Instance.Of(id), logkit.Err(err))
	}
}
