package rpc

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// The views are NATS key-value buckets, written and read as the key-value layer of
// any NATS client does it: stream KV_<bucket>, subject $KV.<bucket>.<key>, deletion
// by a header. An agent needs no right but to publish under its own keys.

func kvStream(bucket string) string { return "KV_" + bucket }

func kvSubject(bucket, key string) string { return "$KV." + bucket + "." + key }

// viewName checks a view and gives its bucket's name.
func (c *natsConn) viewName(op string, b Bucket) (string, error) {
	if !slices.Contains(Buckets(), b) {
		return "", unknownBucket(op, b)
	}
	return c.names.bucket(b), nil
}

// place checks view and key.
func (c *natsConn) place(op string, b Bucket, key []string, pattern bool) (bucket, encoded string, err error) {
	if bucket, err = c.viewName(op, b); err != nil {
		return "", "", err
	}
	encoded, err = encodeKey(op, key, pattern)
	return bucket, encoded, err
}

// Put implements [Views].
func (c *natsConn) Put(ctx context.Context, b Bucket, key []string, value []byte) error {
	m, err := c.entryMessage(Entry{Bucket: b, Key: key, Value: value})
	if err != nil {
		return err
	}
	return c.publish(ctx, m)
}

// PutAll implements [Views].
func (c *natsConn) PutAll(ctx context.Context, entries []Entry) (stored int, err error) {
	return c.storeAll(ctx, len(entries), func(i int) (outgoing, error) {
		m, err := c.entryMessage(entries[i])
		return outgoing{m, kvStream(c.names.bucket(entries[i].Bucket))}, err
	})
}

// entryMessage is what writes or removes an entry.
func (c *natsConn) entryMessage(e Entry) (*nats.Msg, error) {
	op := "put"
	if e.Deleted {
		op = "delete"
	}
	bucket, encoded, err := c.place(op, e.Bucket, e.Key, false)
	if err != nil {
		return nil, err
	}
	m := &nats.Msg{Subject: kvSubject(bucket, encoded), Data: e.Value}
	if e.Deleted {
		m.Data, m.Header = nil, nats.Header{headerKVOperation: {"DEL"}}
	}
	return m, nil
}

// Delete implements [Views].
func (c *natsConn) Delete(ctx context.Context, b Bucket, key []string) error {
	m, err := c.entryMessage(Entry{Bucket: b, Key: key, Deleted: true})
	if err != nil {
		return err
	}
	return c.publish(ctx, m)
}

// deleted reports whether an entry marks a deletion.
func deleted(h nats.Header) bool {
	op := h.Get(headerKVOperation)
	return op == "DEL" || op == "PURGE" || h.Get("Nats-Marker-Reason") != ""
}

// Get implements [Views]: one direct read, which any replica answers.
func (c *natsConn) Get(ctx context.Context, b Bucket, key []string) (Entry, error) {
	bucket, encoded, err := c.place("get", b, key, false)
	if err != nil {
		return Entry{}, err
	}
	if err := c.usable("get"); err != nil {
		return Entry{}, err
	}
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	m, err := c.nc.RequestWithContext(bounded, "$JS.API.DIRECT.GET."+kvStream(bucket)+"."+kvSubject(bucket, encoded), nil)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return Entry{}, natsFault(err, "get", string(b))
	}
	sequence := m.Header.Get("Nats-Sequence")
	if sequence == "" || deleted(m.Header) {
		if status := m.Header.Get("Status"); sequence == "" && status != "404" {
			return Entry{}, fault.Newf(fault.Unavailable, "get", string(b), "the server answers %s %s", status, m.Header.Get("Description"))
		}
		return Entry{}, noEntry(b, key)
	}
	e := Entry{Bucket: b, Key: append([]string(nil), key...), Value: m.Data}
	e.Revision, err = strconv.ParseUint(sequence, 10, 64)
	if err == nil {
		e.At, err = time.Parse(time.RFC3339Nano, m.Header.Get("Nats-Time-Stamp"))
	}
	if err != nil {
		return Entry{}, fault.WrapAs(fault.Internal, err, "get", string(b))
	}
	return e, nil
}

// errListed ends a walk whose caller wants only what is there.
var errListed = errors.New("all that was there is listed")

// List implements [Views]: one consumer over the last value of each key, not a
// request per key. The keys of one host are read by requests: an agent lists its
// own, and must need no right to create a consumer.
func (c *natsConn) List(ctx context.Context, b Bucket, pattern []string) ([]Entry, error) {
	if len(pattern) > 1 && pattern[0] != "*" {
		return c.listHost(ctx, b, pattern)
	}
	bucket, encoded, err := c.place("list", b, pattern, true)
	if err != nil {
		return nil, err
	}
	found := newListing(b, bucket)
	err = c.walk(ctx, "list", b, pattern, func(e Entry, _, last bool) error {
		if e.Key != nil {
			if key, err := encodeKey("list", e.Key, false); err == nil {
				found.put(kvSubject(bucket, key), e)
			}
		}
		if last {
			return errListed
		}
		return nil
	})
	if !errors.Is(err, errListed) {
		return nil, err
	}
	return c.complete(ctx, encoded, found)
}

// Watch implements [Views].
func (c *natsConn) Watch(ctx context.Context, b Bucket, pattern []string, fn func(Entry) error) error {
	return c.walk(ctx, "watch", b, pattern, func(e Entry, initial, _ bool) error {
		if e.Key == nil || initial && e.Deleted {
			return nil
		}
		e.Initial = initial
		return fn(e)
	})
}

// walk visits what a view holds and then its changes. initial: it was there when
// the walk began; last: nothing of that follows. An empty view is one visit of an
// entry without a key.
func (c *natsConn) walk(ctx context.Context, op string, b Bucket, pattern []string, visit func(e Entry, initial, last bool) error) error {
	bucket, encoded, err := c.place(op, b, pattern, true)
	if err != nil {
		return err
	}
	f, err := c.follow(ctx, follower{stream: kvStream(bucket), filter: kvSubject(bucket, encoded), policy: jetstream.DeliverLastPerSubjectPolicy})
	if err != nil {
		return err
	}
	defer f.drop()
	left := f.pending
	if left == 0 {
		if err := visit(Entry{Deleted: true}, true, true); err != nil {
			return err
		}
	}
	for {
		m, meta, err := f.next(ctx)
		if err != nil {
			return err
		}
		initial := left > 0
		if left > 0 {
			left--
		}
		if meta.NumPending == 0 {
			left = 0
		}
		e := Entry{Bucket: b, Value: m.Data, Revision: meta.Sequence.Stream, At: meta.Timestamp, Deleted: deleted(m.Header)}
		var ok bool
		if e.Key, ok = decodeKey(strings.TrimPrefix(m.Subject, kvSubject(bucket, ""))); !ok {
			e = Entry{Deleted: true} // somebody else's key
		}
		if err := visit(e, initial, initial && left == 0); err != nil {
			return err
		}
	}
}
