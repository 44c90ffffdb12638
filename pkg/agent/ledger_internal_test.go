package agent

import (
	"testing"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/state"
)

// A migration's record is held once, by its run and by the ledger. Its timeline is the
// journal's, and memory's where the record is frozen.
func TestLedgerHoldsARecordOnce(t *testing.T) {
	store, err := state.Open(t.Context(), t.TempDir(), state.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close() //nolint:errcheck // the test is over
	a := &Agent{ledger: newLedger("a", 1, store, newViewSet())}
	line := []instance.Moment{{AtMS: 1}, {AtMS: 2}}
	for _, c := range []struct {
		status instance.MigrationStatus
		held   int
	}{{instance.MigrationRunning, 0}, {instance.MigrationError, 2}, {instance.MigrationPost, 0}} {
		rec := &migration.Record{Role: migration.RoleSource, Migration: instance.Migration{UUID: "m", Instance: "i", Status: c.status}}
		if err := (owner{a}).Save(t.Context(), rec, line); err != nil {
			t.Fatal(err)
		}
		if held := a.ledger.records[recordKey(rec)]; len(held.Timeline) != c.held || c.held == 0 && held != rec {
			t.Errorf("%s: the ledger holds %d moments, want %d; the run's own record: %v", c.status, len(held.Timeline), c.held, held == rec)
		}
		again := newLedger("a", 1, store, newViewSet())
		if _, bad, err := again.load(); err != nil || len(bad) > 0 {
			t.Fatal(err, bad)
		}
		if read, _ := again.record(migration.RoleSource, "m"); len(read.Timeline) != len(line) {
			t.Errorf("%s: after a restart there are %d moments, want %d", c.status, len(read.Timeline), len(line))
		}
	}
	if got := a.ledger.migrationsOf("i"); len(got) != 1 {
		t.Errorf("the instance has %d records, want one", len(got))
	}
}
