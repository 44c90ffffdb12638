package state

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"

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
	toldKey     = "last"
)

// newEvents is the memo's key of the events that the transaction has made so far.
type newEvents struct{}

// AppendEvent adds an event at the end of the outbox and gives its place there. It
// can be read once the transaction is on disk. A body that is no JSON is refused: it
// would spoil the record that it shares with others.
func AppendEvent(tx *Tx, e OutEvent) (uint64, error) {
	if len(e.Body) > 0 && !json.Valid(e.Body) {
		return 0, fault.New(fault.Internal, "journal", outbox.Name+"/"+e.MsgID, "the event's body is no JSON")
	}
	n, err := outbox.NextSequence(tx)
	if err != nil {
		return 0, err
	}
	e.Sequence = n
	waiting, _ := tx.Memo(newEvents{}, func() any {
		events := new(outEvents)
		tx.atEnd(func() error { return putEvents(tx, *events) })
		return events
	}).(*outEvents)
	*waiting = append(*waiting, e)
	return n, nil
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
	b := tx.bolt.Bucket([]byte(outbox.Name))
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
func (events outEvents) AppendJSON(b []byte) ([]byte, error) {
	size := 2
	for _, e := range events {
		size += len(e.Body) + len(e.ID) + len(e.MsgID) + len(e.Instance) + 128
	}
	b = append(slices.Grow(b, size), '[')
	for i, e := range events {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(append(b, `{"sequence":`...), e.Sequence, 10)
		for _, f := range [...]struct{ name, value string }{{"kind", e.Kind}, {"id", e.ID}, {"msg_id", e.MsgID}, {"instance", e.Instance}} {
			if f.name == "instance" && f.value == "" {
				continue
			}
			b = append(append(append(b, `,"`...), f.name...), `":`...)
			b = appendString(b, f.value)
		}
		if len(e.Body) > 0 {
			b = append(append(b, `,"body":`...), e.Body...)
		}
		b = append(b, '}')
	}
	return append(b, ']'), nil
}

// appendString writes a JSON string.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil { // a string never fails
				panic(fault.WrapAs(fault.Internal, err, "encode", s))
			}
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
