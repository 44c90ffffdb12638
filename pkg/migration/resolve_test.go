package migration_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// freeze has a migration end without an outcome: the handover is not answered and the
// agents don't reach one another. arrived says whether it was carried out all the same.
func freeze(t *testing.T, arrived bool, opts ...option) (*world, instance.Instance) {
	t.Helper()
	w := newWorld(t, opts...)
	inst := w.guest("a")
	w.sites["a"].host.Faults().Add(fake.Fault{
		Method: fake.PointFinish, After: arrived, Err: fault.New(fault.Unavailable, "test", "", "no answer"), Times: 1,
	})
	f := w.migrate(inst, slow)
	w.reach("a", migration.PhasePerform)
	w.sever(true)
	m, err := f.wait(t)
	if m.Status != instance.MigrationError || err == nil {
		t.Fatalf("the migration ended as %s, %v, want error: nobody can know", m.Status, err)
	}
	return w, inst
}

// record gives the source's record as it is journaled.
func (w *world) record() migration.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.sites["a"].journal {
		if r.Role == migration.RoleSource {
			return r
		}
	}
	w.t.Fatal("no record")
	return migration.Record{}
}

// settle ends the freeze and waits for the end; an error is that of Settle.
func (w *world) settle(v migration.Verdict, byPerson bool) (instance.Migration, error) {
	w.t.Helper()
	s := w.sites["a"].living().source
	rec, err := s.Settle(w.ctx, w.record(), v, byPerson)
	if err != nil {
		return rec.Migration, err
	}
	if rec.Frozen() || !rec.Settling {
		w.t.Errorf("after Settle the record is %+v", rec)
	}
	m, _ := s.Run(w.ctx, &rec)
	return *m, nil
}

func (w *world) wantLook(source, dest migration.Sight, v migration.Verdict) {
	w.t.Helper()
	f, got, err := w.sites["a"].living().source.Look(w.ctx, w.record())
	if err != nil || f.Source != source || f.Dest != dest || got != v {
		w.t.Errorf("Look = %+v, %s, %v, want %s here, %s there: %s", f, got, err, source, dest, v)
	}
}

// Facts that come back end a freeze without anybody.
func TestFactsThatComeBackEndAFreeze(t *testing.T) {
	for arrived, want := range map[bool]instance.MigrationStatus{true: "completed", false: "failed"} {
		t.Run(string(want), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, inst := freeze(t, arrived)
				defer w.close()
				w.wantLook(migration.SightMoving, migration.SightUnknown, migration.VerdictUnknown)
				_, err := w.settle(migration.Verdict(want), false)
				wantKind(t, "Settle without facts", err, fault.Conflict)
				w.sever(false)
				_, v, err := w.sites["a"].living().source.Look(w.ctx, w.record())
				if err != nil || string(v) != string(want) {
					t.Fatalf("Look once the hosts talk again = %s, %v", v, err)
				}
				m, err := w.settle(v, false)
				if err != nil || m.Status != want {
					t.Fatalf("it ended as %s, %v", m.Status, err)
				}
				<-time.After(time.Hour)
				w.check(inst, map[bool]string{true: "b", false: "a"}[arrived])
				_, _, err = w.sites["a"].living().source.Look(w.ctx, w.record())
				wantKind(t, "Look at what has ended", err, fault.Conflict)
			})
		})
	}
}

// Several may want a settled migration to go on: one carries it to its end, and who comes by
// what was known before does nothing any more.
func TestSettledMigrationGoesOnOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, inst := freeze(t, false)
		defer w.close()
		w.sever(false)
		frozen, s := w.record(), w.sites["a"].living().source
		if err := s.GoOn(w.ctx, frozen); err != nil || w.record().Settling {
			t.Errorf("GoOn of a frozen migration: %v, settling %t", err, w.record().Settling)
		}
		settled, err := s.Settle(w.ctx, frozen, migration.VerdictFailed, false)
		if err != nil {
			t.Fatal(err)
		}
		var ends atomic.Int32
		w.setHook(func(point string) error {
			if point == "a save end failed" {
				ends.Add(1)
			}
			return nil
		})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if err := s.GoOn(w.ctx, settled); err != nil && fault.KindOf(err) == fault.Conflict {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if err := s.GoOn(w.ctx, settled); err != nil { // by a record that has been overtaken
			t.Error(err)
		}
		if m := w.ended("a", settled.Migration.UUID); m.Status != instance.MigrationFailed || ends.Load() != 1 {
			t.Errorf("it ended as %s, and %d times", m.Status, ends.Load())
		}
		w.check(inst, "a")
	})
}

