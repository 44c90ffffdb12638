package migration_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// outcomes is every combination: a row for each sight of the source, a column for each
// of the destination, both in the order of Sights. C completed, F failed, X cancelled,
// ? unknown.
//
//	columns: unknown absent off left moving paused running postcopy lost
//
//nolint:dupword // columns
var outcomes = []struct {
	job   migration.JobType
	owned bool
	rows  string
}{
	{migration.JobNone, false, `
		unknown  ? ? ? ? ? ? ? ? ?
		absent   ? ? ? ? ? C C ? ?
		off      ? F ? ? F ? C ? ?
		left     C ? C ? ? C C C ?
		moving   ? F ? ? F C C ? ?
		paused   ? F ? ? F C C ? ?
		running  F F F ? F ? ? ? ?
		postcopy ? ? ? ? ? ? C ? ?
		lost     ? ? ? ? ? ? C ? ?`},
	{migration.JobNone, true, `
		unknown  C C C C C C C ? ?
		absent   C C C C C C C ? ?
		off      C C C C C C C ? ?
		left     C C C C C C C C ?
		moving   C C C C C C C ? ?
		paused   C C C C C C C ? ?
		running  ? ? ? ? ? ? ? ? ?
		postcopy C C C C C C C ? ?
		lost     ? ? C C C C C ? ?`},
	{migration.JobCompleted, false, `
		unknown  ? ? ? ? ? C C C ?
		absent   C ? C ? C C C C ?
		off      C ? ? ? ? C C C ?
		left     C ? C ? C C C C ?
		moving   ? ? ? ? ? C C C ?
		paused   ? ? ? ? ? C C C ?
		running  ? ? ? ? ? ? ? ? ?
		postcopy ? ? ? ? ? C C C ?
		lost     ? ? ? ? ? C C C ?`},
	{migration.JobCompleted, true, `
		unknown  C C C C C C C C ?
		absent   C C C C C C C C ?
		off      C C C C C C C C ?
		left     C C C C C C C C ?
		moving   C C C C C C C C ?
		paused   C C C C C C C C ?
		running  ? ? ? ? ? ? ? ? ?
		postcopy C C C C C C C C ?
		lost     ? ? C C C C C C ?`},
	{migration.JobFailed, false, `
		unknown  ? ? ? ? ? ? ? ? ?
		absent   ? ? ? ? ? C C ? ?
		off      ? F ? ? F ? C ? ?
		left     C ? C ? ? C C C ?
		moving   ? F ? ? F F C ? ?
		paused   F F F ? F F C ? ?
		running  F F F ? F ? ? ? ?
		postcopy ? ? ? ? ? ? C ? ?
		lost     ? ? ? ? ? ? C ? ?`},
	{migration.JobFailed, true, `
		unknown  C C C C C C C ? ?
		absent   C C C C C C C ? ?
		off      C C C C C C C ? ?
		left     C C C C C C C C ?
		moving   C C C C C C C ? ?
		paused   C C C C C C C ? ?
		running  ? ? ? ? ? ? ? ? ?
		postcopy C C C C C C C ? ?
		lost     ? ? C C C C C ? ?`},
	{migration.JobCancelled, false, `
		unknown  ? ? ? ? ? ? ? ? ?
		absent   ? ? ? ? ? C C ? ?
		off      ? X ? ? X ? C ? ?
		left     C ? C ? ? C C C ?
		moving   ? X ? ? X X C ? ?
		paused   X X X ? X X C ? ?
		running  X X X ? X ? ? ? ?
		postcopy ? ? ? ? ? ? C ? ?
		lost     ? ? ? ? ? ? C ? ?`},
	{migration.JobCancelled, true, `
		unknown  C C C C C C C ? ?
		absent   C C C C C C C ? ?
		off      C C C C C C C ? ?
		left     C C C C C C C C ?
		moving   C C C C C C C ? ?
		paused   C C C C C C C ? ?
		running  ? ? ? ? ? ? ? ? ?
		postcopy C C C C C C C ? ?
		lost     ? ? C C C C C ? ?`},
}

var letters = map[string]migration.Verdict{
	"C": migration.VerdictCompleted, "F": migration.VerdictFailed, "X": migration.VerdictCancelled, "?": migration.VerdictUnknown,
}

