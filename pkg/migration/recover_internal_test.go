package migration

import (
	"testing"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// What the destination's answer says of a post-copy that is broken.
func TestAnswersToABrokenPostCopy(t *testing.T) {
	for _, c := range []struct {
		owned, superseded  bool
		state              virt.State
		reason             virt.Reason
		needless, hopeless bool
	}{
		{owned: true, superseded: true, needless: true},
		{owned: true, superseded: true, state: virt.Paused, reason: virt.ReasonUser, needless: true},
		{owned: true, state: virt.Running, reason: virt.ReasonBooted, needless: true},
		{owned: true, state: virt.Shutoff, reason: virt.ReasonDestroyed, needless: true},
		{owned: true, state: virt.Running, reason: virt.ReasonPostCopy},
		{owned: true, state: virt.Running, reason: virt.ReasonPostCopyFailed},
		{owned: true, state: virt.Paused, reason: virt.ReasonPostCopyFailed},
		{owned: true, state: virt.Paused, reason: virt.ReasonUser}, // which hides post-copy
		{owned: true, state: virt.NoState},
		{owned: true, hopeless: true},
		{state: virt.NoState},
		{state: virt.Running, reason: virt.ReasonPostCopy},
		{state: virt.Running, reason: virt.ReasonBooted},
		{state: virt.Shutoff, reason: virt.ReasonCrashed, hopeless: true},
		{hopeless: true},
	} {
		res := api.OwnedResult{Owned: c.owned, Superseded: c.superseded, State: string(c.state), Reason: string(c.reason)}
		if got := needless(res); got != c.needless {
			t.Errorf("needless(%+v) = %t", res, got)
		}
		if got := hopeless(res); got != c.hopeless {
			t.Errorf("hopeless(%+v) = %t", res, got)
		}
	}
}

// A guest that is owned and not to be seen may have moved on, and then the migration is
// completed; else nobody may say so.
func TestLawfulVerdict(t *testing.T) {
	for _, dest := range []Sight{SightAbsent, SightLeft} {
		for superseded, want := range map[bool]fault.Kind{true: "", false: fault.Conflict} {
			f := Facts{Source: SightLost, Dest: dest, Owned: true, Superseded: superseded}
			if err := lawfulVerdict(Record{}, f, VerdictCompleted); fault.KindOf(err) != want {
				t.Errorf("completed, %+v: %v", f, err)
			}
			if err := lawfulVerdict(Record{}, f, VerdictFailed); fault.KindOf(err) != fault.Conflict {
				t.Errorf("failed, %+v: %v", f, err)
			}
		}
	}
	f := Facts{Source: SightRunning, Owned: true, Superseded: true}
	if err := lawfulVerdict(Record{}, f, VerdictCompleted); fault.KindOf(err) != fault.Conflict {
		t.Errorf("completed, %+v: %v", f, err)
	}
}
