package logkit_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/logkit"
)

func TestSlog(t *testing.T) {
	var out bytes.Buffer
	log := newLogger(t, logkit.Options{Out: &out, Format: logkit.FormatJournald})
	lib := log.With(logkit.Task.Of("t")).Slog()
	lib.Debug("unheard")
	lib.Info("plain", "instance", "i1", "took", 1500*time.Millisecond)
	lib.Error("bad", slog.Any("error", errors.New("gone")))
	lib.With("a", 1).WithGroup("g").With("b", 2).Warn("deep", slog.Group("h", "c", 3), slog.Group("", "d", 4), slog.Attr{})
	lib.Log(t.Context(), slog.LevelInfo+1, "between")

	other := logkit.With(logkit.Into(t.Context(), log), logkit.Peer.Of("node2"))
	lib.InfoContext(other, "from a context")
	want := `<6>plain instance=i1 task=t took=1.5s
<3>bad task=t error=gone
<4>deep task=t a=1 g.b=2 g.d=4 g.h.c=3
<6>between task=t
<6>from a context peer=node2
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestSlogSharesNothingBetweenBranches(t *testing.T) {
	var out bytes.Buffer
	root := newLogger(t, logkit.Options{Out: &out, Format: logkit.FormatJournald}).Slog().With("a", 1)
	one, two := root.With("b", "one"), root.With("b", "two")
	one.Info("x")
	two.Info("x")
	if got, want := out.String(), "<6>x a=1 b=one\n<6>x a=1 b=two\n"; got != want {
		t.Errorf("wrote %q, want %q", got, want)
	}
}

func TestSlogLevel(t *testing.T) {
	log := newLogger(t, logkit.Options{Out: io.Discard, Level: "warning"})
	if lib := log.Slog(); lib.Enabled(t.Context(), slog.LevelInfo) || !lib.Enabled(t.Context(), slog.LevelError) {
		t.Error("a Logger at level warning must hear errors and not hear info")
	}
	var none *logkit.Logger
	none.Slog().Error("nobody hears, nothing breaks")
}
