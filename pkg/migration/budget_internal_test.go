package migration

import "testing"

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
