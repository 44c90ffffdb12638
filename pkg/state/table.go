package state

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"strconv"

	"go.etcd.io/bbolt"

	"github.com/compute-agent/compute-agent/internal/jsonkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Tx is a transaction; it is valid inside the function it was given to.
type Tx struct {
	bolt *bbolt.Tx
	memo map[any]any
	ends []func() error // called when all updates of the transaction have run
	page []byte         // the rest of the memory for what is written
	size int            // of the last page
	name string         // of the bucket that was used last
	last *bbolt.Bucket
}

// bucket gives the bucket of a table, nil without one. bbolt looks for it each time that it
// is asked; a loop over keys asks for the same.
func (tx *Tx) bucket(name string) *bbolt.Bucket {
	if tx.last == nil || tx.name != name {
		tx.name, tx.last = name, tx.bolt.Bucket([]byte(name))
	}
	return tx.last
}

const (
	firstRoom = 1 << 10 // a few records
	lastRoom  = 1 << 16
	usualRoom = 768 // as long as most records are
)

// room gives memory to append a record to. bbolt keeps what it is given until the commit,
// and a busy agent writes thousands of records in a transaction.
func (tx *Tx) room() []byte {
	if cap(tx.page) < usualRoom {
		tx.size = min(max(2*tx.size, firstRoom), lastRoom)
		tx.page = make([]byte, 0, tx.size)
	}
	return tx.page
}

// use takes what was appended out of the room. What did not fit has memory of its own.
func (tx *Tx) use(raw []byte) []byte {
	if n := len(raw); &raw[0] == &tx.page[:1][0] {
		tx.page = tx.page[n:n]
	}
	return slices.Clip(raw)
}

// grow gives the bucket of a table, and makes it the first time.
func (tx *Tx) grow(name string) (*bbolt.Bucket, error) {
	if b := tx.bucket(name); b != nil {
		return b, nil
	}
	b, err := tx.bolt.CreateBucket([]byte(name))
	if err != nil {
		return nil, fault.WrapAs(fault.Internal, err, "journal", name)
	}
	return b, nil
}

// atEnd has fn run before the commit, after all updates that share the transaction.
func (tx *Tx) atEnd(fn func() error) { tx.ends = append(tx.ends, fn) }

// Memo keeps a value as long as the transaction that is being written, and all
// updates that are written with it: fresh makes it the first time. A transaction
// that is undone loses it. It lets one update see what another has put without
// reading it from the journal.
func (tx *Tx) Memo(key any, fresh func() any) any {
	if v, ok := tx.memo[key]; ok {
		return v
	}
	v := fresh()
	if tx.memo == nil {
		tx.memo = map[any]any{}
	}
	tx.memo[key] = v
	return v
}

// OnCommit has fn called by the writer once the transaction is on disk, before
// Update answers; the transactions' functions run in the order of the commits. fn
// must be quick and must not use the store. Of a transaction that is undone it is
// not called.
func (tx *Tx) OnCommit(fn func()) { tx.bolt.OnCommit(fn) }

// Table is one kind of record, kept under string keys in key order. A Table is a
// description and holds nothing itself.
type Table[T any] struct {
	Name    string
	Version int // written with each record; a record of another version is refused
}

// envelope wraps each record with the version of its form.
type envelope struct {
	V int             `json:"v"`
	D json.RawMessage `json:"d"`
}

// Put writes a record.
func (t Table[T]) Put(tx *Tx, key string, v T) error {
	raw, err := t.encode(tx.room(), v)
	if err != nil {
		return err
	}
	b, err := tx.grow(t.Name)
	if err != nil {
		return err
	}
	if err := b.Put([]byte(key), tx.use(raw)); err != nil {
		return fault.WrapAs(fault.Internal, err, "journal", t.Name+"/"+key)
	}
	return nil
}

// encode writes the envelope around the record by hand: it costs a second pass
// over each record otherwise.
func (t Table[T]) encode(b []byte, v T) ([]byte, error) {
	raw, err := jsonkit.Append(append(b, t.head()...), v)
	if err != nil {
		return nil, fault.WrapAs(fault.Internal, err, "journal", t.Name)
	}
	return append(raw, '}'), nil
}

// head is how every record of this version begins.
func (t Table[T]) head() string { return `{"v":` + strconv.Itoa(t.Version) + `,"d":` }

// Get reads a record; ok is false without it.
func (t Table[T]) Get(tx *Tx, key string) (v T, ok bool, err error) {
	b := tx.bucket(t.Name)
	if b == nil {
		return v, false, nil
	}
	raw := b.Get([]byte(key))
	if raw == nil {
		return v, false, nil
	}
	v, err = t.decode(key, raw)
	return v, err == nil, err
}

