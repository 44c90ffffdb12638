package migration_test

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

const mib = 1 << 20

func adaptive(on migration.OnStall) migration.Policy {
	return migration.Policy{Name: instance.PolicyAdaptive, OnStall: on, Adaptive: migration.AdaptiveConfig{
		DowntimeFirst: 150 * time.Millisecond, DowntimeStep: 150 * time.Millisecond, DowntimeLimit: 1050 * time.Millisecond,
		StartIteration: 3, Cooldown: 10 * time.Second, StallAfter: 40 * time.Second, StallMargin: 0.04,
	}}
}

// needs is a snapshot of a guest that would have to stand still for that long.
func needs(downtime time.Duration, iteration, best uint64, change ...func(*migration.Snapshot)) migration.Snapshot {
	s := migration.Snapshot{
		Elapsed: time.Minute, Permitted: 150 * time.Millisecond,
		Job:   virt.Job{Type: virt.JobUnbounded, Bandwidth: 100 * mib, Iteration: iteration},
		Track: migration.Track{Iteration: iteration, BestIter: best, Best: uint64(downtime.Seconds() * 100 * mib), BestAt: 50 * time.Second},
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

func TestDecide(t *testing.T) {
	nova := migration.Policy{Name: instance.PolicyNova, OnStall: migration.StallAbort, Timeout: 1600 * time.Second, Schedule: migration.DowntimeSchedule(novaDefault, 2)}
	at := func(d time.Duration) func(*migration.Snapshot) { return func(s *migration.Snapshot) { s.Elapsed = d } }
	permitted := func(d, raised time.Duration) func(*migration.Snapshot) {
		return func(s *migration.Snapshot) { s.Permitted, s.RaisedAt = d, raised }
	}
	can := func(s *migration.Snapshot) { s.CanPostCopy = true }
	force := func(s *migration.Snapshot) { s.Force = true }
	paused := func(s *migration.Snapshot) { s.Paused = true }
	post := func(s *migration.Snapshot) { s.PostCopy = true }
	const sec = time.Second
	limit := permitted(1050*time.Millisecond, 55*sec)
	cases := []struct {
		name string
		p    migration.Policy
		s    migration.Snapshot
		want string // action, or "set_downtime 150ms"
	}{
		{"nova sets nothing at once", nova, needs(sec, 1, 1, at(0), permitted(0, 0)), "none"},
		{"nova sets the first step at the second poll", nova, needs(sec, 1, 1, at(sec/2), permitted(0, 0)), "set_downtime 50ms"},
		{"nova sets a step once", nova, needs(sec, 1, 1, at(sec), permitted(50*time.Millisecond, 0)), "none"},
		{"nova skips steps", nova, needs(sec, 1, 1, at(700*sec), permitted(50*time.Millisecond, 0)), "set_downtime 230ms"},
		{"nova is patient until the timeout", nova, needs(sec, 9, 1, at(1600*sec), permitted(500*time.Millisecond, 0)), "none"},
		{"nova aborts after it", nova, needs(sec, 9, 1, at(1600*sec+1)), "abort"},
		{"adaptive begins low", adaptive("abort"), needs(0, 0, 0, permitted(0, 0)), "set_downtime 150ms"},
		{"it waits for the third iteration", adaptive("abort"), needs(2*sec, 2, 1), "none"},
		{"then raises", adaptive("abort"), needs(2*sec, 3, 2), "set_downtime 300ms"},
		{"but not what fits already", adaptive("abort"), needs(sec/10, 9, 8), "none"},
		{"and not too often", adaptive("abort"), needs(2*sec, 9, 8, permitted(300*time.Millisecond, 51*sec)), "none"},
		{"and not above the limit", adaptive("abort"), needs(2*sec, 9, 8, permitted(1050*time.Millisecond, 30*sec)), "none"},
		{"the last raise is cut", adaptive("abort"), needs(2*sec, 9, 8, permitted(time.Second, 30*sec)), "set_downtime 1.05s"},
		{"no stall while an iteration lasts", adaptive("abort"), needs(2*sec, 4, 3, limit, at(time.Hour)), "none"},
		{"no stall before its time", adaptive("abort"), needs(2*sec, 9, 3, limit, at(95*sec-1)), "none"},
		{"a stall aborts", adaptive("abort"), needs(2*sec, 9, 3, limit, at(95*sec)), "abort"},
		{"or pauses", adaptive("pause"), needs(2*sec, 9, 3, limit, at(95*sec)), "pause"},
		{"or goes to post-copy", adaptive("post_copy"), needs(2*sec, 9, 3, limit, at(95*sec), can), "post_copy"},
		{"or pauses where it can't", adaptive("post_copy"), needs(2*sec, 9, 3, limit, at(95*sec)), "pause"},
		{"paused already: waits", adaptive("abort"), needs(2*sec, 9, 3, limit, at(95*sec), paused), "none"},
		{"paused, it has twice the time", nova, needs(2*sec, 9, 3, at(3200*sec), paused), "none"},
		{"and not more", nova, needs(2*sec, 9, 3, at(3200*sec+1), paused), "abort"},
		{"post-copy: no way back", adaptive("abort"), needs(2*sec, 9, 3, limit, at(time.Hour), post, force), "none"},
		{"force pauses", adaptive("abort"), needs(2*sec, 1, 1, force), "pause"},
		{"force prefers post-copy", adaptive("abort"), needs(2*sec, 1, 1, force, can), "post_copy"},
		{"force on a paused guest", adaptive("abort"), needs(2*sec, 1, 1, force, paused), "none"},
		{"force on a paused guest with post-copy", adaptive("abort"), needs(2*sec, 1, 1, force, paused, can), "post_copy"},
		{"pause_now", migration.Policy{Name: instance.PolicyPauseNow}, needs(sec, 1, 1), "pause"},
		{"pause_now, once", migration.Policy{Name: instance.PolicyPauseNow}, needs(sec, 1, 1, paused), "none"},
		{"post_copy_now waits for the first page", migration.Policy{Name: instance.PolicyPostCopyNow}, needs(0, 0, 0, can), "none"},
		{"post_copy_now", migration.Policy{Name: instance.PolicyPostCopyNow}, needs(sec, 1, 1, can), "post_copy"},
		{"post_copy_now, refused", migration.Policy{Name: instance.PolicyPostCopyNow}, needs(sec, 1, 1), "pause"},
	}
	for _, c := range cases {
		d := c.p.Decide(c.s)
		got := string(d.Action)
		if d.Action == migration.ActSetDowntime {
			got += " " + d.Downtime.String()
		}
		if got != c.want {
			t.Errorf("%s: Decide = %s (%s), want %s", c.name, got, d.Reason, c.want)
		}
		if d.Reason == "" && strings.Contains("abort pause post_copy", got) {
			t.Errorf("%s: %s without a reason", c.name, got)
		}
	}
}

// TestTrack follows remaining figures as QEMU reports them.
func TestTrack(t *testing.T) {
	look := func(iteration, remaining uint64) virt.Job {
		return virt.Job{Iteration: iteration, Memory: instance.Amount{Remaining: remaining}}
	}
	var tr migration.Track
	for i, step := range []struct {
		j        virt.Job
		best     uint64
		bestIter uint64
	}{
		{look(0, 0), 0, 0},       // setting up
		{look(7, 1000), 1000, 1}, // the counter of an earlier attempt goes on
		{look(7, 10), 1000, 1},   // it falls within an iteration: no news
		{look(8, 500), 500, 2},
		{look(9, 490), 500, 2}, // within the margin
		{look(10, 470), 470, 4},
		{look(11, 600), 470, 4},
	} {
		tr = tr.Observe(step.j, time.Duration(i)*time.Second, 0.04)
		if tr.Best != step.best || tr.BestIter != step.bestIter {
			t.Errorf("look %d: %+v, want best %d in iteration %d", i, tr, step.best, step.bestIter)
		}
	}
}

// TestDecideIsLawful: whatever it sees, a policy never leaves post-copy, never lowers
// adaptive's downtime, never wants what can't be.
func TestDecideIsLawful(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := migration.Snapshot{
			Elapsed:     time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "elapsed")),
			Permitted:   time.Duration(rapid.Int64Range(0, 1050).Draw(t, "permitted")) * time.Millisecond,
			Job:         virt.Job{Bandwidth: rapid.Uint64Range(0, 1<<34).Draw(t, "bandwidth")},
			CanPostCopy: rapid.Bool().Draw(t, "can"), PostCopy: rapid.Bool().Draw(t, "post"),
			Paused: rapid.Bool().Draw(t, "paused"), Force: rapid.Bool().Draw(t, "force"),
			Track: migration.Track{Iteration: rapid.Uint64Range(0, 50).Draw(t, "iteration"), Best: rapid.Uint64Range(0, 1<<36).Draw(t, "best")},
		}
		p := adaptive(rapid.SampledFrom([]migration.OnStall{"abort", "pause", "post_copy"}).Draw(t, "stall"))
		p.Name = rapid.SampledFrom(instance.Policies()).Draw(t, "policy")
		p.Timeout = time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "timeout"))
		d := p.Decide(s)
		switch {
		case s.PostCopy && d.Action != migration.ActNone:
			t.Errorf("%s in post-copy", d.Action)
		case d.Action == migration.ActPostCopy && !s.CanPostCopy:
			t.Error("post-copy although the job can't")
		case d.Action == migration.ActPause && s.Paused:
			t.Error("paused twice")
		case d.Action == migration.ActSetDowntime && p.Name == "adaptive" && (d.Downtime <= s.Permitted || d.Downtime > p.Adaptive.DowntimeLimit):
			t.Errorf("downtime %v after %v", d.Downtime, s.Permitted)
		case s.Force && d.Action == migration.ActAbort:
			t.Error("asked to complete, it aborts")
		}
	})
}
