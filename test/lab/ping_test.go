package lab_test

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/test/lab"
)

func TestLongestGap(t *testing.T) {
	zero := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	report := lab.PingReport{Began: at(0), Ended: at(1000)}
	for _, ms := range []int{5, 10, 15, 300, 305, 310, 990} {
		report.Replies = append(report.Replies, at(ms))
	}
	for _, c := range []struct {
		name             string
		from, to         time.Time
		wantFrom, wantTo int
	}{
		{"the whole run", time.Time{}, time.Time{}, 310, 990},
		{"a window with both ends in a gap", at(100), at(305), 100, 300},
		{"a window that begins at a reply", at(10), at(320), 15, 300},
		{"silence to the end", at(991), time.Time{}, 991, 1000},
		{"no reply at all", at(400), at(500), 400, 500},
		{"an empty window", at(400), at(400), 400, 400},
	} {
		got := report.LongestGap(c.from, c.to)
		if !got.From.Equal(at(c.wantFrom)) || !got.To.Equal(at(c.wantTo)) {
			t.Errorf("%s: longest gap = %v to %v ms, want %d to %d ms", c.name,
				got.From.Sub(zero).Milliseconds(), got.To.Sub(zero).Milliseconds(), c.wantFrom, c.wantTo)
		}
	}
	if len(report.Replies) != 7 {
		t.Errorf("the report has %d replies after it was asked, want 7", len(report.Replies))
	}
}

func TestPingerOnLoopback(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("PING SKIPPED: a raw socket needs root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	p := lab.Pinger{Target: netip.MustParseAddr("127.0.0.1")}
	report, err := p.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if report.Sent < 10 || len(report.Replies) < report.Sent-1 || len(report.Replies) > report.Sent {
		t.Errorf("%d requests to the loopback got %d replies, want at least 10 and as many", report.Sent, len(report.Replies))
	}
}
