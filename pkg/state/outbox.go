package state

import (
	"bytes"
	"encoding/json"
	"slices"

	"github.com/compute-agent/compute-agent/internal/jsonkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
)

// OutEvent is an event that waits in the journal until the bus has stored it. It
// is written in the transaction that makes it true, so nothing that happened goes
// untold and nothing is told that did not happen.
type OutEvent struct {
	Sequence uint64          `json:"sequence"`           // set by AppendEvent
	Kind     string          `json:"kind"`               // last but one token of the subject
	ID       string          `json:"id"`                 // last token
	MsgID    string          `json:"msg_id"`             // makes a second publication harmless
	Instance string          `json:"instance,omitempty"` // what it is about: its view is written before the event is told
	Body     json.RawMessage `json:"body,omitempty"`     // one JSON object
}

// outEvents are events that were appended one after the other.
type outEvents []OutEvent

/*
The outbox keeps the events of one transaction together, up to outboxChunk of them
in a record, under the number of its last one: a busy agent makes thousands a second,
and a record for each would be most of its writing. A record goes when its last event
is told; up to where a record is told that stays is one number.

	outbox       12: [10 11 12]   15: [13 14 15]   16: [16]
	outbox_told  13                                             events 14 to 16 wait
*/
var (
	outbox     = Table[outEvents]{Name: "outbox", Version: 2}
	outboxTold = Table[uint64]{Name: "outbox_told", Version: 1}
)

const (
	outboxChunk = 256
	usualBody   = 320 // as long as most bodies are
	toldKey     = "last"
)

// newEvents is the memo's key of the events that the transaction has made so far.
type newEvents struct{}

// AppendEvent adds an event at the end of the outbox and gives it with its place there
// and with its body, which it encodes; nil: it has none. It can be read once the
// transaction is on disk. A body that can't be encoded is refused.
func AppendEvent(tx *Tx, e OutEvent, body any) (OutEvent, error) {
	if body != nil {
		raw, err := jsonkit.Append(make([]byte, 0, usualBody), body)
		if err != nil {
			return e, fault.WrapAs(fault.Internal, err, "journal", outbox.Name+"/"+e.MsgID)
		}
		e.Body = raw
	}
	var err error
	if e.Sequence, err = outbox.NextSequence(tx); err != nil {
		return e, err
	}
	waiting, _ := tx.Memo(newEvents{}, func() any {
		events := new(outEvents)
		tx.atEnd(func() error { return putEvents(tx, *events) })
		return events
	}).(*outEvents)
	*waiting = append(*waiting, e)
	return e, nil
}

func putEvents(tx *Tx, events outEvents) error {
	for chunk := range slices.Chunk(events, outboxChunk) {
		if err := outbox.Put(tx, SequenceKey(chunk[len(chunk)-1].Sequence), chunk); err != nil {
			return err
		}
	}
	return nil
}

// LastEvent is the place of the newest event that was ever appended; 0: none.
func LastEvent(tx *Tx) uint64 { return outbox.Sequence(tx) }

// told is the place of the newest event that the bus has.
func told(tx *Tx) uint64 {
	n, _, err := outboxTold.Get(tx, toldKey)
	if err != nil {
		return 0 // telling again is harmless
	}
	return n
}

// PendingEvents gives up to limit of the oldest events behind the place after. A record
// that can't be read is skipped and reported in bad.
func PendingEvents(tx *Tx, after uint64, limit int) (events []OutEvent, bad []error) {
	last := max(told(tx), after)
	for _, r := range outbox.All(tx) {
		if r.Err != nil {
			bad = append(bad, r.Err)
			continue
		}
		for _, e := range r.Value {
			if len(events) >= limit {
				return events, bad
			}
			if e.Sequence > last {
				events = append(events, e)
			}
		}
	}
	return events, bad
}

// DropEvents removes the events up to last: the bus has them. A record that can't be
// read stays.
func DropEvents(tx *Tx, last uint64) error {
	b := tx.bucket(outbox.Name)
	if b == nil {
		return nil
	}
	end, head := []byte(SequenceKey(last)), []byte(outbox.head())
	var gone []string
	c := b.Cursor()
	for k, v := c.First(); k != nil && bytes.Compare(k, end) <= 0; k, v = c.Next() {
		if bytes.HasPrefix(v, head) {
			gone = append(gone, string(k))
		}
	}
	for _, k := range gone {
		if err := outbox.Delete(tx, k); err != nil {
			return err
		}
	}
	return outboxTold.Put(tx, toldKey, last)
}

// CountEvents tells how many events wait.
func CountEvents(tx *Tx) int { return int(LastEvent(tx) - min(told(tx), LastEvent(tx))) } //nolint:gosec // what fits into memory

// AppendJSON writes the events; each body is JSON already and is not looked at again.
func (events outEvents) AppendJSON(b []byte) (_ []byte, err error) {
	size := 2
	for _, e := range events {
		size += len(e.Body) + len(e.ID) + len(e.MsgID) + len(e.Instance) + 128
	}
	b = append(slices.Grow(b, size), '[')
	for i, e := range events {
		if i > 0 {
			b = append(b, ',')
		}
		o := jsonkit.Object{Buf: b}
		o.Uint("sequence", e.Sequence)
		o.String("kind", e.Kind)
		o.String("id", e.ID)
		o.String("msg_id", e.MsgID)
		o.Some("instance", e.Instance)
		if len(e.Body) > 0 {
			o.Raw("body", e.Body)
		}
		if b, err = o.Close(); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}
