package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
)

// compactName is the copy's name while it is being made.
const compactName = FileName + ".compact"

// copyBatch is how many bytes of records one transaction of the copy holds.
const copyBatch = 1 << 20

// errStep is in the error of a step at which a simulated process died.
var errStep = errors.New("the process died while compacting")

/*
compact makes a long file that is more than half empty shorter, for bbolt gives
nothing back:

	copy to journal.db.compact ─▶ fsync ─▶ rename over journal.db ─▶ fsync the folder
	                                       │ before: the old file is the journal
	                                       └ after: the new one is

Nothing is written to the new file before the folder is on disk, so a crash at any
point leaves one whole journal under the name; what is left of a copy is removed by
the next Open. What goes wrong on the way leaves the old file in use, and is said.
It gives the database to go on with, and an error only when there is none.
*/
func compact(ctx context.Context, db *bbolt.DB, path string, o Options) (*bbolt.DB, error) {
	temp := filepath.Join(filepath.Dir(path), compactName)
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return db, closing(db, fault.WrapAs(fault.Internal, err, "open journal", temp))
	}
	before, free, err := room(db)
	if err != nil {
		return nil, closing(db, openFault(path, err))
	}
	if o.CompactAbove < 0 || before < o.CompactAbove || free <= before/2 {
		return db, nil
	}
	log := logkit.From(ctx)
	began := time.Now()
	short, err := rewrite(db, temp, path, o)
	switch {
	case errors.Is(err, errStep):
		return nil, closing(db, err)
	case err != nil:
		log.Warn("the journal was not compacted and is used as it is", logkit.Err(errors.Join(err, os.Remove(temp))))
		return db, nil
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return nil, closing(db, closing(short, openFault(path, err)))
	}
	if err := db.Close(); err != nil { // the old file goes with its last user
		return nil, closing(short, openFault(path, err))
	}
	after, _, err := room(short)
	if err != nil {
		return nil, closing(short, openFault(path, err))
	}
	log.Info("the journal was compacted", logkit.Key("before").Of(before), logkit.Key("after").Of(after), logkit.Took.Of(time.Since(began)))
	return short, nil
}

func closing(db *bbolt.DB, err error) error { return errors.Join(err, db.Close()) }

// room tells how long the part of the file is that was ever used, and how much of it
// is free.
func room(db *bbolt.DB) (used, free int64, err error) {
	tx, err := db.Begin(true) // only a writer's end counts the free pages
	if err != nil {
		return 0, 0, err
	}
	used = tx.Size()
	if err := tx.Rollback(); err != nil {
		return 0, 0, err
	}
	s := db.Stats()
	return used, int64(s.FreePageN+s.PendingPageN) * int64(db.Info().PageSize), nil
}

// rewrite copies db and puts the copy in its place, open and locked.
func rewrite(db *bbolt.DB, temp, path string, o Options) (short *bbolt.DB, err error) {
	short, err = bbolt.Open(temp, 0o600, &bbolt.Options{
		Timeout: o.LockTimeout, NoSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
	})
	if err != nil {
		return nil, err
	}
	step := func(name string) error {
		if err == nil && o.Compacting != nil {
			if died := o.Compacting(name); died != nil {
				err = fmt.Errorf("%w, %s: %w", errStep, name, died)
			}
		}
		return err
	}
	err = copyAll(short, db, time.Now().Add(o.CompactTimeout))
	if step("copied") == nil && !o.NoSync {
		err = short.Sync()
	}
	if step("synced") == nil {
		err = os.Rename(temp, path)
	}
	if step("renamed") != nil {
		return nil, closing(short, err)
	}
	short.NoSync = o.NoSync
	return short, nil
}

// copyAll copies every table with its sequence. The tables hold no tables.
func copyAll(to, from *bbolt.DB, until time.Time) error {
	return from.View(func(src *bbolt.Tx) error {
		return src.ForEach(func(name []byte, b *bbolt.Bucket) error {
			c := b.Cursor()
			k, v := c.First()
			for more := true; more; {
				if time.Now().After(until) {
					return errors.New("it takes longer than CompactTimeout")
				}
				err := to.Update(func(dst *bbolt.Tx) error {
					out, err := dst.CreateBucketIfNotExists(name)
					if err != nil {
						return err
					}
					out.FillPercent = 0.9 // they come in order
					for size := 0; k != nil && size < copyBatch; k, v = c.Next() {
						if err := out.Put(k, v); err != nil {
							return err
						}
						size += len(k) + len(v)
					}
					more = k != nil
					return out.SetSequence(b.Sequence())
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
}
