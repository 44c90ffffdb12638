package rpc

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Cast implements [Client].
func (c *natsConn) Cast(ctx context.Context, host string, m Message) error {
	if err := checkCast(host, m); err != nil {
		return err
	}
	h, err := encodeMessage(m)
	if err != nil {
		return err
	}
	h[headerMsgID] = []string{msgID(host, m.RequestID)}
	return c.publish(ctx, &nats.Msg{Subject: c.names.cast(host, m.Method), Header: h, Data: m.Args})
}

// publish stores a message in the stream of its subject and waits until that is confirmed.
func (c *natsConn) publish(ctx context.Context, m *nats.Msg) error {
	if err := c.usable("publish"); err != nil {
		return err
	}
	bounded, epoch, done := c.publishing(ctx)
	defer done()
	_, err := c.js.PublishMsg(bounded, m)
	if err == nil {
		return nil
	}
	return c.publishFault(ctx, epoch, err, m.Subject)
}

// publishing bounds the wait for a confirmation, which also ends with the connection's epoch.
func (c *natsConn) publishing(ctx context.Context) (bounded, epoch context.Context, done func()) {
	bounded, cancel := c.bounded(ctx)
	_, epoch = c.state()
	lost := context.AfterFunc(epoch, cancel)
	return bounded, epoch, func() { lost(); cancel() }
}

// publishFault tells why a message may not be stored.
func (c *natsConn) publishFault(ctx, epoch context.Context, err error, subject string) error {
	switch {
	case ctx.Err() != nil:
		return fault.Wrap(context.Cause(ctx), "publish", subject)
	case epoch.Err() != nil:
		return fault.Wrap(context.Cause(epoch), "publish", subject)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout), errors.Is(err, jetstream.ErrAsyncPublishTimeout):
		return notStored(subject, c.cfg.PublishTimeout).Because(err)
	}
	return natsFault(err, "publish", subject)
}

// natsCasts reads a host's durable consumer.
type natsCasts struct {
	conn     *natsConn
	host     string
	pull     *puller
	patience patience
}

// Casts implements [Agent].
func (c *natsConn) Casts(ctx context.Context, host string) (CastReader, error) {
	if err := checkHost("casts", host); err != nil {
		return nil, err
	}
	if err := c.usable("casts"); err != nil {
		return nil, err
	}
	if _, err := c.durable(ctx, host); err != nil {
		return nil, err
	}
	p, err := c.newPuller(c.names.castStream(), EscapeHost(host))
	if err != nil {
		return nil, err
	}
	return &natsCasts{conn: c, host: host, pull: p}, nil
}

// durable looks at a host's consumer, and makes it when that is our office.
func (c *natsConn) durable(ctx context.Context, host string) (*jetstream.ConsumerInfo, error) {
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	consumer, err := c.js.Consumer(bounded, c.names.castStream(), EscapeHost(host))
	missing := errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound)
	switch {
	case err == nil:
		return consumer.CachedInfo(), nil
	case missing && c.cfg.AutoSetup:
		if err := Setup(bounded, c, host); err != nil {
			return nil, err
		}
		return c.consumerInfo(bounded, host)
	case missing:
		return nil, fault.New(fault.Unavailable, "casts", host, "the host has no durable consumer in "+c.names.castStream()).Because(err).
			WithHint("run compute-agent nats-setup %s with a controller's credential", host)
	case ctx.Err() != nil:
		return nil, fault.Wrap(context.Cause(ctx), "casts", host)
	}
	f := natsFault(err, "casts", host)
	if f.Kind == fault.Internal || f.Kind == fault.Timeout { // the server starts, or elects
		f.Kind = fault.Unavailable
	}
	return nil, f
}

func (c *natsConn) consumerInfo(ctx context.Context, host string) (*jetstream.ConsumerInfo, error) {
	consumer, err := c.js.Consumer(ctx, c.names.castStream(), EscapeHost(host))
	if err != nil {
		return nil, natsFault(err, "casts", host)
	}
	return consumer.CachedInfo(), nil
}

// Next implements [CastReader]. It is for one caller at a time.
func (r *natsCasts) Next(ctx context.Context, limit int) ([]Delivery, error) {
	limit = max(limit, 1)
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		m, err := r.pull.next(ctx, limit)
		if errors.Is(err, errTrouble) {
			err = r.repair(ctx)
		}
		if err != nil {
			return nil, err
		}
		if m != nil {
			r.patience.reset()
			return r.fill(m, limit), nil
		}
	}
}

// fill makes a batch of m and what has come with it.
func (r *natsCasts) fill(m *nats.Msg, limit int) []Delivery {
	var batch []Delivery
	for m != nil {
		if d, ok := r.delivery(m); ok {
			batch = append(batch, d)
		}
		if len(batch) == limit {
			return batch
		}
		var err error
		if m, err = r.pull.more(); err != nil {
			return batch // the trouble shows itself again at the next pull
		}
	}
	return batch
}

// delivery reads one message. What has no acknowledgement subject was not sent by
// JetStream, and is dropped.
func (r *natsCasts) delivery(m *nats.Msg) (Delivery, bool) {
	meta, err := m.Metadata()
	if err != nil {
		r.conn.cfg.OnError(natsFault(err, "read", m.Subject))
		return Delivery{}, false
	}
	d := decodeCast(r.conn.names, m.Subject, m.Header, m.Data)
	d.Sequence, d.Delivered, d.Sent = meta.Sequence.Stream, int(min(meta.NumDelivered, 1<<30)), meta.Timestamp
	d.Pending = int(min(meta.NumPending, 1<<30))
	d.Ack = func() error {
		if err := r.conn.nc.Publish(m.Reply, nil); err != nil { // an empty message acknowledges
			return natsFault(err, "ack", r.host)
		}
		return nil
	}
	return d, true
}

// repair waits a little and looks at the consumer, so that the next pull finds one.
// While the connection is away it leaves the waiting to the pull.
func (r *natsCasts) repair(ctx context.Context) error {
	if !r.conn.nc.IsConnected() && !r.conn.nc.IsClosed() {
		return nil
	}
	if err := r.patience.wait(ctx, r.pull.gone); err != nil {
		return err
	}
	if err := r.conn.usable("read"); err != nil {
		if r.conn.nc.IsClosed() {
			return err
		}
		return nil
	}
	_, err := r.conn.durable(ctx, r.host)
	return err
}

// Unacked implements [CastReader].
func (r *natsCasts) Unacked(ctx context.Context) (int, error) {
	if err := r.conn.usable("unacked"); err != nil {
		return 0, err
	}
	info, err := r.conn.durable(ctx, r.host)
	if err != nil {
		return 0, err
	}
	return info.NumAckPending, nil
}

// Close implements [CastReader]. What has come and was not given to anybody is
// given back at once, so that the next reader does not wait for AckWait.
func (r *natsCasts) Close() error {
	r.pull.close()
	for {
		select {
		case m := <-r.pull.msgs:
			if _, err := m.Metadata(); err == nil {
				_ = r.conn.nc.Publish(m.Reply, []byte("-NAK")) // lost with the connection: AckWait does it
			}
		default:
			return nil
		}
	}
}
