package rpc

import (
	"context"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Publish implements [Agent].
func (c *natsConn) Publish(ctx context.Context, e Event) error {
	m, err := c.eventMessage(e)
	if err != nil {
		return err
	}
	return c.publish(ctx, m)
}

func (c *natsConn) eventMessage(e Event) (*nats.Msg, error) {
	subject, err := c.names.encodeEvent(e)
	if err != nil {
		return nil, err
	}
	m := &nats.Msg{Subject: subject, Data: e.Body}
	if e.MsgID != "" {
		m.Header = nats.Header{headerMsgID: {e.MsgID}}
	}
	return m, nil
}

// PublishAll implements [Agent].
func (c *natsConn) PublishAll(ctx context.Context, events []Event) (stored int, err error) {
	stream := c.names.eventStream()
	return c.storeAll(ctx, len(events), func(i int) (outgoing, error) {
		m, err := c.eventMessage(events[i])
		return outgoing{m, stream}, err
	})
}

// natsEvents reads the event stream.
type natsEvents struct {
	names names
	from  *follower
	once  sync.Once
}

// Events implements [Client].
func (c *natsConn) Events(ctx context.Context, f EventFilter) (EventReader, error) {
	from := follower{stream: c.names.eventStream(), filter: c.names.event(f), policy: jetstream.DeliverAllPolicy}
	switch {
	case f.Sequence > 0:
		from.policy, from.start = jetstream.DeliverByStartSequencePolicy, f.Sequence
	case f.From == FromLast:
		from.policy = jetstream.DeliverLastPerSubjectPolicy
	case f.From == FromNow:
		last, err := c.lastSequence(ctx, from.stream)
		if err != nil {
			return nil, err
		}
		// a place that stays the same however often the consumer has to be made again
		from.policy, from.start = jetstream.DeliverByStartSequencePolicy, last+1
	}
	follow, err := c.follow(ctx, from)
	if err != nil {
		return nil, err
	}
	return &natsEvents{names: c.names, from: follow}, nil
}

func (c *natsConn) lastSequence(ctx context.Context, stream string) (uint64, error) {
	if err := c.usable("read"); err != nil {
		return 0, err
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return 0, natsFault(err, "read", stream)
	}
	return s.CachedInfo().State.LastSeq, nil
}

// Next implements [EventReader]. It is for one caller at a time.
func (r *natsEvents) Next(ctx context.Context) (Event, error) {
	for {
		m, meta, err := r.from.next(ctx)
		if err != nil {
			return Event{}, err
		}
		e, ok := r.names.decodeEvent(m.Subject)
		if !ok {
			continue // not written by an agent
		}
		e.MsgID, e.Body, e.Sequence, e.At = headerGet(m.Header, headerMsgID), m.Data, meta.Sequence.Stream, meta.Timestamp
		return e, nil
	}
}

// Close implements [EventReader].
func (r *natsEvents) Close() error {
	r.once.Do(r.from.close)
	return nil
}
