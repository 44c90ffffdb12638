// Package logtest has loggers for tests: one that writes to the test's own log, one that remembers what was said.
package logtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/compute-agent/compute-agent/internal/logkit"
)

// TB is the part of testing.TB that this package needs.
type TB interface {
	Helper()
	Fatal(args ...any)
	Log(args ...any)
}

// New returns a Logger that writes every level to t's log. Whatever uses it must have ended when the test ends: a later
// line panics, which is how a goroutine that outlives its test is found.
func New(t TB) *logkit.Logger {
	t.Helper()
	return newLogger(t, logkit.Options{Out: writer{t: t}, Format: logkit.FormatText})
}

// Record returns a Logger that writes every level to the Recorder beside it.
func Record(t TB) (*logkit.Logger, *Recorder) {
	t.Helper()
	r := &Recorder{}
	return newLogger(t, logkit.Options{Out: r, Format: logkit.FormatJSON}), r
}

func newLogger(t TB, o logkit.Options) *logkit.Logger {
	t.Helper()
	o.Level = "debug"
	l, err := logkit.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// writer hands lines to the test's log.
type writer struct{ t TB }

// Write implements io.Writer.
func (w writer) Write(line []byte) (int, error) {
	w.t.Helper()
	w.t.Log(string(bytes.TrimRight(line, "\n")))
	return len(line), nil
}

// Entry is one line as it was said.
type Entry struct {
	Level   string // debug, info, warning or error
	Message string
	Fields  map[logkit.Key]any // values as JSON has them: numbers are float64, a duration is in seconds
}

// Recorder remembers lines in order. It is safe for use by many goroutines.
type Recorder struct {
	mu      sync.Mutex
	entries []Entry
}

// Write implements io.Writer for the Logger; nobody else calls it.
func (r *Recorder) Write(line []byte) (int, error) {
	fields := make(map[logkit.Key]any)
	if err := json.Unmarshal(line, &fields); err != nil {
		return 0, fmt.Errorf("cannot record the line %q: %w", line, err)
	}
	e := Entry{Level: fmt.Sprint(fields["level"]), Message: fmt.Sprint(fields["msg"]), Fields: fields}
	for _, own := range []logkit.Key{"level", "msg", "time"} {
		delete(fields, own)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries = append(r.entries, e)
	return len(line), nil
}

// Entries returns what was said so far.
func (r *Recorder) Entries() []Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.entries)
}

// Find returns the first line whose message holds part.
func (r *Recorder) Find(part string) (Entry, bool) {
	for _, e := range r.Entries() {
		if strings.Contains(e.Message, part) {
			return e, true
		}
	}
	return Entry{}, false
}
