package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
)

// openTries is how often Open begins again when another process has put a shorter
// file in the place of the one that it waited for.
const openTries = 3

/*
Open opens or makes the journal in dir.

	journal.db ──lock──▶ inspect ──whole──▶ compact, when it is long and half empty ──▶ Store
	                        └─damaged──▶ renamed to journal.db.damaged-<time>, and an empty one

A file that another process holds is a conflict. A damaged one is never changed and
never thrown away: it is renamed, said as an error in the log and by [Store.SetAside].
*/
func Open(ctx context.Context, dir string, o Options) (*Store, error) {
	o = o.WithDefaults()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fault.WrapAs(fault.Internal, err, "open journal", dir)
	}
	path := filepath.Join(dir, FileName)
	s := &Store{path: path, queue: make(chan *update, o.MaxBatch), urgent: make(chan *update, 1), stop: make(chan struct{}), batch: o.MaxBatch, trouble: o.Trouble, written: o.Written}
	err := inspect(path, o.LockTimeout)
	if errors.Is(err, errDamaged) {
		if s.aside, err = setAside(path, err); err == nil {
			logkit.From(ctx).Error("the journal was damaged: it was set aside, and an empty one is used", logkit.Key("path").Of(s.aside),
				logkit.Key("hint").Of("what was accepted and not done is not known any more; guests run on, and host show tells which have no record"))
		}
	}
	if err == nil {
		s.db, err = openFile(path, o)
	}
	if err == nil {
		s.db, err = compact(ctx, s.db, path, o)
	}
	if err != nil {
		return nil, err
	}
	s.writer = green.Spawn(context.WithoutCancel(ctx), s.write)
	return s, nil
}

// openFile opens the file that has the name once it is locked: while it waited, a
// compaction may have put another one there.
func openFile(path string, o Options) (*bbolt.DB, error) {
	for range openTries {
		var file *os.File
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{
			Timeout: o.LockTimeout, NoSync: o.NoSync, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
			OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
				file, err = os.OpenFile(name, flag, mode) //nolint:gosec // the operator names the folder
				return file, err
			},
		})
		if err != nil {
			return nil, openFault(path, err)
		}
		mine, err := file.Stat()
		if err == nil {
			var there os.FileInfo
			if there, err = os.Stat(path); err == nil && os.SameFile(mine, there) {
				return db, nil
			}
		}
		if cerr := db.Close(); cerr != nil || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, openFault(path, errors.Join(err, cerr))
		}
	}
	return nil, openFault(path, bolterrors.ErrTimeout)
}

// errDamaged is in the error of a file that can't be a journal any more.
var errDamaged = errors.New("the file is damaged")

// inspect reads the whole structure of the file before anybody relies on it: bbolt
// itself ends the process when a page is not what it should be, or not there, or is
// referenced twice, or has its keys in disorder.
func inspect(path string, lock time.Duration) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil // a new one
	}
	if err != nil {
		return openFault(path, err)
	}
	if !info.Mode().IsRegular() {
		return fault.New(fault.Internal, "open journal", path, "it is not a regular file")
	}
	var file *os.File
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lock, ReadOnly: true,
		OpenFile: func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
			file, err = os.OpenFile(name, flag, mode) //nolint:gosec // the operator names the folder
			return file, err
		},
	})
	if err != nil {
		return openFault(path, err)
	}
	err = walk(db, file, info.Size())
	if err = errors.Join(err, db.Close()); err != nil {
		return openFault(path, err)
	}
	return nil
}

// walk reads every page that is in use. One that the disk can't read is damaged too.
func walk(db *bbolt.DB, file io.ReaderAt, size int64) error {
	return db.View(func(tx *bbolt.Tx) error {
		if tx.Size() > size {
			return damaged("it has %d bytes of %d", size, tx.Size())
		}
		page := db.Info().PageSize
		p := newPages(file, page, uint64(tx.Size())/uint64(page)) //nolint:gosec // no length is negative
		return p.tree(uint64(tx.Cursor().Bucket().Root()), nil, nil, true)
	})
}

// setAside renames a damaged file, and gives its new name.
func setAside(path string, why error) (string, error) {
	aside := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000Z")
	if err := os.Rename(path, aside); err != nil {
		return "", errors.Join(why, fault.WrapAs(fault.Internal, err, "set the journal aside", path))
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return "", errors.Join(why, fault.WrapAs(fault.Internal, err, "set the journal aside", path))
	}
	return aside, nil
}

// syncFolder brings a rename to disk.
func syncFolder(dir string) error {
	f, err := os.Open(dir) //nolint:gosec // the operator names the folder
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func openFault(path string, err error) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fault.New(fault.Conflict, "open journal", path, "another process has it open").
			WithHint("is an agent with the same state directory running? stop it, or set another --state-dir")
	case errors.Is(err, errDamaged):
		return fault.New(fault.Internal, "open journal", path, "").Because(err)
	case errors.As(err, &errno): // the disk or a permission, not the file
		f := fault.WrapAs(fault.Internal, err, "open journal", path)
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return fault.New(fault.Internal, "open journal", path, "").Because(err).
				WithHint("the disk of the state directory is full; make room and start the agent again: nothing is lost")
		}
		return f
	default: // bbolt can't make sense of it
		return fault.New(fault.Internal, "open journal", path, "").Because(fmt.Errorf("%w: %w", errDamaged, err))
	}
}
