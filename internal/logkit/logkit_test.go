package logkit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/logkit/logtest"
)

func newLogger(t *testing.T, o logkit.Options) *logkit.Logger {
	t.Helper()
	l, err := logkit.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestJournaldLines(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(t, logkit.Options{Out: &out, Level: "debug", Format: logkit.FormatJournald})
	log.Debug("d")
	log.Info("i")
	log.Warn("w")
	log.Error("e")
	log.Info("all", logkit.Key("zeta").Of(1), logkit.Err(errors.New("no such domain")), logkit.Took.Of(231456*time.Microsecond),
		logkit.Instance.Of("i1"), logkit.RequestID.Of("r1"), logkit.Key("alpha").Of(""))
	log.Info("two\nlines", logkit.Peer.Of("a\nb"), logkit.Err(nil))
	want := `<7>d
<6>i
<4>w
<3>e
<6>all request_id=r1 instance=i1 took=231ms alpha="" zeta=1 error="no such domain"
<6>"two\nlines" peer="a\nb"
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestTextLine(t *testing.T) {
	var out bytes.Buffer
	newLogger(t, logkit.Options{Out: &out, Format: logkit.FormatText}).Warn("away", logkit.Took.Of(90*time.Second))
	at, rest, _ := strings.Cut(strings.TrimSuffix(out.String(), "\n"), " ")
	if _, err := time.Parse("15:04:05.000", at); err != nil {
		t.Errorf("the line begins %q, want a time of day: %v", at, err)
	}
	if want := "WARN  away took=1m30s"; rest != want {
		t.Errorf("the line goes on %q, want %q", rest, want)
	}
}

func TestJSONLine(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(t, logkit.Options{Out: &out}) // not a file: JSON
	log.Info("moved", logkit.Took.Of(231*time.Millisecond), logkit.Err(errors.New("<none>")))
	log.Info("odd", logkit.Key("ch").Of(make(chan int)))
	dec := json.NewDecoder(&out)
	var first, second map[string]any
	for _, into := range []*map[string]any{&first, &second} {
		if err := dec.Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := time.Parse(time.RFC3339Nano, first["time"].(string)); err != nil {
		t.Errorf("time: %v", err)
	}
	delete(first, "time")
	want := map[string]any{"level": "info", "msg": "moved", "took": 0.231, "error": "<none>"}
	if diff := cmp.Diff(want, first); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
	if s, _ := second["ch"].(string); !strings.HasPrefix(s, "0x") || second["msg"] != "odd" {
		t.Errorf("a value that JSON can't hold gave %v, want the line with the value as text", second)
	}
}

func TestAutoFormatIsJournaldOnItsStreamOnly(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	info, err := w.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	for _, tt := range []struct{ stream, wantStart string }{
		{fmt.Sprintf("%d:%d", stat.Dev, stat.Ino), "<6>hello"},
		{fmt.Sprintf("%d:%d", stat.Dev, stat.Ino+1), "{"},
		{"", "{"},
	} {
		t.Setenv("JOURNAL_STREAM", tt.stream)
		newLogger(t, logkit.Options{Out: w}).Info("hello")
		buf := make([]byte, 1024)
		n, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(buf[:n]); !strings.HasPrefix(got, tt.wantStart) {
			t.Errorf("JOURNAL_STREAM=%q gave %q, want it to begin %q", tt.stream, got, tt.wantStart)
		}
	}
	_, _ = r.Close(), w.Close()
}

func TestUnknownOptionsAreRefused(t *testing.T) {
	for _, o := range []logkit.Options{{Level: "loud"}, {Format: "xml"}} {
		if _, err := logkit.New(o); err == nil || !strings.Contains(err.Error(), ": use ") {
			t.Errorf("New(%+v) = %v, want an error that says what to use", o, err)
		}
	}
	log := newLogger(t, logkit.Options{Out: io.Discard})
	if err := log.SetLevel("loud"); err == nil {
		t.Error(`SetLevel("loud") = nil, want an error`)
	}
}

func TestLevelIsSharedAndCanChange(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(t, logkit.Options{Out: &out, Level: "warning", Format: logkit.FormatJournald})
	child := log.With(logkit.Task.Of("t"))
	child.Info("unheard")
	if child.DebugEnabled() {
		t.Error("DebugEnabled() at level warning = true")
	}
	if err := log.SetLevel("debug"); err != nil {
		t.Fatal(err)
	}
	child.Debug("heard")
	if !child.DebugEnabled() {
		t.Error("DebugEnabled() at level debug = false")
	}
	if got, want := out.String(), "<7>heard task=t\n"; got != want {
		t.Errorf("wrote %q, want %q", got, want)
	}
}

func TestContext(t *testing.T) {
	var out bytes.Buffer
	ctx := logkit.Into(t.Context(), newLogger(t, logkit.Options{Out: &out, Format: logkit.FormatJournald}))
	upper := logkit.With(ctx, logkit.Instance.Of("i1"), logkit.Phase.Of("check"))
	lower := logkit.With(upper, logkit.Phase.Of("perform"))
	logkit.From(lower).Info("low")
	logkit.From(upper).Info("up")
	logkit.From(ctx).Info("top")
	want := "<6>low instance=i1 phase=perform\n<6>up instance=i1 phase=check\n<6>top\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestWithoutLogger(t *testing.T) {
	stderr := os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stderr = w
	defer func() { os.Stderr = stderr }()
	log := logkit.From(context.Background())
	log.Info("small talk")
	log.Error("a panic")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(got), "ERROR a panic\n") || strings.Contains(string(got), "small talk") {
		t.Errorf("standard error got %q, want the error alone", got)
	}

	var none *logkit.Logger
	none.With(logkit.Port.Of("p")).Error("nobody hears")
	if err := none.SetLevel("debug"); err != nil || none.DebugEnabled() {
		t.Errorf("a nil Logger: SetLevel = %v, DebugEnabled = %t", err, none.DebugEnabled())
	}
}

func TestManyGoroutines(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(t, logkit.Options{Out: &out, Format: logkit.FormatJournald}).With(logkit.Task.Of("t"))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() { log.With(logkit.Peer.Of(i)).Info("line") })
	}
	wg.Wait()
	if got := strings.Count(out.String(), "<6>line task=t peer="); got != 20 {
		t.Errorf("%d whole lines, want 20", got)
	}
}

func Example() {
	log, err := logkit.New(logkit.Options{Out: os.Stdout, Format: logkit.FormatJournald})
	if err != nil {
		panic(err)
	}
	ctx := logkit.Into(context.Background(), log)
	ctx = logkit.With(ctx, logkit.Instance.Of("c0ffee"), logkit.Task.Of("rebooting"))
	logkit.From(ctx).Info("guest is up again", logkit.Took.Of(231*time.Millisecond))
	// Output: <6>guest is up again instance=c0ffee task=rebooting took=231ms
}

func BenchmarkDisabled(b *testing.B) {
	log, err := logkit.New(logkit.Options{Out: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	ctx := logkit.Into(b.Context(), log)
	for b.Loop() {
		logkit.From(ctx).Debug("nothing")
	}
}

func BenchmarkInfo(b *testing.B) {
	log, err := logkit.New(logkit.Options{Out: io.Discard, Format: logkit.FormatJournald})
	if err != nil {
		b.Fatal(err)
	}
	ctx := logkit.With(logkit.Into(b.Context(), log), logkit.Instance.Of("i1"), logkit.Task.Of("t"))
	for b.Loop() {
		logkit.From(ctx).Info("moved", logkit.Took.Of(231*time.Millisecond))
	}
}

// Something that is tried again and again is a warning once for each cause, and once a minute for one that stays.
func TestRepeatedWarnings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, said := logtest.Record(t)
		ctx := logkit.Into(t.Context(), log)
		var trouble logkit.Repeated
		const away, full = "libvirt is away", "the disk is full"
		for i, cause := range []string{away, away, full, full, away} {
			trouble.Warn(ctx, "it is tried again", errors.New(cause), logkit.Key("try").Of(i))
		}
		time.Sleep(logkit.Reminder - 1)
		trouble.Warn(ctx, "it is tried again", errors.New(away))
		time.Sleep(time.Nanosecond)
		trouble.Warn(ctx, "it is tried again", errors.New(away))
		var got []string
		for _, e := range said.Entries() {
			got = append(got, e.Level+": "+e.Fields[logkit.Error].(string))
		}
		want := []string{
			"warning: " + away, "debug: " + away, "warning: " + full, "debug: " + full, "warning: " + away,
			"debug: " + away, "warning: " + away,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("what was said (-want +got):\n%s", diff)
		}
	})
}
