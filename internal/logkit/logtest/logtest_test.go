package logtest_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/logkit/logtest"
)

func TestRecord(t *testing.T) {
	log, rec := logtest.Record(t)
	log.Debug("first")
	log.With(logkit.Instance.Of("i1")).Error("second", logkit.Err(errors.New("gone")), logkit.Took.Of(1500*time.Millisecond))
	want := []logtest.Entry{
		{Level: "debug", Message: "first", Fields: map[logkit.Key]any{}},
		{Level: "error", Message: "second", Fields: map[logkit.Key]any{
			logkit.Instance: "i1", logkit.Error: "gone", logkit.Took: 1.5,
		}},
	}
	if diff := cmp.Diff(want, rec.Entries()); diff != "" {
		t.Errorf("Entries (-want +got):\n%s", diff)
	}
	if e, ok := rec.Find("sec"); !ok || e.Message != "second" {
		t.Errorf(`Find("sec") = %v, %t; want the second line`, e, ok)
	}
	if e, ok := rec.Find("third"); ok {
		t.Errorf(`Find("third") = %v, want nothing`, e)
	}
}

// page stands for a test and keeps what is logged.
type page struct{ lines []string }

func (*page) Helper()             {}
func (p *page) Log(args ...any)   { p.lines = append(p.lines, fmt.Sprint(args...)) }
func (p *page) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func TestNew(t *testing.T) {
	p := &page{}
	logtest.New(p).Debug("hello", logkit.Peer.Of("node2"))
	if len(p.lines) != 1 {
		t.Fatalf("the test's log has %d lines, want 1: %q", len(p.lines), p.lines)
	}
	const timeLen = len("15:04:05.000 ")
	if got, want := p.lines[0][timeLen:], "DEBUG hello peer=node2"; got != want {
		t.Errorf("the test's log says %q, want %q", got, want)
	}
}
