package rpc

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// followIdle is how long the server keeps a reader's consumer after its last pull.
const followIdle = time.Minute

// follower reads a stream in order from a place on, over consumers of its own: one
// that fails, or that has lost a message, is replaced by one that begins after the
// last message seen. Views and events are read through it.
type follower struct {
	conn   *natsConn
	stream string
	filter string
	policy jetstream.DeliverPolicy // for the first consumer
	start  uint64                  // where the first consumer begins, with DeliverByStartSequencePolicy

	last     uint64 // stream sequence of the last message seen
	name     string // of the consumer
	heard    uint64 // consumer sequence of the last message
	pending  uint64 // messages there when the first consumer was made
	patience patience
	gone     chan struct{} // closed by close

	mu   *sync.Mutex // guards pull: close may come while next waits
	pull *puller     // nil: to be made
}

func (c *natsConn) follow(ctx context.Context, f follower) (*follower, error) {
	f.conn, f.gone, f.mu = c, make(chan struct{}), &sync.Mutex{}
	if err := c.usable("read"); err != nil {
		return nil, err
	}
	if err := f.begin(ctx); err != nil {
		return nil, err
	}
	return &f, nil
}

// begin makes a consumer that continues after the last message.
func (f *follower) begin(ctx context.Context) error {
	cfg := jetstream.ConsumerConfig{
		FilterSubject: f.filter, AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: f.policy, OptStartSeq: f.start,
		InactiveThreshold: followIdle, MemoryStorage: true, Replicas: 1, MaxDeliver: -1,
	}
	if f.last > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, f.last+1
	}
	bounded, cancel := f.conn.bounded(ctx)
	defer cancel()
	consumer, err := f.conn.js.CreateConsumer(bounded, f.stream, cfg)
	if err != nil {
		return natsFault(err, "read", f.stream)
	}
	info := consumer.CachedInfo()
	if f.name == "" {
		f.pending = info.NumPending
	}
	p, err := f.conn.newPuller(f.stream, info.Name)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pull, f.name, f.heard = p, info.Name, 0
	return nil
}

// current gives the puller in use; after close there is none.
func (f *follower) current() (*puller, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.gone:
		return nil, errReaderClosed()
	default:
		return f.pull, nil
	}
}

// next gives the next message and how many follow it. Trouble is repaired here;
// what remains is the end of ctx, of the reader, or of the connection.
func (f *follower) next(ctx context.Context) (*nats.Msg, *nats.MsgMetadata, error) {
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, nil, err
		}
		pull, err := f.current()
		if err == nil && pull == nil {
			err = f.resume(ctx)
		}
		if err != nil {
			return nil, nil, err
		}
		if pull == nil {
			continue
		}
		m, err := pull.next(ctx, pullBatch)
		if errors.Is(err, errTrouble) {
			f.drop()
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		meta, err := m.Metadata()
		if err != nil || meta.Consumer != f.name {
			continue // not from this consumer
		}
		if meta.Sequence.Consumer != f.heard+1 {
			f.drop() // one was lost on its way
			continue
		}
		f.heard, f.last = meta.Sequence.Consumer, meta.Sequence.Stream
		f.patience.reset()
		return m, meta, nil
	}
}

// resume replaces a consumer that failed, once the connection is there.
func (f *follower) resume(ctx context.Context) error {
	up, _ := f.conn.state()
	select {
	case <-up:
	case <-f.conn.life.Done():
		return errClosed("read")
	case <-f.gone:
		return errReaderClosed()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := f.patience.wait(ctx, f.gone); err != nil {
		return err
	}
	if f.conn.nc.IsClosed() {
		return errClosed("read")
	}
	if err := f.begin(ctx); err != nil {
		f.conn.cfg.OnError(err)
	}
	return nil
}

// drop gives the consumer up; the server forgets it.
func (f *follower) drop() {
	f.mu.Lock()
	pull, name := f.pull, f.name
	f.pull = nil
	f.mu.Unlock()
	if pull == nil {
		return
	}
	pull.close()
	if f.conn.nc.IsConnected() {
		_ = f.conn.nc.Publish("$JS.API.CONSUMER.DELETE."+f.stream+"."+name, nil) // else it ends by itself, being idle
	}
}

// close ends the reader; a waiting next returns.
func (f *follower) close() {
	close(f.gone)
	f.drop()
}
