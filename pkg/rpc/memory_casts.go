package rpc

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// castStore is the work-queue stream: what is acknowledged is gone.
type castStore struct {
	sequence uint64
	queues   map[string]*castQueue // by host
	seen     dedup
}

/*
castQueue is one host's part of the stream with its durable consumer. A cast's way:

	fresh ─▶ pending ─▶ acked (gone)
	            └─▶ pending again when AckWait has passed
*/
type castQueue struct {
	fresh   []*memCast
	pending []*memCast // in order of due; acked ones are skipped
	unacked int
	readers []*memReader
}

type memCast struct {
	sequence  uint64
	subject   string
	header    header
	body      []byte
	sent      time.Time
	delivered int
	due       time.Time // when it comes again
	acked     bool
}

func (s *castStore) queue(host string) *castQueue {
	q := s.queues[host]
	if q == nil {
		q = &castQueue{}
		s.queues[host] = q
	}
	return q
}

// Cast implements [Client].
func (c *memConn) Cast(ctx context.Context, host string, m Message) error {
	if err := checkCast(host, m); err != nil {
		return err
	}
	h, err := encodeMessage(m)
	if err != nil {
		return err
	}
	h[headerMsgID] = []string{msgID(host, m.RequestID)}
	subject := c.bus.names.cast(host, m.Method)
	p := Passage{Leg: LegStore, Conn: c.name, Host: host, Subject: subject, Request: m.RequestID}
	return c.store(ctx, p, func() { c.bus.storeCastLocked(host, subject, h, append([]byte(nil), m.Args...)) })
}

// Inject puts a message into the cast stream as it is, well-formed or not, as any
// NATS client could.
func (b *Bus) Inject(subject string, h map[string][]string, body []byte) error {
	host, _, ok := b.names.subjectTokens("cast", subject)
	if !ok {
		return fault.Newf(fault.InvalidArgument, "inject", subject, "the stream takes %s only", b.names.prefix+".cast.<host>.<method>")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.storeCastLocked(host, subject, h, body)
	return nil
}

func (b *Bus) storeCastLocked(host, subject string, h header, body []byte) {
	now := time.Now()
	if b.casts.seen.seen(headerGet(h, headerMsgID), now) {
		return
	}
	b.casts.sequence++
	q := b.casts.queue(host)
	q.fresh = append(q.fresh, &memCast{sequence: b.casts.sequence, subject: subject, header: h, body: body, sent: now})
	q.wakeOne()
}

// wakeOne wakes the readers that wait; more than one reader of a host is rare.
func (q *castQueue) wakeOne() {
	for _, r := range q.readers {
		signal(r.wake)
	}
}

// store puts something into a store with the faults of both ways and returns when
// its confirmation is here.
func (c *memConn) store(ctx context.Context, p Passage, put func()) error {
	b := c.bus
	b.mu.Lock()
	err := c.usableLocked("publish")
	b.mu.Unlock()
	if err != nil {
		return err
	}
	stored := make(chan struct{}, 1)
	back := p
	back.Leg = LegStored
	carry(b.fate(p), func() {
		b.mu.Lock()
		if c.closed { // what is on its way when its connection closes is lost
			b.mu.Unlock()
			return
		}
		put()
		fate := b.fateLocked(back)
		b.mu.Unlock()
		carry(fate, func() { signal(stored) })
	})
	select {
	case <-stored:
		return nil
	default:
	}
	timer := time.NewTimer(DefaultPublishTimeout)
	defer timer.Stop()
	select {
	case <-stored:
		return nil
	case <-timer.C:
		return notStored(p.Subject, DefaultPublishTimeout)
	case <-c.gone:
		return fault.New(fault.Unavailable, "publish", p.Subject, "the connection was closed before the stream confirmed")
	case <-ctx.Done():
		return fault.Wrap(context.Cause(ctx), "publish", p.Subject)
	}
}

func notStored(subject string, after time.Duration) *fault.Error {
	return fault.Newf(fault.Timeout, "publish", subject, "the stream did not confirm within %s", after).
		WithHint("send it again with the same id: it is stored once")
}

func checkCast(host string, m Message) error {
	if err := checkHost("cast", host); err != nil {
		return err
	}
	if m.RequestID == "" {
		return fault.New(fault.InvalidArgument, m.Method, "request id", "a cast needs a request id").
			WithHint("make a UUID, and keep it when you send the cast again")
	}
	return nil
}

// memReader is one open reader of a host's durable.
type memReader struct {
	conn   *memConn
	host   string
	wake   chan struct{} // room for one
	late   []Delivery    // deliveries that a fault delayed and that have arrived now
	closed bool
}

// Casts implements [Agent].
func (c *memConn) Casts(_ context.Context, host string) (CastReader, error) {
	if err := checkHost("casts", host); err != nil {
		return nil, err
	}
	b := c.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := c.usableLocked("casts"); err != nil {
		return nil, err
	}
	r := &memReader{conn: c, host: host, wake: make(chan struct{}, 1)}
	q := b.casts.queue(host)
	q.readers = append(q.readers, r)
	return r, nil
}

// Next implements [CastReader].
func (r *memReader) Next(ctx context.Context, limit int) ([]Delivery, error) {
	limit = max(limit, 1)
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		batch, due, err := r.collect(limit)
		if err != nil || len(batch) > 0 {
			return batch, err
		}
		if err := r.conn.wait(ctx, r.wake, due); err != nil {
			return nil, err
		}
	}
}

