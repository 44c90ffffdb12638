package agent

import (
	"context"
	"testing"

	"github.com/compute-agent/compute-agent/pkg/virt"
)

// What an event has told of a guest is kept over a look that nobody told of: in the
// queue, and in the lane of the task that holds the guest.
func TestLookKeepsWhatWasTold(t *testing.T) {
	crashed := virt.Event{Kind: virt.EventCrashed, Domain: "i"}
	nobody := virt.Event{Domain: "i", Reason: reconciled}
	for name, order := range map[string][]virt.Event{"told first": {crashed, nobody}, "told last": {nobody, crashed}} {
		t.Run(name, func(t *testing.T) {
			a := &Agent{lanes: newLanes()}
			a.lanes.add("i", entry{task: Task{ID: "t"}})
			a.lanes.next(t.Context(), "i")
			for _, e := range order {
				a.lookAt(e)
				a.lanes.noteMissed(e)
			}
			if e := a.lanes.end("i"); e == nil || e.Kind != virt.EventCrashed {
				t.Errorf("the lane kept %v", e)
			}
			ctx, cancel := context.WithCancel(t.Context())
			_ = a.looks.Run(ctx, 1, func(_ context.Context, _ string, e virt.Event) error {
				if cancel(); e.Kind != virt.EventCrashed {
					t.Errorf("the queue kept %v", e)
				}
				return nil
			})
		})
	}
}
