package migration_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
)

// Progress is told at most as often as the interval and the rate allow; a change of
// status or phase at once, and what is told moves forward.
func TestProgressIsToldAtABoundedRate(t *testing.T) {
	cases := []struct {
		name   string
		change func(*migration.Config)
		apart  time.Duration
		least  int
	}{
		{"by default once a second", func(*migration.Config) {}, time.Second, 4},
		{"at each beat", func(c *migration.Config) { c.ProgressInterval = time.Millisecond }, 0, 8},
		{"seldom", func(c *migration.Config) { c.ProgressInterval, c.ProgressRate = 3*time.Second, 1 }, 3 * time.Second, 2},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, configure("a", c.change))
				defer w.close()
				inst := w.guest("a", func(*instance.Spec) {})
				if _, err := w.migrate(inst, slow).wait(t); err != nil {
					t.Fatal(err)
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				var last instance.Migration
				var told []time.Time
				for _, m := range w.sites["a"].agent.reports {
					if m.Progress.Percent < last.Progress.Percent {
						t.Errorf("from %d to %d percent", last.Progress.Percent, m.Progress.Percent)
					}
					if m.Status == instance.MigrationRunning && last.Status == m.Status {
						told = append(told, m.UpdatedAt)
					}
					last = m
				}
				for i := 1; i < len(told); i++ {
					if gap := told[i].Sub(told[i-1]); gap < c.apart {
						t.Errorf("told %v after the last time, want at least %v", gap, c.apart)
					}
				}
				if len(told) < c.least {
					t.Errorf("told %d times, want at least %d", len(told), c.least)
				}
				if last.Status != instance.MigrationCompleted || last.Progress.Percent != 100 {
					t.Errorf("at the end it is %s at %d percent", last.Status, last.Progress.Percent)
				}
			})
		})
	}
}
