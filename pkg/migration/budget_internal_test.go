package migration

import (
	"context"
	"maps"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// newRuns makes runs that nobody conducts.
func newRuns(s *Source, ids ...string) []*run {
	runs := make([]*run, 0, len(ids))
	for _, id := range ids {
		rec := Record{}
		rec.Migration.UUID = id
		runs = append(runs, newRun(s, rec))
	}
	return runs
}

// What a migration would have with another limit changes nothing; what it has with it does.
func TestBudgetIsDividedByTheLimitOfTheMode(t *testing.T) {
	b := newBudget(1000)
	runs := newRuns(&Source{}, "1", "2")
	b.join(runs[0], 100)
	b.join(runs[1], 0)
	want := func(what string, r *run, limit, share uint64) {
		t.Helper()
		if got := b.of(r, limit); got != share {
			t.Errorf("%s: of a limit of %d the share is %d, want %d", what, limit, got, share)
		}
	}
	want("in pre-copy", runs[0], 100, 100)
	want("if it were in post-copy", runs[0], 0, 500)
	want("in pre-copy", runs[1], 0, 900)
	b.update(runs[0], 0)
	want("in post-copy", runs[0], 0, 500)
	want("beside post-copy", runs[1], 0, 500)
	b.update(runs[0], 50)
	want("limited in post-copy", runs[0], 50, 50)
	want("beside that", runs[1], 0, 950)
	b.leave(runs[0])
	b.update(runs[0], 10)
	want("alone", runs[1], 0, 1000)
}

// What is left over when the budget is divided stays where it is: nobody is given another
// share for nothing.
func TestSharesAreStable(t *testing.T) {
	b := newBudget(107)
	runs := newRuns(&Source{}, "5", "3", "1", "4", "2", "6", "8", "7", "9", "0")
	for _, r := range runs {
		b.join(r, 0)
	}
	before := maps.Clone(b.shares)
	for range 100 {
		b.change(func() {})
		if diff := cmp.Diff(shown(before), shown(b.shares)); diff != "" {
			t.Fatalf("divided again, by the same limits:\n%s", diff)
		}
	}
}

// shown gives shares by the migrations' names.
func shown(shares map[*run]uint64) map[string]uint64 {
	by := map[string]uint64{}
	for r, share := range shares {
		by[r.id] = share
	}
	return by
}

// bandwidths is a hypervisor that takes limits, and does nothing else.
type bandwidths struct {
	Hypervisor

	mu  sync.Mutex
	got []uint64
}

func (b *bandwidths) SetBandwidth(_ context.Context, _ string, mib uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.got = append(b.got, mib)
	return nil
}

// A limit may be asked for while perform begins.
func TestLimitIsAskedForWhilePerformBegins(t *testing.T) {
	hv := &bandwidths{}
	const budget = 100
	cfg := Config{BudgetMiB: budget}.WithDefaults()
	s := &Source{cfg: cfg, budget: newBudget(cfg.BudgetMiB), ports: SourcePorts{Hypervisor: hv}}
	r := newRuns(s, "1")[0]
	r.resumed = true
	var beside sync.WaitGroup
	beside.Go(func() {
		for mib := range uint64(1000) {
			r.mu.Lock()
			rec := *r.rec
			rec.Args.BandwidthMiB, rec.Limited = mib+1, true
			r.setLocked(&rec)
			r.mu.Unlock()
			if err := r.applyLimit(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	for range 1000 {
		r.joinBudget()
	}
	beside.Wait()
	if !r.limited() { // the first beat
		if err := r.applyLimit(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if last := hv.got[len(hv.got)-1]; last != budget || !r.limited() || r.s.budget.limits[r] != 1000 {
		t.Errorf("the hypervisor has %d, the budget counts %d, want %d and 1000", last, r.s.budget.limits[r], budget)
	}
}
