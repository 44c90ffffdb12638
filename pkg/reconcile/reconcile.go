// Package reconcile compares what the agent believes (its records) with what the
// hypervisor has (its domains) and says what to do about each difference. It is
// pure: the agent applies the repairs.
//
// Order of truth: hypervisor, then journal. Nothing is ever destroyed here: a
// domain that can't be explained is quarantined, which means reported and left
// alone until a person decides.
package reconcile

import (
	"fmt"
	"sort"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Action says what to do about one instance or domain.
type Action string

// The actions.
const (
	Keep       Action = "keep"       // belief and machine agree; ports are plugged again if it runs
	Restate    Action = "restate"    // vm_state follows the hypervisor
	Missing    Action = "missing"    // the record has no domain: error, with the reason
	Quarantine Action = "quarantine" // a domain of ours without a record, or with another generation: report, touch nothing
	Skip       Action = "skip"       // a task or migration holds it: its own recovery decides
)

// Repair is the verdict on one UUID.
type Repair struct {
	Instance string
	Action   Action
	VMState  instance.VMState // for Restate
	Active   bool             // the domain runs: its ports belong here
	Reason   string           // one sentence, for people
}

/*
Diff decides for every record and every domain of ours, by UUID:

	held by a task or migration ──────────────────────────▶ skip
	record, no domain:     building, error, deleted ──────▶ keep
	                       else ──────────────────────────▶ missing
	no record, our domain: ───────────────────────────────▶ quarantine
	both:                  domain's generation differs ───▶ quarantine
	                       vm_state does not fit ─────────▶ restate
	                       else ──────────────────────────▶ keep

held names the instances that a running task, a migration or a claim holds.
*/
func Diff(records []instance.Instance, domains []virt.Domain, held map[string]bool) []Repair {
	byID := make(map[string]virt.Domain, len(domains))
	for _, d := range domains {
		if d.Owned {
			byID[d.UUID] = d
		}
	}
	var repairs []Repair
	for _, r := range records {
		d, here := byID[r.UUID]
		delete(byID, r.UUID)
		repairs = append(repairs, judge(r, d, here, held[r.UUID]))
	}
	for id, d := range byID {
		if held[id] {
			repairs = append(repairs, Repair{Instance: id, Action: Skip, Active: d.Active(), Reason: "a claim or migration holds it"})
			continue
		}
		repairs = append(repairs, Repair{
			Instance: id, Action: Quarantine, Active: d.Active(),
			Reason: fmt.Sprintf("domain %s (%s) carries our mark but there is no record of it", d.Name, d.State),
		})
	}
	sort.Slice(repairs, func(i, j int) bool { return repairs[i].Instance < repairs[j].Instance })
	return repairs
}

func judge(r instance.Instance, d virt.Domain, here, held bool) Repair {
	out := Repair{Instance: r.UUID, Action: Keep, Active: here && d.Active()}
	switch {
	case held:
		out.Action, out.Reason = Skip, "a task or migration holds it"
	case !here && (r.VMState == instance.VMBuilding || r.VMState == instance.VMError || r.VMState == instance.VMDeleted):
	case !here:
		out.Action, out.Reason = Missing, fmt.Sprintf("the hypervisor has no domain of this %s instance", r.VMState)
	case d.Generation != r.Generation:
		out.Action = Quarantine
		out.Reason = fmt.Sprintf("the domain has generation %d, the record %d: it may belong to another host", d.Generation, r.Generation)
	default:
		if want := instance.VMStateOf(d.Power(), r.VMState); want != r.VMState {
			out.Action, out.VMState = Restate, want
			out.Reason = fmt.Sprintf("the record said %s, the hypervisor says %s", r.VMState, d.Power())
		}
	}
	return out
}
