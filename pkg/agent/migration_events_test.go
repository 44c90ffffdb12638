package agent_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// A migration's events tell what is new of it, and nothing else: its record is written each
// minute, and for marks of its own.
func TestMigrationEventsAreNews(t *testing.T) {
	inBubble(t, func(r *rig) {
		id, m := r.build("a"), instance.NewUUID()
		move := r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: id, Dest: "b", Migration: m, BandwidthMiB: 1, CompletionTimeoutSeconds: 3600})
		r.pass(130 * time.Second) // longer than the bus remembers what it has had
		r.done(r.cast("a", api.LiveMigrationForceComplete, api.MigrationRefArgs{Instance: id}))
		r.done(move)
		var steps []string
		for _, e := range r.told(api.EventMigration, m) {
			var body api.MigrationEvent
			if err := json.Unmarshal(e.Body, &body); err != nil {
				t.Fatal(err)
			}
			steps = append(steps, string(body.Migration.Status)+" "+body.Migration.Phase+" "+string(body.Migration.Mode))
		}
		if twice := slices.Compact(slices.Clone(steps)); !cmp.Equal(twice, steps) {
			t.Errorf("told twice in a row: %q", steps)
		}
		if !slices.Contains(steps, "running perform paused") {
			t.Errorf("that the guest was paused was not told: %q", steps)
		}
	}, "a", "b")
}
