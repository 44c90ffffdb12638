package agent

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/state"
)

const (
	outboxBatch = 1024  // events that are published at once
	outboxRoom  = 16384 // events that may wait in memory, some 10 MB; the others are read from the journal
)

/*
outbox holds the newest events of the journal's outbox in memory, so that they
are not read again. While more wait than there is room for, as at the start and
while the bus is away, the journal alone has them.

	behind: read from the journal ──(none is left)──▶ following: kept in memory
	             ▲                                           │
	             └──────────────(no room)────────────────────┘

While a burst of casts is being accepted the events that come meanwhile are held: what
is told takes processor and server from those that are not accepted yet.

mu guards the fields below it.
*/
type outbox struct {
	wake chan struct{} // has room for one; filled when there is something to tell
	drop chan struct{} // has room for one; filled when there is something to drop

	mu      sync.Mutex
	queue   []state.OutEvent
	behind  bool
	last    uint64 // of the newest event that is on disk
	held    bool
	until   uint64 // while held: of the newest event that may be told
	told    uint64 // of the newest event that the bus has
	dropped uint64 // of the newest event that the journal has dropped
}

func newOutbox() *outbox {
	return &outbox{wake: make(chan struct{}, 1), drop: make(chan struct{}, 1), behind: true}
}

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

// hold keeps what comes from now on from being told, until it is let out.
func (o *outbox) hold() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.held {
		o.held, o.until = true, o.last
	}
}

// letOut ends a hold.
func (o *outbox) letOut() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held {
		o.held = false
		signal(o.wake)
	}
}

// newestLocked is the place of the newest event that may be told.
func (o *outbox) newestLocked() uint64 {
	if o.held {
		return o.until
	}
	return o.last
}

// next gives the oldest events that are to be told.
func (o *outbox) next(store *state.Store) (events []state.OutEvent, bad []error, err error) {
	o.mu.Lock()
	last, told := o.newestLocked(), o.told
	if !o.behind {
		defer o.mu.Unlock()
		return upTo(last, o.queue[:min(len(o.queue), outboxBatch)]), nil, nil
	}
	o.mu.Unlock()
	err = store.View(func(tx *state.Tx) error { events, bad = state.PendingEvents(tx, told, outboxBatch); return nil })
	events = upTo(last, events)
	if err != nil || len(events) > 0 {
		return events, bad, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.last == last: // the journal has no more, and nothing was added meanwhile
		o.behind = false
	case !o.held: // else letOut wakes
		signal(o.wake)
	}
	return nil, bad, nil
}

// upTo leaves the events behind last out.
func upTo(last uint64, events []state.OutEvent) []state.OutEvent {
	end, _ := slices.BinarySearchFunc(events, last+1, func(e state.OutEvent, n uint64) int { return cmp.Compare(e.Sequence, n) })
	return events[:end]
}

// tell forgets events that the bus has, and has the journal drop them.
func (o *outbox) tell(last uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.told = last
	for len(o.queue) > 0 && o.queue[0].Sequence <= last {
		o.queue[0] = state.OutEvent{}
		o.queue = o.queue[1:]
	}
	signal(o.drop)
}

// toDrop gives how far the journal may drop events, and how far it has.
func (o *outbox) toDrop() (last, dropped uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.told, o.dropped
}

func (o *outbox) haveDropped(last uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dropped = last
}

// signal fills a channel with room for one.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// tellEvents publishes events and drops them from the journal, side by side; at the
// agent's stop nothing that was told stays there.
func (a *Agent) tellEvents(ctx context.Context) error {
	dropper := green.Spawn(ctx, func(ctx context.Context) (struct{}, error) { a.dropEvents(ctx); return struct{}{}, nil })
	a.publishEvents(ctx)
	<-dropper.Done()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.StopTimeout)
	defer cancel()
	if err := a.dropTold(bounded); err != nil { // they are told again at the next start
		logkit.From(ctx).Debug("events that were told stay in the journal", logkit.Err(err))
	}
	return nil
}

// publishEvents empties the outbox in order: publish, then have it dropped. While the
// bus is away events stay in the journal.
func (a *Agent) publishEvents(ctx context.Context) {
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
	a.showNow(ctx, rpc.Instances, aboutOf(waiting)...) // whoever hears the news then finds it there
	events := make([]rpc.Event, 0, len(waiting))
	for _, e := range waiting {
		events = append(events, rpc.Event{Host: a.cfg.Host, Kind: e.Kind, ID: e.ID, MsgID: e.MsgID, Body: e.Body})
	}
	bounded, cancel := context.WithTimeout(ctx, a.cfg.PublishTimeout)
	stored, failed := a.bus.PublishAll(bounded, events)
	cancel()
	if stored > 0 {
		a.ledger.out.tell(waiting[stored-1].Sequence)
	}
	return stored, failed
}

// aboutOf names the instances that events tell of.
func aboutOf(events []state.OutEvent) (ids []string) {
	seen := make(map[string]struct{}, len(events))
	for _, e := range events {
		if _, twice := seen[e.Instance]; e.Instance == "" || twice {
			continue
		}
		seen[e.Instance] = struct{}{}
		ids = append(ids, e.Instance)
	}
	return ids
}

// dropEvents takes out of the journal what was told, while the next events are on
// their way. What is told and still there after a crash is told again: its MsgID, and
// what it says, make that harmless.
func (a *Agent) dropEvents(ctx context.Context) {
	out := a.ledger.out
	pause := a.cfg.RetryFirst
	for {
		select {
		case <-out.drop:
		case <-ctx.Done():
			return
		}
		err := a.dropTold(ctx)
		if err == nil {
			pause = a.cfg.RetryFirst
			continue
		}
		logkit.From(ctx).Debug("events that were told can't be taken out of the journal, trying again", logkit.Err(err))
		_ = green.Sleep(ctx, pause)
		pause = min(2*pause, a.cfg.RetryLimit)
		signal(out.drop)
	}
}

func (a *Agent) dropTold(ctx context.Context) error {
	last, dropped := a.ledger.out.toDrop()
	if last <= dropped {
		return nil
	}
	if err := a.store.Update(ctx, func(tx *state.Tx) error { return state.DropEvents(tx, last) }); err != nil {
		return err
	}
	a.ledger.out.haveDropped(last)
	return nil
}
