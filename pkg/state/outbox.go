package state

import "encoding/json"

// OutEvent is an event that waits in the journal until the bus has stored it. It
// is written in the transaction that makes it true, so nothing that happened goes
// untold and nothing is told that did not happen.
type OutEvent struct {
	Sequence uint64          `json:"sequence"`           // set by Append
	Kind     string          `json:"kind"`               // last but one token of the subject
	ID       string          `json:"id"`                 // last token
	MsgID    string          `json:"msg_id"`             // makes a second publication harmless
	Instance string          `json:"instance,omitempty"` // what it is about: its view is written before the event is told
	Body     json.RawMessage `json:"body"`               // one JSON object
}

// outbox keeps events by sequence, oldest first.
var outbox = Table[OutEvent]{Name: "outbox", Version: 1}

// AppendEvent adds an event at the end of the outbox and gives its place there.
func AppendEvent(tx *Tx, e OutEvent) (uint64, error) {
	n, err := outbox.NextSequence(tx)
	if err != nil {
		return 0, err
	}
	e.Sequence = n
	return n, outbox.Put(tx, SequenceKey(n), e)
}

// LastEvent is the place of the newest event that was ever appended; 0: none.
func LastEvent(tx *Tx) uint64 { return outbox.Sequence(tx) }

// PendingEvents gives up to max of the oldest events. A record that can't be read
// is skipped and reported in bad.
func PendingEvents(tx *Tx, max int) (events []OutEvent, bad []error) {
	for _, r := range outbox.All(tx) {
		if len(events) >= max {
			break
		}
		if r.Err != nil {
			bad = append(bad, r.Err)
			continue
		}
		events = append(events, r.Value)
	}
	return events, bad
}

// DropEvents removes events that the bus has.
func DropEvents(tx *Tx, sequences []uint64) error {
	for _, n := range sequences {
		if err := outbox.Delete(tx, SequenceKey(n)); err != nil {
			return err
		}
	}
	return nil
}

// CountEvents tells how many events wait.
func CountEvents(tx *Tx) int { return outbox.Len(tx) }
