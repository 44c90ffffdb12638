package rpc

import (
	"context"
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// outgoing is a message and the stream that is to store it.
type outgoing struct {
	*nats.Msg

	stream string
}

const (
	storesInFlight = 1024 // messages that wait for their confirmation at most
	batchFrom      = 8    // messages; fewer cost the same one by one
)

// storeAll stores n messages in their order.
func (c *natsConn) storeAll(ctx context.Context, n int, message func(int) (outgoing, error)) (stored int, err error) {
	part := make([]outgoing, 0, min(n, storesInFlight))
	for stored < n {
		var bad error // of the first one that is no message
		for part = part[:0]; len(part) < min(n-stored, storesInFlight) && bad == nil; {
			var m outgoing
			if m, bad = message(stored + len(part)); bad == nil {
				part = append(part, m)
			}
		}
		for len(part) > 0 {
			done, err := c.storePart(ctx, part)
			stored, part = stored+done, part[done:]
			if err != nil {
				return stored, err
			}
		}
		if bad != nil {
			return stored, bad
		}
	}
	return stored, nil
}

// storePart stores some of the messages, from the front: as a batch where that may be,
// else all of them, each with its own confirmation. What a batch leaves over is sent once
// more in that way, which tells what is wrong with which message; that one of them
// is stored already makes no difference, by its id or by what it says.
func (c *natsConn) storePart(ctx context.Context, part []outgoing) (stored int, err error) {
	batch := c.batches.cut(part)
	if len(batch) > 0 {
		stored, err = c.storeBatch(ctx, batch)
		if err != nil || stored == len(batch) {
			return stored, err
		}
	}
	each, err := c.storeEach(ctx, part[stored:])
	return stored + each, err
}

// storeEach sends all, then waits for all. What nobody takes is not tried again here: while
// a cluster elects, each would come when it likes, and before those that it was sent behind.
func (c *natsConn) storeEach(ctx context.Context, messages []outgoing) (stored int, err error) {
	if err := c.usable("publish"); err != nil {
		return 0, err
	}
	bounded, epoch, done := c.publishing(ctx)
	defer done()
	futures := make([]jetstream.PubAckFuture, 0, len(messages))
	var failed error // of the first one that could not be sent
	for _, m := range messages {
		future, err := c.js.PublishMsgAsync(m.Msg, jetstream.WithRetryAttempts(0))
		if err != nil {
			failed = c.publishFault(ctx, epoch, err, m.Subject)
			break
		}
		futures = append(futures, future)
	}
	for i, future := range futures {
		select {
		case <-future.Ok():
		case err := <-future.Err():
			return i, c.publishFault(ctx, epoch, err, future.Msg().Subject)
		case <-bounded.Done():
			return i, c.publishFault(ctx, epoch, bounded.Err(), future.Msg().Subject)
		}
	}
	return len(futures), failed
}

/*
batches knows which streams take a batch: many messages with one confirmation, which
NATS has since 2.14 (ADR-50, fast ingest) and a stream has to allow ([Config].Batches).
Whether it does is asked with the first message: as a batch of one, every server confirms
or refuses it. What a batch leaves unsaid, messages of their own will say.

	unknown ──(a batch of one)──▶ takes ──(refused, or no answer)──▶ takes none
	   ▲                └──────────────────────────────────────────────▲  │
	   ├── another connection                                             │
	   └──────────────────────── batchesAskedAgain ───────────────────────┘

The server knows a batch by the replies that its messages ask for; "fail" ends it at a
message that is missing or that the stream refuses:

	<inbox>.<pace>.fail.<place>.<0 the first, 1 one more, 2 the last>.$FI

	1 2 3 … n  ──▶  {"batch": …, "count": n}         all are stored
	1 2 – 4    ──▶  {"batch": …, "count": 2}         so many are, from the front
	           ──▶  {"type": "ack" | "gap" | "err"}  on the way: how far it is, what was wrong
	           ──▶  {"stream": …} or {"error": …}    of each message: no batch, for this server or stream
*/
type batches struct {
	mu   sync.Mutex
	said map[string]batchWord // by stream
}

// batchWord is whether a stream takes batches, and when that was heard.
type batchWord struct {
	takes bool
	at    time.Time
}

// batchesAskedAgain is how long a no holds: an operator may have changed the stream.
const batchesAskedAgain = time.Minute

// forget begins anew: another server may answer otherwise.
func (b *batches) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.said = nil
}

