package fake

import (
	"bytes"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
)

// logLength is how long a log may grow before it is folded into the snapshot; it may
// always be twice as long as that.
const logLength = 4 << 20

// store keeps a host in two files. The log has a line for each change and is only
// appended to, so a change costs the same with one guest and with ten thousand; when
// it has grown long, the snapshot is written anew, put in place by rename, and the
// log is emptied.
//
//	HOST.json  snapshot ◀──(the log is long)──┐
//	HOST.log   a line for each change ────────┘
//
// A process that dies loses nothing that was answered: the kernel has it. Between
// the rename and the emptying the log says again what the snapshot has, which
// changes nothing. A machine that dies may lose the last changes.
type store struct {
	dir, host string

	log      *os.File // opened with the first change
	length   int64    // of the log
	snapshot int64    // its length
}

func (s *store) path() string    { return filepath.Join(s.dir, url.PathEscape(s.host)+".json") }
func (s *store) logPath() string { return filepath.Join(s.dir, url.PathEscape(s.host)+".log") }

// read gives the snapshot, nil without one, and the lines of the log. A last line
// without an end is one that was being written when the process died: nobody was
// answered, and it is left out and taken away.
func (s *store) read() (snapshot []byte, lines [][]byte, err error) {
	if err := os.MkdirAll(s.dir, 0o750); err != nil {
		return nil, nil, err
	}
	snapshot, err = os.ReadFile(s.path())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	log, err := os.ReadFile(s.logPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	whole := bytes.LastIndexByte(log, '\n') + 1
	if whole < len(log) {
		if err := os.Truncate(s.logPath(), int64(whole)); err != nil {
			return nil, nil, err
		}
	}
	for line := range bytes.Lines(log[:whole]) {
		lines = append(lines, line)
	}
	s.length, s.snapshot = int64(whole), int64(len(snapshot))
	return snapshot, lines, nil
}

// append adds lines to the log, all or none.
func (s *store) append(lines []byte) error {
	if s.log == nil {
		f, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		s.log = f
	}
	n, err := s.log.Write(lines)
	if err != nil && n > 0 { // half a line must not stand before the next one
		err = errors.Join(err, s.log.Truncate(s.length))
		n = 0
	}
	s.length += int64(n)
	return err
}

// long tells whether the log is to be folded.
func (s *store) long() bool { return s.length > max(logLength, 2*s.snapshot) }

// compact puts a new snapshot in place and empties the log.
func (s *store) compact(snapshot []byte) error {
	if err := replace(s.path(), snapshot); err != nil {
		return err
	}
	s.snapshot = int64(len(snapshot))
	if err := s.log.Truncate(0); err != nil {
		return err
	}
	s.length = 0
	return nil
}

// close lets go of the log; a later change opens it again.
func (s *store) close() error {
	if s.log == nil {
		return nil
	}
	err := s.log.Close()
	s.log = nil
	return err
}

// replace writes a file whole or not at all.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".fake-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
