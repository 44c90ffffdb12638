package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

const (
	monitorSource = "bench-1"
	monitorDest   = "bench-2"
	monitorGuest  = 4096 // MiB; at 1 MiB/s its migration outlasts the bench
	monitorBeat   = 500  // ms
)

// benchMonitors lets one agent, with GOMAXPROCS=1, watch many migrations to another
// process's agent at once.
func benchMonitors(ctx context.Context, e *env) (report, error) {
	r := report{head: []string{"migrations watched at once, GOMAXPROCS=1", "beat p50 ms", "p99 ms", "max ms", "CPU % of one core", "view updates/s", "KiB each, heap and stacks", "of it stacks", "KiB each, RSS", "goroutines"}}
	counts, err := e.counts()
	if err != nil {
		return r, err
	}
	for _, n := range counts {
		if err := monitorsOf(ctx, e, &r, n); err != nil {
			fmt.Fprintln(os.Stderr, "monitors:", err)
			r.want(false, fmt.Sprintf("%d migrations are watched", n), "%s", firstLine(err))
		}
		e.stopAll()
	}
	r.row("nova, 1,000 (tpool=1100, stubs)", "503 (mean)", "706", "", "26.8", "", "40.1 PSS")
	r.row("nova, 10,000 (everything stubbed, bare loop)", "502 (mean)", "506", "", "38.9", "", "40 PSS")
	r.row("nova, 400 with its conductor and database", "680 (mean)", "2,657", "", "22.9 + 119 for the rest")
	r.note("View updates: progress written into the bus for anybody to watch. The destination's agent is another process. nova with stock settings stops at 19 blocking calls.")
	return r, nil
}

// counts reads how many migrations to watch.
func (e *env) counts() ([]int, error) {
	var out []int
	for _, field := range strings.Split(e.migrations, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil {
			return nil, fmt.Errorf("-migrations %q: %w", e.migrations, err)
		}
		out = append(out, n)
	}
	return out, nil
}

func monitorsOf(ctx context.Context, e *env, r *report, n int) error {
	url, _, err := e.bus(ctx)
	if err != nil {
		return err
	}
	source, err := e.member(ctx, member{Host: monitorSource, URL: url, Slots: n, Count: true, Batches: e.nats == ""}, "GOMAXPROCS=1")
	if err != nil {
		return err
	}
	if _, err := e.member(ctx, member{Host: monitorDest, URL: url, Slots: n}); err != nil {
		return err
	}
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	ids, err := populate(ctx, nc, monitorSource, n, monitorGuest)
	if err != nil {
		return source.trouble(err)
	}
	before, err := tell(ctx, nc, ".gc")
	if err != nil {
		return err
	}
	sleep(ctx, time.Second)
	empty, err := memoryOf(source.pid())
	if err != nil {
		return err
	}
	var casts []cast
	for _, id := range ids {
		casts = append(casts, newCast(monitorSource, api.LiveMigration, api.MigrateArgs{Instance: id, Dest: monitorDest, Migration: instance.NewUUID(), BandwidthMiB: 1}))
	}
	if err := sendAll(ctx, nc, casts); err != nil {
		return err
	}
	if err := awaitWatched(ctx, nc, n); err != nil {
		return source.trouble(err)
	}
	return monitorRow(ctx, e, r, nc, watched{n: n, pid: source.pid(), empty: empty, before: before})
}

// watched is what is being measured.
type watched struct {
	n, pid int
	empty  memory
	before beatReport
}

func monitorRow(ctx context.Context, e *env, r *report, nc *nats.Conn, w watched) error {
	sleep(ctx, 5*time.Second)
	if _, err := tell(ctx, nc, ".begin"); err != nil {
		return err
	}
	used, err := usageOf(w.pid)
	if err != nil {
		return err
	}
	views, err := viewUpdates(ctx, nc)
	if err != nil {
		return err
	}
	sleep(ctx, max(10*time.Second, e.idle/2))
	after, err := usageOf(w.pid)
	if err != nil {
		return err
	}
	later, err := viewUpdates(ctx, nc)
	if err != nil {
		return err
	}
	got, err := tell(ctx, nc, ".end")
	if err != nil {
		return err
	}
	full, err := memoryOf(w.pid)
	if err != nil {
		return err
	}
	live, err := tell(ctx, nc, ".gc")
	if err != nil {
		return err
	}
	percent, _ := after.since(used)
	perGuest := func(now, before uint64) float64 { return float64(int64(now)-int64(before)) / 1024 / float64(w.n) } //nolint:gosec // bytes of memory
	each := perGuest(live.Live, w.before.Live)
	r.row(fmt.Sprintf("%d", w.n), fmt.Sprintf("%.1f", got.P50), fmt.Sprintf("%.1f", got.P99), fmt.Sprintf("%.1f", got.Max), fmt.Sprintf("%.1f", percent),
		fmt.Sprintf("%.0f", float64(later-views)/after.at.Sub(used.at).Seconds()), fmt.Sprintf("%.1f", each), fmt.Sprintf("%.1f", perGuest(live.Stacks, w.before.Stacks)),
		fmt.Sprintf("%.1f", (full.rss-w.empty.rss)*1024/float64(w.n)), fmt.Sprint(got.Goroutines))
	if w.n == 10_000 {
		r.want(got.Guests == w.n && got.P99 <= monitorBeat*1.02, "10,000: beat p99 within 2 % of 500 ms", "%.1f ms, %d guests", got.P99, got.Guests)
		r.want(percent <= 15, "10,000: at most 15 % of one core", "%.1f %%", percent)
		r.want(each <= 24, "10,000: at most 24 KiB each", "%.1f KiB", each)
	}
	return nil
}

// tell gives a command to the source.
func tell(ctx context.Context, nc *nats.Conn, command string) (beatReport, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var r beatReport
	reply, err := nc.RequestWithContext(ctx, "bench.member."+monitorSource+command, nil)
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(reply.Data, &r)
}

// awaitWatched waits until every migration's job is being looked at.
func awaitWatched(ctx context.Context, nc *nats.Conn, n int) error {
	for deadline := time.Now().Add(10 * time.Minute); ; {
		r, err := tell(ctx, nc, ".now")
		if err != nil {
			return err
		}
		if r.Guests >= n {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("only %d of %d migrations are watched", r.Guests, n)
		}
		sleep(ctx, 500*time.Millisecond)
	}
}

// viewUpdates counts what was written into the view of migrations so far.
func viewUpdates(ctx context.Context, nc *nats.Conn) (uint64, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	s, err := js.Stream(ctx, "KV_COMPUTE_MIGRATIONS")
	if err != nil {
		return 0, err
	}
	return s.CachedInfo().State.LastSeq, nil
}

// firstLine keeps a cell of a table on one line.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