func (t Table[T]) decode(key string, raw []byte) (v T, err error) {
	if d, ours := bytes.CutPrefix(raw, []byte(t.head())); ours && bytes.HasSuffix(d, []byte{'}'}) {
		if json.Unmarshal(d[:len(d)-1], &v) == nil {
			return v, nil
		}
		var zero T
		v = zero // what is wrong is found out below
	}
	var e envelope
	if err := json.Unmarshal(raw, &e); err != nil {
		return v, fault.New(fault.Internal, "journal", t.Name+"/"+key, "the record is damaged").Because(err)
	}
	if e.V > t.Version {
		return v, t.newerFault(key, e.V)
	}
	if e.V != t.Version {
		return v, fault.Newf(fault.Internal, "journal", t.Name+"/"+key, "the record has version %d, this agent reads version %d", e.V, t.Version).
			WithHint("run the version of the agent that wrote it, or move the journal aside")
	}
	if err := json.Unmarshal(e.D, &v); err != nil {
		return v, fault.New(fault.Internal, "journal", t.Name+"/"+key, "the record is damaged").Because(err)
	}
	return v, nil
}

// ErrNewer is in the error of a record that a later version of the agent wrote.
var ErrNewer = errors.New("a later version of the agent wrote it")

func (t Table[T]) newerFault(key string, v int) error {
	return fault.Newf(fault.UnsupportedVersion, "journal", t.Name+"/"+key, "the record has version %d, this agent reads version %d", v, t.Version).
		WithHint("run the version of the agent that wrote it, or move the journal aside").Because(ErrNewer)
}

// Versioned is any table, as Newer looks at it.
type Versioned interface {
	newer(tx *Tx) error
}

// Newer gives an error, with ErrNewer in it, when a record of the tables or of the outbox
// was written by a later version of the agent: who does not know its form must not go on
// without it. It reads no record of its own version.
func Newer(tx *Tx, tables ...Versioned) error {
	for _, t := range append(slices.Clone(tables), outbox, outboxTold) {
		if err := t.newer(tx); err != nil {
			return err
		}
	}
	return nil
}

func (t Table[T]) newer(tx *Tx) error {
	b := tx.bucket(t.Name)
	if b == nil {
		return nil
	}
	head := []byte(t.head())
	return b.ForEach(func(key, raw []byte) error {
		if bytes.HasPrefix(raw, head) {
			return nil
		}
		var e envelope
		if err := json.Unmarshal(raw, &e); err != nil || e.V <= t.Version { // damaged, or old: whoever reads it is told
			return nil //nolint:nilerr // see above
		}
		return t.newerFault(string(key), e.V)
	})
}

// Has tells whether there is a record, readable or not.
func (t Table[T]) Has(tx *Tx, key string) bool {
	b := tx.bucket(t.Name)
	return b != nil && b.Get([]byte(key)) != nil
}

// Delete removes a record; absent is fine.
func (t Table[T]) Delete(tx *Tx, key string) error {
	b := tx.bucket(t.Name)
	if b == nil {
		return nil
	}
	if err := b.Delete([]byte(key)); err != nil {
		return fault.WrapAs(fault.Internal, err, "journal", t.Name+"/"+key)
	}
	return nil
}

// All iterates over all records in key order; err of the last pair is set when a
// record can't be read, and iteration goes on.
func (t Table[T]) All(tx *Tx) iter.Seq2[string, Record[T]] {
	return func(yield func(string, Record[T]) bool) {
		b := tx.bucket(t.Name)
		if b == nil {
			return
		}
		c := b.Cursor()
		for k, raw := c.First(); k != nil; k, raw = c.Next() {
			v, err := t.decode(string(k), raw)
			if !yield(string(k), Record[T]{Value: v, Err: err}) {
				return
			}
		}
	}
}

// Record is a value of a table, or why it can't be read.
type Record[T any] struct {
	Value T
	Err   error
}

// Values collects all readable records, and the errors of the others.
func (t Table[T]) Values(tx *Tx) (values []T, bad []error) {
	for _, r := range t.All(tx) {
		if r.Err != nil {
			bad = append(bad, r.Err)
			continue
		}
		values = append(values, r.Value)
	}
	return values, bad
}

// Len counts the records.
func (t Table[T]) Len(tx *Tx) int {
	b := tx.bucket(t.Name)
	if b == nil {
		return 0
	}
	return b.Stats().KeyN
}

// NextSequence gives the next number of the table: 1, 2, 3 … never twice.
func (t Table[T]) NextSequence(tx *Tx) (uint64, error) {
	b, err := tx.grow(t.Name)
	if err != nil {
		return 0, err
	}
	n, err := b.NextSequence()
	if err != nil {
		return 0, fault.WrapAs(fault.Internal, err, "journal", t.Name)
	}
	return n, nil
}

// Sequence is the last number that NextSequence gave; 0 before the first.
func (t Table[T]) Sequence(tx *Tx) uint64 {
	if b := tx.bucket(t.Name); b != nil {
		return b.Sequence()
	}
	return 0
}

// SequenceKey writes a number as a key that sorts by value.
func SequenceKey(n uint64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	return string(b[:])
}
