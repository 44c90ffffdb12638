// Package state is the agent's memory across restarts: one bbolt file with
// versioned records. What [Store.Update] returned nil for is on disk.
//
// One writer goroutine owns all writing. It takes the updates that wait, up to
// MaxBatch (256), and commits them in one transaction, at once and without a delay: a
// lone write costs one fsync, and so do 256 concurrent ones.
//
//	UpdateFirst ──▶ urgent ─┐ first
//	                        ├─▶ writer: begin, run them, commit (fsync) ─▶ answers
//	Update ───────▶ queue ──┘           └─ one fails: it alone is left out, the rest run again
//
// Readers ([Store.View]) never wait for the writer.
package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
)

// FileName is the journal's name inside the state directory.
const FileName = "journal.db"

// ErrClosed is in the error of an update that came after Close: it was not taken.
var ErrClosed = errors.New("the journal is closed")

// ErrCommit is in the error of an update that could not be brought to disk: it was
// undone, and may work when it is tried again.
var ErrCommit = errors.New("the journal can't be written")

// Options tune a Store. The zero value is right for production.
type Options struct {
	// LockTimeout bounds the wait for another process that has the file open. Default 1 s.
	LockTimeout time.Duration
	// CompactAbove is how long, in bytes, a file must be to be made shorter by Open, when
	// more than half of it is free. Default 64 MiB; negative: never.
	CompactAbove int64
	// CompactTimeout bounds that; a file that takes longer stays as it is until the next
	// Open. Default 30 s.
	CompactTimeout time.Duration
	// MaxBatch is the largest number of updates in one transaction. Default 256: enough
	// for the fsync to be a small part, few enough for an urgent update not to wait long.
	MaxBatch int
	// NoSync leaves out the fsync. For simulations only: a power loss may lose everything.
	NoSync bool
	// Trouble, for simulations, is asked before each commit; its error counts as the disk's.
	Trouble func() error
	// Written, for simulations of a crash, is asked by the writer when a transaction is on
	// disk and before anybody learns of it. Its error is what the updates are answered
	// with: what was written stays, as in a process that died at that moment. It must not
	// use the store.
	Written func() error
	// Compacting, for simulations of a crash, is asked between the steps of a compaction:
	// copied, synced, renamed. Its error is Open's, and the files are left as they are, as by a
	// process that died at that moment.
	Compacting func(step string) error
}

// WithDefaults fills what was left open.
func (o Options) WithDefaults() Options {
	if o.LockTimeout <= 0 {
		o.LockTimeout = time.Second
	}
	if o.CompactAbove == 0 {
		o.CompactAbove = 64 << 20
	}
	if o.CompactTimeout <= 0 {
		o.CompactTimeout = 30 * time.Second
	}
	if o.MaxBatch <= 0 {
		o.MaxBatch = 256
	}
	return o
}

// Store is an open journal. Its methods may be called from any goroutine.
type Store struct {
	path   string
	aside  string // where Open put a damaged file
	db     *bbolt.DB
	queue  chan *update
	urgent chan *update // goes before what is in queue
	stop   chan struct{}
	writer *green.Thread[struct{}]
	batch  int

	trouble func() error
	written func() error
}

// update is one waiting call of Update; done is answered once.
type update struct {
	fn   func(*Tx) error
	done chan error
}

// Close waits for the updates that were taken, then closes the file. Updates that
// come later are refused.
func (s *Store) Close() error {
	select {
	case <-s.stop:
		return nil
	default:
		close(s.stop)
	}
	<-s.writer.Done()
	return s.db.Close()
}

// Update runs fn in a read-write transaction and returns when it is on disk. fn's
// error undoes fn and is returned. fn may be run more than once and must do
// nothing but read and write through its Tx. ctx bounds the wait for the answer;
// when it ends first, whether fn was committed is not known.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	return s.update(ctx, s.queue, fn)
}

// UpdateFirst is Update ahead of all updates that wait. What is written so must not
// depend on one that is not yet answered.
func (s *Store) UpdateFirst(ctx context.Context, fn func(*Tx) error) error {
	return s.update(ctx, s.urgent, fn)
}

