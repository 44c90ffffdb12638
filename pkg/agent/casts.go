package agent

import (
	"context"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// readBatch is the largest number of casts that share one transaction.
const readBatch = 256

// readCasts reads the host's casts until ctx ends: admit, journal, acknowledge,
// launch. When the journal can't be written nothing is acknowledged and reading
// pauses as a whole, so that the order holds.
func (a *Agent) readCasts(ctx context.Context, reader rpc.CastReader) error {
	log := logkit.From(ctx)
	pause := a.cfg.RetryFirst
	for ctx.Err() == nil {
		if waited, err := a.lanes.room(ctx, a.cfg.MaxAcceptedTasks); err != nil {
			break
		} else if waited {
			log.Warn("reading casts was paused: max_accepted_tasks were accepted and had not ended")
		}
		batch, err := reader.Next(ctx, readBatch)
		if err == nil {
			err = a.takeBatch(ctx, batch)
		}
		if err == nil {
			pause = a.cfg.RetryFirst
			continue
		}
		if ctx.Err() != nil {
			break
		}
		log.Warn("cannot take casts, trying again", logkit.Err(err), logkit.Key("pause").Of(pause))
		if green.Sleep(ctx, pause) != nil {
			break
		}
		pause = min(2*pause, a.cfg.RetryLimit)
	}
	return context.Cause(ctx)
}

// takeBatch brings one batch of deliveries into the journal and their lanes.
func (a *Agent) takeBatch(ctx context.Context, batch []rpc.Delivery) error {
	plans := make([]plan, 0, len(batch))
	seen := map[string]bool{}
	for _, d := range batch {
		if seen[d.RequestID] && d.RequestID != "" { // a copy within the batch: its first one decides
			continue
		}
		seen[d.RequestID] = true
		plans = append(plans, a.admitCast(d, plans))
	}
	if err := a.journal(ctx, plans); err != nil {
		return err
	}
	for _, d := range batch {
		if err := d.Ack(); err != nil { // it comes again, its id is known then
			logkit.From(ctx).Debug("a cast was not acknowledged", logkit.RequestID.Of(d.RequestID), logkit.Err(err))
		}
	}
	for _, p := range plans {
		a.launch(ctx, p)
	}
	return nil
}

// admitCast judges one delivery; earlier are the plans of the same batch.
func (a *Agent) admitCast(d rpc.Delivery, earlier []plan) plan {
	t := a.newTask(d.Message, api.Cast, d.Sequence)
	if d.Malformed != nil {
		if t.ID == "" { // without an id nobody can wait for it, but it is told
			t.ID = "malformed-" + time.Now().UTC().Format("20060102T150405.000000000")
		}
		return refused(t, d.Malformed)
	}
	expires := d.Expires
	if expires.IsZero() {
		expires = d.Sent.Add(a.cfg.CastDefaultExpiry)
	}
	if _, known, err := a.ledger.task(d.RequestID); err == nil && !known && time.Now().After(expires) {
		return refused(t, fault.Newf(fault.Expired, d.Method, d.RequestID, "read after its expiry, %s", expires.UTC().Format(time.RFC3339)).
			WithHint("nothing was done; send it again if it is still wanted"))
	}
	return a.admit(d.Message, api.Cast, d.Sequence, func(id string) (Op, []Op) {
		running, waiting := a.lanes.held(id)
		for _, p := range earlier {
			if p.task.Instance == id && (p.verdict == Queue || p.verdict == TakeOver) && !p.now {
				waiting = append(waiting, opOf(p.task))
			}
		}
		return running, waiting
	})
}

// gather keeps the lanes shut while casts that were delivered before, to this or
// an earlier run, may still come again: they belong before what is read now.
func (a *Agent) gather(ctx context.Context, reader rpc.CastReader) error {
	n, err := reader.Unacked(ctx)
	if err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	if n > 0 {
		logkit.From(ctx).Info("waiting for casts that were delivered and not acknowledged", logkit.Key("casts").Of(n))
		return green.Sleep(ctx, a.cfg.AckWait+a.cfg.AckWait/4)
	}
	return nil
}

// serveCall is the transport's handler: it hands the call to a green thread.
func (a *Agent) serveCall(ctx context.Context, m rpc.Message, respond func(rpc.Reply)) {
	green.SpawnN(ctx, func(ctx context.Context) error {
		respond(a.answer(ctx, m))
		return nil
	})
}

// answer carries out one call and gives its one reply.
func (a *Agent) answer(ctx context.Context, m rpc.Message) rpc.Reply {
	e, err := a.route(m.Method, api.Call)
	if err == nil {
		err = api.CheckVersion(api.Version, m.Version)
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
		result, err = e.read(a, ctx, args)
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
	p := a.admit(m, api.Call, 0, a.lanes.held)
	if p.repeat && p.verdict == Refuse || p.repeat && p.task.State.Ended() {
		return p.task.reply()
	}
	wait := a.waiters.add(p.task.ID)
	defer a.waiters.drop(p.task.ID, wait)
	if !p.repeat {
		if err := a.journal(ctx, []plan{p}); err != nil {
			return rpc.Reply{Err: fault.Wire(err)}
		}
		a.launch(a.base, p)
	} else if t, ok, err := a.ledger.task(p.task.ID); err == nil && ok && t.State.Ended() {
		return t.reply() // it ended between the look and the wait
	}
	select {
	case t := <-wait:
		return t.reply()
	case <-ctx.Done():
		return rpc.Reply{Err: fault.Wire(fault.New(fault.Timeout, m.Method, m.RequestID, "the caller's deadline passed; the work goes on").
			WithHint("ask again with the same request id to learn its end"))}
	}
}