func TestOutcome(t *testing.T) {
	sights := migration.Sights()
	tested := map[migration.Facts]bool{}
	for _, table := range outcomes {
		rows := strings.Split(strings.TrimSpace(table.rows), "\n")
		if len(rows) != len(sights) {
			t.Fatalf("job %s, owned %t: %d rows, want %d", table.job, table.owned, len(rows), len(sights))
		}
		for i, row := range rows {
			cells := strings.Fields(row)
			if len(cells) != len(sights)+1 || cells[0] != string(sights[i]) {
				t.Fatalf("row %q is not one of %s", row, sights[i])
			}
			for j, dest := range sights {
				for _, more := range [][2]bool{{}, {true, false}, {false, true}, {true, true}} {
					superseded, postCopy := more[0], more[1]
					f := migration.Facts{
						Source: sights[i], Dest: dest, Owned: table.owned, Superseded: superseded, PostCopy: postCopy, Job: table.job,
					}
					tested[f] = true
					want := letters[cells[j+1]]
					if table.owned && superseded && f.Source == migration.SightLost && (dest == migration.SightUnknown || dest == migration.SightAbsent) {
						want = migration.VerdictCompleted // the only thing that it says of how the migration ended
					}
					if postCopy && !table.owned && f.Source == migration.SightOff && dest == migration.SightAbsent {
						want = migration.VerdictUnknown // dead on both, and the last that is known is that it was to run there
					}
					if got := migration.Outcome(f); got != want {
						t.Errorf("Outcome(%+v) = %s, want %s", f, got, want)
					}
				}
			}
		}
	}
	for _, running := range []migration.JobType{migration.JobBounded, migration.JobUnbounded} { // no outcome yet
		for f := range tested {
			f.Job = running
			if got := migration.Outcome(f); got != migration.VerdictUnknown {
				t.Errorf("Outcome(%+v) = %s while the job runs", f, got)
			}
		}
	}
	if want := len(sights) * len(sights) * 2 * 2 * 2 * 4; len(tested) != want {
		t.Errorf("%d combinations are in the tables, want %d", len(tested), want)
	}
}

// TestOutcomeNeverGuesses holds for whatever table anybody writes: the rules that
// protect guests.
func TestOutcomeNeverGuesses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sight := rapid.SampledFrom(migration.Sights())
		f := migration.Facts{
			Source: sight.Draw(t, "source"), Dest: sight.Draw(t, "dest"), Owned: rapid.Bool().Draw(t, "owned"),
			Superseded: rapid.Bool().Draw(t, "superseded"), PostCopy: rapid.Bool().Draw(t, "postCopy"), Job: migration.JobType(rapid.IntRange(0, 5).Draw(t, "job")),
		}
		v := migration.Outcome(f)
		switch v {
		case migration.VerdictCompleted:
			if f.Source == migration.SightRunning {
				t.Errorf("%+v: completed, but the source runs the guest", f)
			}
			if f.Dest == migration.SightLost {
				t.Errorf("%+v: completed, but memory is in two places", f)
			}
			if f.Source == migration.SightLost && !f.Superseded && (f.Dest == migration.SightUnknown || f.Dest == migration.SightAbsent) {
				t.Errorf("%+v: completed, but half of the memory is on the source, and nobody saw the other", f)
			}
			left := f.Source == migration.SightLeft || f.Source == migration.SightAbsent
			seen := f.Dest == migration.SightRunning || f.Dest == migration.SightPaused
			if !f.Owned && f.Job != migration.JobCompleted && !left && !seen {
				t.Errorf("%+v: completed, but nothing says so and the source has not let go of the guest", f)
			}
		case migration.VerdictFailed, migration.VerdictCancelled:
			if f.Dest == migration.SightRunning || f.Dest == migration.SightPostCopy || f.Dest == migration.SightLost || f.Owned {
				t.Errorf("%+v: %s, but the destination has the guest", f, v)
			}
			if f.PostCopy && f.Source == migration.SightOff && f.Dest == migration.SightAbsent {
				t.Errorf("%+v: %s, but it may have run on the destination", f, v)
			}
			if f.Source == migration.SightAbsent || f.Source == migration.SightLeft || f.Source == migration.SightUnknown {
				t.Errorf("%+v: %s, but the guest is not seen on the source", f, v)
			}
		case migration.VerdictUnknown:
		case migration.VerdictNone:
			t.Errorf("%+v: no verdict", f)
		}
	})
}

