package agent

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/inventory"
	"github.com/compute-agent/compute-agent/pkg/migration"
)

// TestTakenFollowsTheLedger holds the running total beside a sum over the tables.
func TestTakenFollowsTheLedger(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger("a", 1, nil, newViewSet())
		id := rapid.Map(rapid.IntRange(0, 4), func(n int) string { return fmt.Sprint("i", n) })
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			guest := id.Draw(t, "guest")
			spec := instance.Spec{UUID: guest, VCPUs: rapid.IntRange(1, 8).Draw(t, "vcpus"), MemoryMiB: rapid.IntRange(1, 999).Draw(t, "memory")}
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				l.keepInstanceLocked(&instance.Instance{UUID: guest, Spec: spec})
			case 1:
				l.dropInstanceLocked(guest)
			case 2:
				l.keepRecordLocked(&migration.Record{
					Role:      rapid.SampledFrom([]migration.Role{migration.RoleSource, migration.RoleDest}).Draw(t, "role"),
					Phase:     rapid.SampledFrom([]migration.Phase{migration.PhaseAwait, migration.PhaseEnd}).Draw(t, "phase"),
					Committed: rapid.Bool().Draw(t, "committed"),
					Migration: instance.Migration{UUID: "m" + guest, Instance: guest}, Instance: instance.Instance{UUID: guest, Spec: spec},
				})
			case 3:
				l.dropRecordLocked("dest/m" + guest)
			}
		}
		without := id.Draw(t, "without")
		var want inventory.Taken
		for guest, i := range l.instances {
			if guest != without {
				want = want.Add(i.Spec)
			}
		}
		for _, r := range l.records {
			if claims(*r) && r.Migration.Instance != without {
				want = want.Add(r.Instance.Spec)
			}
		}
		if got := l.takenWithout(without); got != want {
			t.Fatalf("taken without %s: %+v, want %+v", without, got, want)
		}
	})
}