func (s *Store) update(ctx context.Context, queue chan<- *update, fn func(*Tx) error) error {
	select {
	case <-s.stop: // once one update was refused, no later one is taken
		return closedFault()
	default:
	}
	u := &update{fn: fn, done: make(chan error, 1)}
	select {
	case queue <- u:
	case <-s.stop:
		return closedFault()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-u.done:
		return err
	case <-s.writer.Done():
		select { // the writer answers what it took before it ends
		case err := <-u.done:
			return err
		default:
			return closedFault()
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func closedFault() error {
	return fault.New(fault.Unavailable, "journal", "", "the agent is stopping").Because(ErrClosed)
}

// View runs fn in a read-only transaction on what is committed.
func (s *Store) View(fn func(*Tx) error) error {
	return s.db.View(func(b *bbolt.Tx) error { return fn(&Tx{bolt: b}) })
}

// write is the writer's loop.
func (s *Store) write(context.Context) (struct{}, error) {
	for {
		batch := s.waiting()
		if len(batch) == 0 {
			batch = s.await()
		}
		if len(batch) == 0 {
			return struct{}{}, nil
		}
		s.commit(batch)
	}
}

// await blocks for an update, and takes what came with it. None: the store is closed
// and nothing waits.
func (s *Store) await() []*update {
	var first *update
	select {
	case first = <-s.urgent:
	case first = <-s.queue:
	case <-s.stop: // what was taken is still carried out
		return s.waiting()
	}
	return append([]*update{first}, s.waiting()...)
}

// waiting takes what waits, the urgent first, without waiting.
func (s *Store) waiting() (batch []*update) {
	for len(batch) < s.batch {
		select {
		case u := <-s.urgent:
			batch = append(batch, u)
			continue
		default:
		}
		select {
		case u := <-s.queue:
			batch = append(batch, u)
		default:
			return batch
		}
	}
	return batch
}

// commit runs a batch in one transaction. When one update fails, it is answered
// and left out, and the others run again.
func (s *Store) commit(batch []*update) {
	for len(batch) > 0 {
		failed := -1
		var died error
		err := s.db.Update(func(b *bbolt.Tx) error {
			tx := &Tx{bolt: b}
			if s.trouble != nil {
				if err := s.trouble(); err != nil {
					return err
				}
			}
			if s.written != nil {
				b.OnCommit(func() { died = s.written() }) // the first of the transaction's
			}
			for i, u := range batch {
				if err := guarded(u.fn, tx); err != nil {
					failed = i
					return err
				}
			}
			return tx.end()
		})
		if failed < 0 {
			err = commitFault(err)
			if err == nil && died != nil {
				err = closedFault()
			}
			for _, u := range batch {
				u.done <- err
			}
			return
		}
		batch[failed].done <- err
		batch = append(batch[:failed:failed], batch[failed+1:]...)
	}
}

// end runs what was left for the end of the transaction.
func (tx *Tx) end() error {
	for _, fn := range tx.ends {
		if err := fn(); err != nil {
			return err
		}
	}
	return nil
}

// guarded turns a panic of fn into an error: one bad record must not end the writer.
func guarded(fn func(*Tx) error, tx *Tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.Newf(fault.Internal, "journal", "", "an update panicked: %v", p)
		}
	}()
	return fn(tx)
}

func commitFault(err error) error {
	if err == nil {
		return nil
	}
	f := fault.New(fault.Unavailable, "journal", "", "").Because(fmt.Errorf("%w: %w", ErrCommit, err))
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return f.WithHint("the disk of the state directory is full; nothing was lost, work goes on when there is room")
	}
	return f
}

// Waiting tells how many updates wait for the writer.
func (s *Store) Waiting() int { return len(s.queue) + len(s.urgent) }

// Size is the journal's length in bytes.
func (s *Store) Size() int64 {
	info, err := os.Stat(s.path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// Path is the journal's file.
func (s *Store) Path() string { return s.path }

// SetAside is where Open put a damaged journal, to begin with an empty one; empty
// when there was none.
func (s *Store) SetAside() string { return s.aside }

// String names the store in logs.
func (s *Store) String() string { return "journal " + s.path }