func TestSightOf(t *testing.T) {
	cases := []struct {
		d    virt.Domain
		err  error
		want migration.Sight
	}{
		{err: fault.New(fault.NotFound, "", "", ""), want: migration.SightAbsent},
		{err: fault.New(fault.Unavailable, "", "", ""), want: migration.SightUnknown},
		{err: fault.New(fault.Timeout, "", "", ""), want: migration.SightUnknown},
		{want: migration.SightAbsent},
		{d: virt.Domain{State: virt.NoState}, want: migration.SightUnknown},
		{d: virt.Domain{State: virt.Running, Reason: virt.ReasonBooted}, want: migration.SightRunning},
		{d: virt.Domain{State: virt.Running, Reason: virt.ReasonMigrated}, want: migration.SightRunning},
		{d: virt.Domain{State: virt.Running, Reason: virt.ReasonPostCopy}, want: migration.SightPostCopy},
		{d: virt.Domain{State: virt.Running, Reason: virt.ReasonPostCopyFailed}, want: migration.SightLost},
		{d: virt.Domain{State: virt.Paused, Reason: virt.ReasonUser}, want: migration.SightPaused},
		{d: virt.Domain{State: virt.Paused, Reason: "ioerror"}, want: migration.SightPaused},
		{d: virt.Domain{State: virt.Paused, Reason: virt.ReasonMigrating}, want: migration.SightMoving},
		{d: virt.Domain{State: virt.Paused, Reason: virt.ReasonMigrated}, want: migration.SightMoving},
		{d: virt.Domain{State: virt.Paused, Reason: virt.ReasonStarting}, want: migration.SightMoving},
		{d: virt.Domain{State: virt.Paused}, want: migration.SightMoving},
		{d: virt.Domain{State: virt.Paused, Reason: virt.ReasonPostCopy}, want: migration.SightPostCopy},
		{d: virt.Domain{State: virt.Paused, Reason: virt.ReasonPostCopyFailed}, want: migration.SightLost},
		{d: virt.Domain{State: virt.ShuttingDown}, want: migration.SightRunning},
		{d: virt.Domain{State: virt.PMSuspended}, want: migration.SightRunning},
		{d: virt.Domain{State: virt.Crashed}, want: migration.SightRunning},
		{d: virt.Domain{State: virt.Shutoff, Reason: virt.ReasonMigrated}, want: migration.SightLeft},
		{d: virt.Domain{State: virt.Shutoff, Reason: virt.ReasonCrashed}, want: migration.SightOff},
		{d: virt.Domain{State: virt.Shutoff}, want: migration.SightOff},
	}
	for _, c := range cases {
		if got := migration.SightOf(c.d, c.err); got != c.want {
			t.Errorf("SightOf(%s/%s, %v) = %s, want %s", c.d.State, c.d.Reason, c.err, got, c.want)
		}
	}
}

func TestCommitted(t *testing.T) {
	yes := func(paused, ended bool) string { return fmt.Sprintf("paused=%t ended=%t", paused, ended) }
	cases := []struct {
		state  virt.State
		reason virt.Reason
		want   map[string]bool // by wasPaused and sourceJobEnded; "" for all
	}{
		{virt.Running, virt.ReasonMigrated, map[string]bool{"": true}},
		{virt.Running, virt.ReasonPostCopy, map[string]bool{"": true}},
		{virt.Running, virt.ReasonPostCopyFailed, map[string]bool{"": true}},
		{virt.Running, virt.ReasonUnpaused, map[string]bool{"": true}},
		{virt.Paused, virt.ReasonMigrating, map[string]bool{"": false}},
		{virt.Paused, virt.ReasonStarting, map[string]bool{"": false}},
		{virt.Paused, virt.ReasonUnknown, map[string]bool{"": false}},
		{virt.Paused, virt.ReasonPostCopy, map[string]bool{"": true}},
		{virt.Paused, virt.ReasonPostCopyFailed, map[string]bool{"": true}},
		{virt.Paused, virt.ReasonUser, map[string]bool{"": false, yes(true, true): true}},
		{virt.Crashed, virt.ReasonUnknown, map[string]bool{"": true}},
		{virt.Shutoff, virt.ReasonShutdown, map[string]bool{"": true}},
		{virt.Shutoff, virt.ReasonCrashed, map[string]bool{"": true}},
		{virt.Shutoff, virt.ReasonFailed, map[string]bool{"": false}},
		{virt.Shutoff, virt.ReasonDestroyed, map[string]bool{"": false}},
		{virt.Shutoff, virt.ReasonMigrated, map[string]bool{"": false}},
		{"", "", map[string]bool{"": false}},
	}
	for _, c := range cases {
		for _, paused := range []bool{false, true} {
			for _, ended := range []bool{false, true} {
				want, special := c.want[yes(paused, ended)]
				if !special {
					want = c.want[""]
				}
				d := virt.Domain{State: c.state, Reason: c.reason}
				if got := migration.Committed(d, paused, ended); got != want {
					t.Errorf("Committed(%s/%s, %t, %t) = %t, want %t", c.state, c.reason, paused, ended, got, want)
				}
			}
		}
	}
}
