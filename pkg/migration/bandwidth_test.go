package migration_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

func TestDivide(t *testing.T) {
	for _, c := range []struct {
		total        uint64
		limits, want []uint64
	}{
		{0, []uint64{0, 8}, []uint64{0, 8}},
		{100, nil, nil},
		{100, []uint64{0}, []uint64{100}},
		{100, []uint64{30}, []uint64{30}},
		{100, []uint64{0, 0}, []uint64{50, 50}},
		{100, []uint64{0, 10, 0}, []uint64{45, 10, 45}},
		{100, []uint64{60, 20, 0}, []uint64{40, 20, 40}},
		{2, []uint64{0, 0, 0, 5}, []uint64{1, 1, 1, 1}},
	} {
		if got := migration.Divide(c.total, c.limits); !cmp.Equal(got, c.want) {
			t.Errorf("Divide(%d, %v) = %v, want %v", c.total, c.limits, got, c.want)
		}
	}
}

// Nobody gets more than they want or nothing, the total is kept, nothing that is wanted
// is left over, and who wants as much gets as much.
func TestDivideIsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.Uint64Range(1, 1000).Draw(t, "total")
		limits := rapid.SliceOfN(rapid.Uint64Range(0, 400), 1, 20).Draw(t, "limits")
		shares := migration.Divide(total, limits)
		sum, satisfied := uint64(0), true
		for i, s := range shares {
			sum += s
			satisfied = satisfied && limits[i] != 0 && s == limits[i]
			if s == 0 || limits[i] != 0 && s > limits[i] {
				t.Fatalf("share %d of limit %d", s, limits[i])
			}
			for j, other := range shares {
				if limits[i] != 0 && s == limits[i] || other <= s {
					continue
				}
				if other-s > 1 { // of whole MiB/s
					t.Fatalf("%v: number %d has less than number %d and wants more", shares, i, j)
				}
			}
		}
		if n := uint64(len(limits)); sum > max(total, n) || sum < total && !satisfied {
			t.Fatalf("%v of %v sum up to %d of %d", shares, limits, sum, total)
		}
	})
}

// second is another guest of the world.
func second(s *instance.Spec) {
	s.UUID, s.Name = "44444444-4444-4444-8444-444444444444", "second"
	s.Ports = []instance.Port{{ID: "55555555-5555-4555-8555-555555555555", MAC: "52:54:00:00:00:02", Binding: instance.BindingTap}}
}

const secondMigration = "66666666-6666-4666-8666-666666666666"

// Two guests that take 5 s each at 100 MiB/s share that: while both move each has half, and whoever is alone has all. So
// both together take 10 s, and one that ends gives its half to the other at once.
func TestBudgetIsDivided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, configure("a", func(c *migration.Config) { c.BudgetMiB = 100 }))
		defer w.close()
		one, two := w.guest("a"), w.guest("a", second)
		began := time.Now()
		first := w.migrate(one, api.MigrateArgs{})
		<-time.After(2 * time.Second)
		other := w.migrate(two, api.MigrateArgs{Migration: secondMigration})
		if m, err := first.wait(t); err != nil {
			t.Errorf("it ended as %s: %v", m.Status, err)
		}
		firstTook := time.Since(began)
		if m, err := other.wait(t); err != nil {
			t.Errorf("it ended as %s: %v", m.Status, err)
		}
		took := time.Since(began)
		if firstTook < 7*time.Second || firstTook > 9*time.Second || took < 10*time.Second || took > 12*time.Second {
			t.Errorf("the first took %v, both %v; want about 8 s and 11 s", firstTook, took)
		}
		w.check(one, "b")
		w.check(two, "b")
	})
}

