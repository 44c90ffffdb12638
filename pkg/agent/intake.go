package agent

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

const (
	readBatch = 512                    // casts that share one transaction at most
	burstSize = 16                     // so many at once are a burst: more will follow
	burstRoom = 2048                   // casts that are accepted at most before the first of them is carried out
	burstTime = 100 * time.Millisecond // and for so long
	burstWait = 20 * time.Millisecond  // how long at most the next ones are waited for
	burstPart = 128                    // of a burst fewer at once are not taken
	partWait  = 2 * time.Millisecond   // but after so long
)

/*
intake reads the host's casts: admit, journal, acknowledge, launch.

	            ┌──────────────(more will come)───────────┐
	            ▼                                         │
	read ──▶ batch ──admit, journal, acknowledge──▶ burst ┴─(no more, or enough)──▶ launch
	            ▲                │
	            └──(no journal)──┘ pause

Of a burst all that waits is accepted before the lanes go on with it and before it is
told of: a cast is safe when it is accepted and not before, and what is carried out or
told takes processor, journal and server from those that still wait. It is used by one
thread alone.
*/
type intake struct {
	agent  *Agent
	reader rpc.CastReader
	batch  []rpc.Delivery // what could not be taken is taken before anything else is read
	burst  []string       // instances whose lanes are to go on: a task was accepted for each
	since  time.Time      // when the burst began; zero: there is none
}

// readCasts reads casts until ctx ends. When the journal can't be written nothing is
// acknowledged and reading pauses as a whole, so that the order holds.
func (a *Agent) readCasts(ctx context.Context, reader rpc.CastReader) error {
	in := &intake{agent: a, reader: reader}
	defer a.ledger.out.letOut()
	pause := a.cfg.RetryFirst
	for {
		err := in.step(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			pause = a.cfg.RetryFirst
			continue
		}
		logkit.From(ctx).Warn("cannot take casts, trying again", logkit.Err(err), logkit.Key("pause").Of(pause))
		if green.Sleep(ctx, pause) != nil {
			return context.Cause(ctx)
		}
		pause = min(2*pause, a.cfg.RetryLimit)
	}
}

// step takes one batch.
func (in *intake) step(ctx context.Context) (err error) {
	if in.batch == nil {
		in.batch, err = in.next(ctx)
	}
	more := err == nil && in.more()
	if more && in.since.IsZero() {
		in.since = time.Now()
		in.agent.ledger.out.hold()
	}
	if err == nil && len(in.batch) > 0 {
		err = in.take(ctx)
	}
	if err == nil {
		in.batch = nil
	}
	if err != nil || !more || in.enough() {
		in.launch()
	}
	return err
}

// more tells that others will follow the batch.
func (in *intake) more() bool {
	n := len(in.batch)
	return n >= burstSize || n > 0 && in.batch[n-1].Pending > 0
}

// enough tells that a burst is to be launched although more will come.
func (in *intake) enough() bool {
	room, _ := in.agent.lanes.free(in.agent.cfg.MaxAcceptedTasks)
	return room == 0 || len(in.burst) >= burstRoom || time.Since(in.since) >= burstTime
}

// next waits for casts; with a burst at hand no longer than burstWait, and gives none then.
func (in *intake) next(ctx context.Context) ([]rpc.Delivery, error) {
	if in.since.IsZero() {
		room, err := in.agent.room(ctx)
		if err != nil {
			return nil, err
		}
		return in.reader.Next(ctx, min(room, readBatch))
	}
	room, _ := in.agent.lanes.free(in.agent.cfg.MaxAcceptedTasks)
	if room == 0 { // calls have taken it meanwhile
		return nil, nil
	}
	batch, err := in.nextWithin(ctx, min(room, readBatch), burstWait)
	if err != nil || len(batch) == 0 || len(batch) >= min(room, burstPart) {
		return batch, err
	}
	rest, _ := in.nextWithin(ctx, min(room, readBatch)-len(batch), partWait) // an error shows itself again
	return append(batch, rest...), nil
}

// nextWithin gives the casts that come within a limit of time, none when there are none.
func (in *intake) nextWithin(ctx context.Context, most int, limit time.Duration) ([]rpc.Delivery, error) {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	batch, err := in.reader.Next(bounded, most)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		return nil, nil
	}
	return batch, err
}

// take brings the batch into the journal and its tasks into their lanes, and launches
// what waits for no lane.
func (in *intake) take(ctx context.Context) error {
	a := in.agent
	plans, err := a.admitBatch(in.batch)
	for i := range plans {
		plans[i].alone = len(in.batch) < burstSize
	}
	if err == nil {
		err = a.ledger.commitFirst(ctx, a.journal(plans, func(written []plan) { plans = written }))
	}
	if err != nil {
		return err
	}
	a.returns.note(in.batch)
	for _, d := range in.batch {
		if err := d.Ack(); err != nil { // it comes again, its id is known then
			logkit.From(ctx).Debug("a cast was not acknowledged", logkit.RequestID.Of(d.RequestID), logkit.Err(err))
		}
	}
	for _, p := range plans {
		if p.waits() && p.verdict == Queue {
			in.burst = append(in.burst, p.task.Instance)
		} else {
			a.launch(ctx, p)
		}
	}
	return nil
}

// launch has the lanes go on with what was accepted, and its events told.
func (in *intake) launch() {
	in.since = time.Time{}
	in.agent.ledger.out.letOut()
	for _, id := range in.burst {
		in.agent.lanes.kick(id)
	}
	clear(in.burst)
	in.burst = in.burst[:0]
}

// room waits until a task may be accepted, and tells how many may.
func (a *Agent) room(ctx context.Context) (int, error) {
	said := false
	for {
		n, freed := a.lanes.free(a.cfg.MaxAcceptedTasks)
		if n > 0 {
			if said {
				logkit.From(ctx).Info("reading casts again")
			}
			return n, nil
		}
		if !said {
			said = true
			logkit.From(ctx).Warn("reading casts pauses: max_accepted_tasks are accepted and have not ended",
				logkit.Key("max_accepted_tasks").Of(a.cfg.MaxAcceptedTasks))
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}