// collect takes what may be delivered now, or says when something comes again.
func (r *memReader) collect(limit int) (batch []Delivery, due time.Time, err error) {
	b := r.conn.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.closed {
		return nil, due, fault.New(fault.Unavailable, "read", r.host, "the reader is closed")
	}
	if r.conn.cut {
		return nil, due, nil
	}
	take := min(limit, len(r.late))
	batch, r.late = append(batch, r.late[:take]...), r.late[take:]
	q, now := b.casts.queue(r.host), time.Now()
	for len(batch) < limit {
		m := q.nextLocked(now)
		if m == nil {
			break
		}
		if now.Sub(m.sent) > b.opts.castsMaxAge {
			m.acked = true // the stream has dropped it
			continue
		}
		batch = r.deliverLocked(q, m, batch)
	}
	if len(q.pending) > 0 {
		due = q.pending[0].due
	}
	return batch, due, nil
}

// nextLocked removes the cast that is to be delivered next: one that comes again
// before a fresh one.
func (q *castQueue) nextLocked(now time.Time) *memCast {
	for len(q.pending) > 0 && q.pending[0].acked {
		q.pending = q.pending[1:]
	}
	if len(q.pending) > 0 && !now.Before(q.pending[0].due) {
		m := q.pending[0]
		q.pending = q.pending[1:]
		return m
	}
	if len(q.fresh) > 0 {
		m := q.fresh[0]
		q.fresh = q.fresh[1:]
		q.unacked++
		return m
	}
	return nil
}

// deliverLocked hands one cast to the reader, as far as its fate allows.
func (r *memReader) deliverLocked(q *castQueue, m *memCast, batch []Delivery) []Delivery {
	b := r.conn.bus
	m.delivered++
	m.due = time.Now().Add(b.opts.ackWait)
	q.pending = append(q.pending, m)
	d := r.delivery(q, m)
	fate := b.fateLocked(Passage{Leg: LegDelivery, Conn: r.conn.name, Host: r.host, Subject: m.subject, Request: d.RequestID, Sequence: m.sequence})
	if fate.Delay > 0 {
		carry(fate, func() { r.arriveLate(d) })
		return batch
	}
	carry(fate, func() { batch = append(batch, d) })
	return batch
}

func (r *memReader) arriveLate(d Delivery) {
	r.conn.bus.mu.Lock()
	r.late = append(r.late, d)
	r.conn.bus.mu.Unlock()
	signal(r.wake)
}

func (r *memReader) delivery(q *castQueue, m *memCast) Delivery {
	d := decodeCast(r.conn.bus.names, m.subject, m.header, m.body)
	d.Sequence, d.Delivered, d.Sent, d.Pending = m.sequence, m.delivered, m.sent, len(q.fresh)
	p := Passage{Leg: LegAck, Conn: r.conn.name, Host: r.host, Subject: m.subject, Request: d.RequestID, Sequence: m.sequence}
	d.Ack = func() error { return r.ack(q, m, p) }
	return d
}

// decodeCast reads a message of the cast stream; what can't be read is said in Malformed.
func decodeCast(n names, subject string, h header, body []byte) Delivery {
	host, rest, ok := n.subjectTokens("cast", subject)
	method := ""
	if ok && len(rest) == 1 {
		method = rest[0]
	}
	m, bad := decodeMessage(method, h, body, true)
	if id := headerGet(h, headerMsgID); bad == nil && id != "" && id != msgID(host, m.RequestID) {
		bad = fault.Newf(fault.Unauthorized, method, host, "%s is %s, want %q: the cast was meant for another host", headerMsgID, quoted(id), msgID(host, m.RequestID))
		m.RequestID = "" // it belongs to the cast that this one repeats
	}
	return Delivery{Message: m, Malformed: bad}
}

func (r *memReader) ack(q *castQueue, m *memCast, p Passage) error {
	b := r.conn.bus
	b.mu.Lock()
	err := r.conn.usableLocked("ack")
	b.mu.Unlock()
	if err != nil {
		return err
	}
	carry(b.fate(p), func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !m.acked {
			m.acked = true
			q.unacked--
		}
	})
	return nil
}

// Unacked implements [CastReader].
func (r *memReader) Unacked(context.Context) (int, error) {
	b := r.conn.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := r.conn.usableLocked("unacked"); err != nil {
		return 0, err
	}
	return b.casts.queue(r.host).unacked, nil
}

// Close implements [CastReader].
func (r *memReader) Close() error {
	b := r.conn.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.casts.queue(r.host)
	for i := range q.readers {
		if q.readers[i] == r {
			q.readers = append(q.readers[:i:i], q.readers[i+1:]...)
			break
		}
	}
	r.closed = true
	signal(r.wake)
	return nil
}