// In post-copy the budget is divided by what each may use there: what was asked for
// pre-copy holds nobody back, and post-copy's own limit holds beside a budget too.
func TestBudgetInPostCopy(t *testing.T) {
	for name, c := range map[string]struct {
		preCopy, postCopy uint64
		least, most       time.Duration
	}{
		"no limit in post-copy":    {preCopy: 100, most: 4 * time.Second},
		"a limit in post-copy":     {postCopy: 50, least: 8 * time.Second, most: 20 * time.Second},
		"a higher one in pre-copy": {preCopy: 500, postCopy: 50, least: 8 * time.Second, most: 25 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, configure("a", func(cfg *migration.Config) { cfg.BudgetMiB, cfg.PostCopyBandwidthMiB = 1000, c.postCopy }))
				defer w.close()
				inst := w.guest("a", busy)
				m, err := w.migrate(inst, api.MigrateArgs{BandwidthMiB: c.preCopy, Policy: "post_copy_now"}).wait(t)
				took := m.EndedAt.Sub(m.StartedAt)
				if err != nil || m.Mode != instance.ModePostCopy || took < c.least || took > c.most {
					t.Errorf("it ended as %s, %s, after %v: %v; want from %v to %v", m.Status, m.Mode, took, err, c.least, c.most)
				}
				w.check(inst, "b")
			})
		})
	}
}

// A limit that is changed while memory moves holds at once, whatever happens to the
// agent; in the queue it holds from the beginning; behind the switch it is too late.
func TestBandwidthIsChangedOnRequest(t *testing.T) {
	for name, c := range map[string]struct {
		when  migration.Phase
		pause time.Duration
		after func(*world)
	}{
		"while memory moves": {when: migration.PhasePerform, pause: time.Second},
		"while it waits":     {when: migration.PhaseQueue},
		"before the agent is killed": {
			when: migration.PhasePerform, pause: time.Second, after: func(w *world) { w.sites["a"].crash(); w.sites["a"].start() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				defer w.close()
				inst := w.guest("a")
				began := time.Now()
				f := w.migrate(inst, api.MigrateArgs{BandwidthMiB: 1}) // 17 minutes
				w.reach("a", c.when)
				<-time.After(c.pause)
				if err := w.sites["a"].living().source.SetBandwidth(w.ctx, inst.UUID, "", 1000); err != nil {
					t.Errorf("SetBandwidth: %v", err)
				}
				if c.after != nil {
					c.after(w)
				}
				if m := w.ended("a", f.id); m.Status != instance.MigrationCompleted {
					t.Errorf("it ended as %s: %v", m.Status, m.Fault)
				}
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("it took %v", took)
				}
				err := w.sites["a"].living().source.SetBandwidth(w.ctx, inst.UUID, "", 1)
				if fault.KindOf(err) != fault.NotFound {
					t.Errorf("SetBandwidth after the end: %v, want not_found", err)
				}
				w.check(inst, "b")
			})
		})
	}
}

// A hypervisor that does not take a limit is asked again, and the migration goes on.
func TestBandwidthIsOfferedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, faults("a", fake.Fault{Method: "SetBandwidth", Err: errNo, Times: 2}))
		defer w.close()
		inst := w.guest("a")
		f := w.migrate(inst, api.MigrateArgs{BandwidthMiB: 1})
		w.reach("a", migration.PhasePerform)
		<-time.After(time.Second)
		if err := w.sites["a"].living().source.SetBandwidth(w.ctx, inst.UUID, "", 1000); err == nil {
			t.Error("SetBandwidth that the hypervisor refuses gave no error")
		}
		if m, err := f.wait(t); err != nil || m.EndedAt.Sub(m.StartedAt) > time.Minute {
			t.Errorf("it ended as %s after %v: %v", m.Status, m.EndedAt.Sub(m.StartedAt), err)
		}
		w.check(inst, "b")
	})
}

// Behind the switch there is nothing to limit.
func TestBandwidthTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		inst := w.guest("a")
		var errs []error
		w.setHook(func(p string) error {
			if p == "a ⇒ b post" {
				errs = append(errs, w.sites["a"].living().source.SetBandwidth(w.ctx, inst.UUID, migrationID, 1))
			}
			return nil
		})
		if m, err := w.migrate(inst, slow).wait(t); err != nil {
			t.Errorf("it ended as %s: %v", m.Status, err)
		}
		if len(errs) == 0 || slices.ContainsFunc(errs, func(err error) bool { return fault.KindOf(err) != fault.Conflict }) {
			t.Errorf("SetBandwidth behind the switch: %v, want conflicts", errs)
		}
	})
}