// A person's word stands where a host does not answer.
func TestAPersonDecides(t *testing.T) {
	for arrived, want := range map[bool]migration.Verdict{true: migration.VerdictCompleted, false: migration.VerdictFailed} {
		t.Run(string(want), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, inst := freeze(t, arrived)
				defer w.close()
				m, err := w.settle(want, true)
				if err != nil || string(m.Status) != string(want) {
					t.Fatalf("it ended as %s, %v, want %s", m.Status, err, want)
				}
				w.sever(false)
				<-time.After(time.Hour) // the destination's claim runs out, and it asks
				w.check(inst, map[bool]string{true: "b", false: "a"}[arrived])
			})
		})
	}
}

// But not against what a host sees.
func TestAPersonCanNotDecideAgainstFacts(t *testing.T) {
	for arrived, wrong := range map[bool]migration.Verdict{true: migration.VerdictFailed, false: migration.VerdictCompleted} {
		t.Run(string(wrong), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, _ := freeze(t, arrived)
				defer w.close()
				w.sever(false)
				before := w.record()
				_, err := w.settle(wrong, true)
				wantKind(t, "the wrong decision", err, fault.Conflict)
				_, err = w.settle(migration.VerdictUnknown, true)
				wantKind(t, "no decision", err, fault.InvalidArgument)
				if after := w.record(); !after.Frozen() || after.UpdatedAt != before.UpdatedAt {
					t.Errorf("a refused decision changed the record: %+v", after)
				}
			})
		})
	}
}

// Looking takes its time. Who looked at a freeze that somebody else has ended meanwhile
// ends nothing, and the record stays as it came to be.
func TestSettleAfterSomebodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := freeze(t, false)
		defer w.close()
		looked := w.record()
		if m, err := w.settle(migration.VerdictFailed, true); err != nil || m.Status != instance.MigrationFailed {
			t.Fatalf("it ended as %s, %v", m.Status, err)
		}
		_, err := w.sites["a"].living().source.Settle(w.ctx, looked, migration.VerdictFailed, true)
		wantKind(t, "the second decision", err, fault.Conflict)
		if r := w.record(); !r.Ended() || r.Migration.Status != instance.MigrationFailed {
			t.Errorf("the record is in phase %s, %s, want its end", r.Phase, r.Migration.Status)
		}
	})
}

// A migration that waits for people keeps its claim on the destination, but not the slot:
// others may come meanwhile.
func TestFrozenMigrationKeepsNoInboundSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, inst := freeze(t, false, configure("b", func(c *migration.Config) { c.ClaimTimeout = 30 * time.Minute }))
		defer w.close()
		w.sever(false)
		b := w.sites["b"].living().dest
		if left := b.SlotsLeft(); left != 1 {
			t.Fatalf("%d slots are free, want 1 of 2", left)
		}
		<-time.After(time.Hour) // the claim has run out, and its source was asked
		if left := b.SlotsLeft(); left != 2 {
			t.Errorf("%d slots are free, want both", left)
		}
		if _, err := w.settle(migration.VerdictFailed, false); err != nil {
			t.Fatal(err)
		}
		w.check(inst, "a")
		if left := b.SlotsLeft(); left != 2 {
			t.Errorf("in the end %d slots are free, want 2", left)
		}
	})
}

// What is known of how a job went outlives a freeze.
func TestTimelineOutlivesAFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, inst := freeze(t, true)
		defer w.close()
		w.sever(false)
		before := w.record()
		s := w.sites["a"].living().source
		rec, err := s.Settle(w.ctx, before, migration.VerdictCompleted, false)
		if err != nil || len(rec.Timeline) == 0 || len(rec.Timeline) != len(before.Timeline) {
			t.Fatalf("after Settle %d moments are left of %d, %v", len(rec.Timeline), len(before.Timeline), err)
		}
		m, err := s.Run(w.ctx, &rec)
		if err != nil || m.Result == nil || len(m.Result.Timeline) != len(before.Timeline) || m.Result.DowntimeMS == 0 {
			t.Errorf("it ended as %s with %+v: %v", m.Status, m.Result, err)
		}
		w.check(inst, "b")
	})
}
