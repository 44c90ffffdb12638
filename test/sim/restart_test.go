package sim_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// course is the migration of the restart table: it takes ten seconds, or is aborted in
// the middle, or is made to end by its policy.
type course struct {
	name   string
	abort  bool
	policy string        // of a guest that writes faster than the link carries
	away   time.Duration // how long a killed agent stays away
	ends   instance.MigrationStatus
}

func courses() []course {
	return []course{
		{name: "plain, back while memory moves", away: time.Second, ends: instance.MigrationCompleted},
		{name: "plain, back when all is over", away: time.Minute, ends: instance.MigrationCompleted},
		{name: "aborted", abort: true, away: time.Second, ends: instance.MigrationCancelled},
		{name: "paused by its policy", policy: instance.PolicyPauseNow, away: time.Second, ends: instance.MigrationCompleted},
		{name: "post-copy", policy: instance.PolicyPostCopyNow, away: time.Second, ends: instance.MigrationCompleted},
	}
}

// TestRestartTable kills the source's agent at each transaction of its journal, the
// destination's at each of its own, both in every combination; 0 is never. Under the race
// detector a part of them, another one each time.
// Design sections 7 and 11: a job in perform is taken up again, what was only prepared is
// undone, what has switched over is finished; an abort is never lost.
func TestRestartTable(t *testing.T) {
	dir := workDir(t)
	for _, c := range courses() {
		t.Run(c.name, func(t *testing.T) {
			steps := c.cell(t, filepath.Join(dir, "whole"), 0, 0)
			t.Logf("%d transactions on the source, %d on the destination: %d cells", steps[0], steps[1], (steps[0]+1)*(steps[1]+1))
			var next atomic.Int64
			next.Store(int64(rand.IntN(sample)))
			for w := range runtime.GOMAXPROCS(0) {
				t.Run(fmt.Sprint(w), func(t *testing.T) {
					t.Parallel()
					for !t.Failed() {
						i := int(next.Add(sample)) - sample
						if i >= (steps[0]+1)*(steps[1]+1) {
							return
						}
						c.cell(t, filepath.Join(dir, fmt.Sprintf("%s-%d", c.name, i)), i/(steps[1]+1), i%(steps[1]+1))
					}
				})
			}
		})
	}
}

// cell is one combination. It gives how many transactions each side made for the migration.
func (c course) cell(t *testing.T, dir string, k, m int) (steps [2]int) {
	t.Helper()
	defer func() {
		_ = os.RemoveAll(dir)
		if t.Failed() {
			t.Errorf("%s: the source was killed at transaction %d, the destination at %d (0: never)", c.name, k, m)
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r := newRig(t, ctx, setup{hosts: []string{"a", "b"}, dir: dir, node: func(string) (c agent.Config) {
			c.Migration.OutboundSlots, c.Migration.InboundSlots = 2, 2
			return c
		}})
		defer func() {
			cancel()
			r.jobs.Wait()
		}()
		spec := guest(roll(1))
		spec.MemoryMiB, spec.Metadata = 1024, nil
		args := api.MigrateArgs{Instance: spec.UUID, Dest: "b", BandwidthMiB: 50}
		if c.policy != "" {
			spec.Metadata = map[string]string{"fake.working_set_mib": "200", "fake.dirty_mib": "1300"}
			args.Policy, args.BandwidthMiB = c.policy, 100
		}
		r.await(r.cast("a", spec.UUID, api.BuildAndRunInstance, api.BuildArgs{Spec: spec}))
		before := [2]int{r.sites["a"].counted(), r.sites["b"].counted()}
		r.sites["a"].mortal(k, c.away)
		r.sites["b"].mortal(m, c.away)
		asked := r.cast("a", spec.UUID, api.LiveMigration, args)
		if c.abort {
			pass(3 * time.Second)
			r.cast("a", spec.UUID, api.LiveMigrationAbort, api.MigrationRefArgs{Instance: spec.UUID})
		}
		end := r.await(asked)
		pass(2 * c.away)
		r.whole()
		r.settle()
		pass(15 * time.Second)
		steps = [2]int{r.sites["a"].counted() - before[0], r.sites["b"].counted() - before[1]}
		r.check()
		c.judge(t, r, end, k > 0 || m > 0)
	})
	return steps
}

// judge: the source has one record of the migration, and it ended as it should. It may
// fail instead when an agent died before memory moved: while the destination prepared,
// which is undone then, or between the source's word that it performs and the hypervisor's
// call, of which no job was left. An abort that comes before the migration was accepted
// leaves no record. Where nobody died there is no excuse.
func (c course) judge(t *testing.T, r *rig, end api.TaskEvent, died bool) {
	t.Helper()
	var of []instance.Migration
	for _, rec := range r.left["a"].records {
		if rec.Role == migration.RoleSource {
			of = append(of, rec.Migration)
		}
	}
	if len(of) == 0 && c.abort && died && end.State.Ended() && end.State != api.TaskSucceeded {
		return
	}
	if len(of) != 1 {
		t.Errorf("the source has %d records of the migration, the request was told to be %s (%v)", len(of), end.State, end.Error)
		return
	}
	got := of[0]
	if got.Status != c.ends && (got.Status != instance.MigrationFailed || !died || !beforeMemory(r, got)) {
		t.Errorf("the migration is %s (%v), want %s", got.Status, got.Fault, c.ends)
	}
	if want := got.Status == instance.MigrationCompleted; want != (end.State == api.TaskSucceeded) {
		t.Errorf("the migration is %s, the request was told to be %s", got.Status, end.State)
	}
}

// beforeMemory reports whether a migration failed before its memory moved.
func beforeMemory(r *rig, m instance.Migration) bool {
	if m.Fault == nil {
		return false
	}
	why, moves := m.Fault.Error(), r.sites["a"].Machine.Counts(m.Instance)
	return strings.Contains(why, "restarted while") || strings.Contains(why, api.PreLiveMigration) ||
		strings.Contains(why, api.CheckMigrateDestination) || strings.Contains(why, "still here") && moves.FailedMoves == 0
}

// counted is how many transactions the site's journal has seen.
func (s *site) counted() int {
	s.rig.mu.Lock()
	defer s.rig.mu.Unlock()
	return s.written
}

// mortal has the agent die at its n-th transaction from now and come back after a while.
func (s *site) mortal(n int, away time.Duration) {
	if n == 0 {
		return
	}
	s.dieAfter(n)
	s.rig.jobs.Go(func() {
		select {
		case <-s.died:
			s.restart(true, away)
		case <-s.rig.ctx.Done():
		}
	})
}