func (b *batches) learn(stream string, takes bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.said == nil {
		b.said = map[string]batchWord{}
	}
	b.said[stream] = batchWord{takes, time.Now()}
}

// cut gives the messages at the front that make a batch: those of one stream, or the first
// alone to ask with; none when they are better sent one by one.
func (b *batches) cut(part []outgoing) []outgoing {
	n := 1
	for n < len(part) && part[n].stream == part[0].stream {
		n++
	}
	if n < batchFrom {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch word := b.said[part[0].stream]; {
	case word.takes:
		return part[:n]
	case time.Since(word.at) > batchesAskedAgain: // or never
		return part[:1]
	}
	return nil
}

// batchPace is the number of messages after which the server may tell how far it is.
const batchPace = 500

// The place of a message in its batch.
const (
	batchBegins = ".0.$FI"
	batchGoesOn = ".1.$FI"
	batchEnds   = ".2.$FI" // and is to be confirmed
)

// batchAnswer is what a server answers to a message of a batch.
type batchAnswer struct {
	Type  string              `json:"type"`
	Batch string              `json:"batch"`
	Count int                 `json:"count"`
	Error *jetstream.APIError `json:"error"`
}

// storeBatch stores messages of one stream with one confirmation. No error: so many are
// stored, and the others may be.
func (c *natsConn) storeBatch(ctx context.Context, batch []outgoing) (stored int, err error) {
	if err := c.usable("publish"); err != nil {
		return 0, err
	}
	bounded, epoch, done := c.publishing(ctx)
	defer done()
	inbox := c.nc.NewInbox()
	answers := make(chan *nats.Msg, 2*len(batch)+1) // a pace and an answer of each
	sub, err := c.nc.ChanSubscribe(inbox+".>", answers)
	if err != nil {
		return 0, c.publishFault(ctx, epoch, err, batch[0].Subject)
	}
	defer sub.Unsubscribe() //nolint:errcheck // a connection that is gone has no subscription
	if err := c.sendBatch(inbox, batch); err != nil {
		return 0, nil // whose fault that is, shows when each is sent alone
	}
	for {
		select {
		case m := <-answers:
			if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
				return 0, c.publishFault(ctx, epoch, jetstream.ErrNoStreamResponse, batch[0].Subject)
			}
			if stored, done := c.batchEnd(m, batch); done {
				return stored, nil
			}
		case <-bounded.Done():
			if epoch.Err() == nil { // else another connection is asked anew
				c.batches.learn(batch[0].stream, false)
			}
			return 0, c.publishFault(ctx, epoch, bounded.Err(), batch[0].Subject)
		}
	}
}

func (c *natsConn) sendBatch(inbox string, batch []outgoing) error {
	prefix := inbox + "." + strconv.Itoa(batchPace) + ".fail."
	for i, m := range batch {
		step := batchGoesOn
		switch {
		case i == len(batch)-1:
			step = batchEnds
		case i == 0:
			step = batchBegins
		}
		m.Reply = prefix + strconv.Itoa(i+1) + step
		err := c.nc.PublishMsg(m.Msg)
		m.Reply = "" // should it be sent alone
		if err != nil {
			return err
		}
	}
	return nil
}

// batchEnd reads an answer; done is false for one on the way.
func (c *natsConn) batchEnd(m *nats.Msg, batch []outgoing) (stored int, done bool) {
	var a batchAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return 0, true
	}
	stream := batch[0].stream
	switch {
	case a.Type != "":
		return 0, false
	case a.Batch != "":
		c.batches.learn(stream, true)
		return min(a.Count, len(batch)), true
	case a.Error != nil:
		if a.Error.ErrorCode == batchesDisabled {
			c.batches.learn(stream, false)
		}
		return 0, true
	}
	c.batches.learn(stream, false) // the confirmation of one message
	if len(batch) == 1 {
		return 1, true
	}
	return 0, true
}

// batchesDisabled is the server's code for a stream that takes no batch.
const batchesDisabled = 10205
