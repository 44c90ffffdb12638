package agent

import (
	"context"
	"errors"
	"sync"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/state"
)

const (
	outboxBatch = 512  // events that are published at once
	outboxRoom  = 4096 // events that may wait in memory; the others are read from the journal
	showWorkers = 32   // view entries that are written at once, before the events that tell of them
)

/*
outbox holds the newest events of the journal's outbox in memory, so that they
are not read again. While more wait than there is room for, as at the start and
while the bus is away, the journal alone has them.

	behind: read from the journal ──(none is left)──▶ following: kept in memory
	             ▲                                           │
	             └──────────────(no room)────────────────────┘

mu guards the fields below it.
*/
type outbox struct {
	wake chan struct{} // has room for one

	mu     sync.Mutex
	queue  []state.OutEvent
	behind bool
	last   uint64 // of the newest event that may be told
}

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1), behind: true} }

// begin says which event is the newest of an earlier run.
func (o *outbox) begin(last uint64) {
	o.mu.Lock()
	o.last = last
	o.mu.Unlock()
	signal(o.wake)
}

// add lets the events of a commit out.
func (o *outbox) add(events []state.OutEvent) {
	if len(events) == 0 {
		return
	}
	o.mu.Lock()
	o.last = events[len(events)-1].Sequence
	switch {
	case o.behind:
	case len(o.queue)+len(events) > outboxRoom:
		o.behind, o.queue = true, nil
	default:
		o.queue = append(o.queue, events...)
	}
	o.mu.Unlock()
	signal(o.wake)
}

// next gives the oldest events that are to be told.
func (o *outbox) next(store *state.Store) (events []state.OutEvent, bad []error, err error) {
	o.mu.Lock()
	if !o.behind {
		defer o.mu.Unlock()
		return o.queue[:min(len(o.queue), outboxBatch)], nil, nil
	}
	last := o.last
	o.mu.Unlock()
	err = store.View(func(tx *state.Tx) error { events, bad = state.PendingEvents(tx, outboxBatch); return nil })
	for i, e := range events {
		if e.Sequence > last {
			events = events[:i]
			break
		}
	}
	if err != nil || len(events) > 0 {
		return events, bad, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.last == last { // the journal has no more, and nothing was added meanwhile
		o.behind = false
	} else {
		signal(o.wake)
	}
	return nil, bad, nil
}

// told forgets events that the bus has and the journal has dropped.
func (o *outbox) told(last uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queue) > 0 && o.queue[0].Sequence <= last {
		o.queue[0] = state.OutEvent{}
		o.queue = o.queue[1:]
	}
}

// signal fills a channel with room for one.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// publishEvents empties the outbox in order: publish, then drop. While the bus is
// away events stay in the journal.
func (a *Agent) publishEvents(ctx context.Context) error {
	pause := a.cfg.RetryFirst
	for ctx.Err() == nil {
		n, err := a.publishBatch(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			logkit.From(ctx).Debug("events wait for the bus", logkit.Err(err))
			_ = green.Sleep(ctx, pause)
			pause = min(2*pause, a.cfg.RetryLimit)
		case err == nil && n == 0:
			pause = a.cfg.RetryFirst
			select {
			case <-a.ledger.out.wake:
			case <-ctx.Done():
			}
		}
	}
	return nil
}

func (a *Agent) publishBatch(ctx context.Context) (int, error) {
	waiting, bad, err := a.ledger.out.next(a.store)
	if err != nil {
		return 0, err
	}
	if len(bad) > 0 {
		logkit.From(ctx).Error("events in the outbox can't be read", logkit.Err(errors.Join(bad...)))
	}
	if len(waiting) == 0 {
		return 0, nil
	}
	a.showAll(ctx, waiting)
	events := make([]rpc.Event, 0, len(waiting))
	for _, e := range waiting {
		events = append(events, rpc.Event{Host: a.cfg.Host, Kind: e.Kind, ID: e.ID, MsgID: e.MsgID, Body: e.Body})
	}
	bounded, cancel := context.WithTimeout(ctx, a.cfg.PublishTimeout)
	stored, failed := a.bus.PublishAll(bounded, events)
	cancel()
	if stored == 0 {
		return 0, failed
	}
	last := waiting[stored-1].Sequence
	if err := a.store.Update(ctx, func(tx *state.Tx) error { return state.DropEvents(tx, last) }); err != nil {
		return 0, err
	}
	a.ledger.out.told(last)
	return stored, failed
}

// showAll brings the views of what events tell of up to date: whoever hears the
// news then finds it there.
func (a *Agent) showAll(ctx context.Context, events []state.OutEvent) {
	seen := make(map[string]struct{}, len(events))
	var ids []string
	for _, e := range events {
		if _, twice := seen[e.Instance]; e.Instance == "" || twice {
			continue
		}
		seen[e.Instance] = struct{}{}
		ids = append(ids, e.Instance)
	}
	if len(ids) == 1 {
		a.showNow(ctx, rpc.Instances, ids[0])
		return
	}
	pool := green.NewPool(showWorkers)
	for _, id := range ids {
		if pool.SpawnN(ctx, func(ctx context.Context) error { a.showNow(ctx, rpc.Instances, id); return nil }) != nil {
			break
		}
	}
	_ = pool.WaitAll(ctx) // it ends early with ctx alone
}
