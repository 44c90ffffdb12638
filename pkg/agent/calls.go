package agent

import (
	"context"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// callersKept is how many goroutines that have answered a call wait for the next one.
const callersKept = 128

// serveCall is the transport's handler: it hands the call to a green thread.
func (a *Agent) serveCall(ctx context.Context, m rpc.Message, respond func(rpc.Reply)) {
	a.calls.SpawnN(ctx, func(ctx context.Context) error {
		respond(a.answer(ctx, m))
		return nil
	})
}

// answer carries out one call and gives its one reply.
func (a *Agent) answer(ctx context.Context, m rpc.Message) rpc.Reply {
	if extra, ok := a.cfg.Extra[m.Method]; ok && api.CheckVersion(a.cfg.APIVersion, m.Version) == nil {
		body, err := extra(ctx, m.Args)
		return rpc.Reply{Body: body, Err: fault.Wire(err)}
	}
	e, err := a.route(m.Method, api.Call)
	if verr := api.CheckVersion(a.cfg.APIVersion, m.Version); verr != nil {
		err = verr // a method of a later version is not known either
	}
	if err != nil {
		return rpc.Reply{Err: fault.Wire(err)}
	}
	if e.read != nil {
		return a.read(ctx, e, m)
	}
	return a.perform(ctx, m)
}

func (a *Agent) read(ctx context.Context, e endpoint, m rpc.Message) rpc.Reply {
	args, err := decode(m.Method, m.Args)
	var result any
	if err == nil {
		err = guarded(ctx, m.Method, func() (err error) {
			result, err = e.read(a, ctx, args)
			return err
		})
	}
	var body []byte
	if err == nil {
		body, err = rpc.JSON(result)
	}
	if err != nil {
		return rpc.Reply{Err: fault.Wire(fault.Wrap(err, m.Method, ""))}
	}
	return rpc.Reply{Body: body}
}

// perform is a call that changes something: journaled, run in its lane, answered
// after its end; repeated with the same id it gets the first answer.
func (a *Agent) perform(ctx context.Context, m rpc.Message) rpc.Reply {
	plans := []plan{a.admit(&m, api.Call, 0, a.lanes.held)}
	if m.RequestID == "" {
		return plans[0].task.reply()
	}
	wait := a.waiters.add(m.RequestID)
	defer a.waiters.drop(m.RequestID, wait)
	plans[0].alone = true
	p := plans[0]
	taken := func(plans []plan) {
		p = plans[0]
		a.launch(a.base, p)
	}
	if err := a.ledger.commit(ctx, a.journal(plans, taken)); err != nil {
		return rpc.Reply{Err: fault.Wire(err)}
	}
	if p.verdict == Refuse || p.task.State.Ended() {
		return p.task.reply()
	}
	select {
	case t := <-wait:
		return t.reply()
	case <-ctx.Done():
		return rpc.Reply{Err: fault.Wire(fault.New(fault.Timeout, m.Method, m.RequestID, "the caller's deadline passed, or the agent stops; the work goes on").
			WithHint("ask again with the same request id to learn its end"))}
	}
}
