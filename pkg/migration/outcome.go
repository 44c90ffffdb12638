package migration

import (
	"slices"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Verdict is how a migration ended, by the facts of both hosts.
type Verdict string

// The verdicts. Unknown is a lawful answer: nothing is destroyed, nothing goes on
// by itself, people decide.
const (
	VerdictNone      Verdict = "" // not decided yet
	VerdictCompleted Verdict = "completed"
	VerdictFailed    Verdict = "failed"
	VerdictCancelled Verdict = "cancelled"
	VerdictUnknown   Verdict = "unknown"
)

// Sight is what one host sees of the guest, as far as an outcome depends on it.
type Sight string

// The sights.
const (
	SightUnknown  Sight = "unknown"  // nobody could be asked
	SightAbsent   Sight = "absent"   // no such domain
	SightOff      Sight = "off"      // defined, and off for a reason of its own
	SightLeft     Sight = "left"     // off because it migrated away
	SightMoving   Sight = "moving"   // paused for the migration: incoming, or at its switch-over
	SightPaused   Sight = "paused"   // paused for a reason of its own: this host holds it
	SightRunning  Sight = "running"  // this host runs it
	SightPostCopy Sight = "postcopy" // runs here while memory still comes; on the source: paused behind it
	SightLost     Sight = "lost"     // post-copy broke: its memory is in two places
)

// Sights lists all of them.
func Sights() []Sight {
	return []Sight{
		SightUnknown, SightAbsent, SightOff, SightLeft, SightMoving, SightPaused, SightRunning, SightPostCopy, SightLost,
	}
}

// SightOf reads the answer of a lookup.
func SightOf(d virt.Domain, err error) Sight {
	switch {
	case err != nil && fault.KindOf(err) == fault.NotFound:
		return SightAbsent
	case err != nil:
		return SightUnknown
	}
	switch d.State {
	case virt.Running:
		return runningSight(d.Reason)
	case virt.Paused:
		return pausedSight(d.Reason)
	case virt.ShuttingDown, virt.Crashed, virt.PMSuspended: // it lives here, whatever it does
		return SightRunning
	case virt.Shutoff:
		if d.Reason == virt.ReasonMigrated {
			return SightLeft
		}
		return SightOff
	case virt.NoState:
		return SightUnknown
	}
	return SightAbsent // the wire's empty state: no domain
}

// sightIn reads a destination's answer.
func sightIn(res api.OwnedResult) Sight {
	return SightOf(virt.Domain{State: virt.State(res.State), Reason: virt.Reason(res.Reason)}, nil)
}

func runningSight(r virt.Reason) Sight {
	if r == virt.ReasonPostCopy {
		return SightPostCopy
	}
	if r == virt.ReasonPostCopyFailed {
		return SightLost
	}
	return SightRunning
}

func pausedSight(r virt.Reason) Sight {
	if slices.Contains([]virt.Reason{virt.ReasonMigrating, virt.ReasonMigrated, virt.ReasonStarting, virt.ReasonUnknown}, r) {
		return SightMoving
	}
	if split := runningSight(r); split != SightRunning {
		return split
	}
	return SightPaused
}

// Facts is all that an outcome may depend on, once the source's job is over.
type Facts struct {
	Source     Sight
	Dest       Sight
	Owned      bool    // the destination says that it has committed
	Superseded bool    // and that its guest was started anew there, has moved on or was deleted since
	PostCopy   bool    // the source was told to let the guest run on there while its memory follows
	Job        JobType // of this job's own end: its completed event, or that the hypervisor's call succeeded; JobNone: not known
}

// Outcome says how a migration ended. It is total: what the facts do not prove is
// unknown. A thrown error is no fact. The rules:
//
//   - a job that still runs has no outcome;
//   - memory that was split by post-copy and not healed proves nothing, unless the
//     destination's guest is seen to do without the source's half, or is superseded. A
//     guest that died on both hosts after that may have run on the destination last;
//   - a source that runs proves that the guest stayed, unless anything says that it
//     arrived too: then it runs twice, and the older copy is stopped when the destination
//     owns the guest (fence), else a person chooses. A destination that said nothing is
//     asked again before such a verdict counts (rollback);
//   - a destination that runs the guest, or has committed, has it;
//   - a destination where it only lies paused, for a reason of its own, has finished
//     the arrival: it has the guest unless the job is known to have failed;
//   - a source that holds it paused still has it when the destination does not. While the
//     destination is silent the job must be known to have failed: a guest that was paused
//     when it left lies so on both hosts once it has arrived.
func Outcome(f Facts) Verdict {
	switch {
	case f.Dest == SightLost, f.Job == JobBounded, f.Job == JobUnbounded:
		return VerdictUnknown
	case f.Source == SightRunning:
		if f.Owned || f.Job == JobCompleted || f.held() || f.Dest == SightLeft {
			return VerdictUnknown
		}
		return f.ended()
	case f.arrived():
		return VerdictCompleted
	case !f.Owned && f.Job != JobCompleted && f.stayed():
		return f.ended()
	default:
		return VerdictUnknown
	}
}

// held reports whether the destination's hypervisor holds a guest that arrived.
func (f Facts) held() bool {
	return f.Dest == SightRunning || f.Dest == SightPaused || f.Dest == SightPostCopy
}

// ended is the verdict on a guest that stayed.
func (f Facts) ended() Verdict {
	if f.Job == JobCancelled {
		return VerdictCancelled
	}
	return VerdictFailed
}

// gone reports whether the source let go of the guest by migrating it, as far as
// its hypervisor knows.
func (f Facts) gone() bool { return f.Source == SightLeft || f.Source == SightAbsent }

// arrived reports whether the guest is the destination's, given that it does not
// run on the source.
func (f Facts) arrived() bool {
	switch {
	case f.Owned:
		return f.whole()
	case f.Job == JobCompleted:
		return f.moved()
	case f.Source == SightLeft:
		return f.held() || f.Dest == SightUnknown || f.Dest == SightOff
	case f.Dest == SightRunning:
		return f.Source != SightUnknown
	case f.Dest == SightPaused: // where it stands on both hosts it ran nowhere since
		return f.Source == SightAbsent || f.Job == JobNone && f.stands()
	}
	return false
}

// whole reports whether a guest that the destination owns needs nothing of the source any more.
func (f Facts) whole() bool {
	switch f.Dest {
	case SightPostCopy: // the last word, RESUMED(migrated), may be late
		return f.Job == JobCompleted || f.Source == SightLeft
	case SightUnknown, SightAbsent: // where half of its memory is on the source, somebody must say why
		return f.Source != SightLost || f.Superseded
	case SightLost:
		return false
	case SightOff, SightLeft, SightMoving, SightPaused, SightRunning:
	}
	return true
}

// moved reports whether a job that completed has left the guest at the destination:
// nothing that is seen may speak against it.
func (f Facts) moved() bool {
	switch f.Dest {
	case SightRunning, SightPaused, SightPostCopy:
		return true
	case SightUnknown:
		return f.gone() || f.Source == SightOff
	case SightMoving, SightOff:
		return f.gone()
	case SightAbsent, SightLeft, SightLost:
		return false
	}
	return false
}

// stands reports whether the source holds the guest, paused.
func (f Facts) stands() bool { return f.Source == SightPaused || f.Source == SightMoving }

// stayed reports whether the guest is the source's although it does not run there,
// given that nothing says that it arrived.
func (f Facts) stayed() bool {
	ended := f.Job == JobFailed || f.Job == JobCancelled
	switch {
	case f.absent():
		return f.stands() || f.Source == SightOff && !f.mayHaveRun() // off: it died before it left
	case f.Dest == SightUnknown: // a guest that left paused lies so on both hosts once it has arrived
		return ended && f.Source == SightPaused
	case f.Dest == SightPaused:
		return ended && f.stands()
	case f.Dest == SightOff:
		return ended && f.Source == SightPaused
	}
	return false
}

// absent reports whether the destination never ran the guest: nothing is there, or
// a copy that waits.
func (f Facts) absent() bool { return f.Dest == SightAbsent || f.Dest == SightMoving }

// mayHaveRun reports whether the destination may have run a guest that nobody sees there any
// more: what it wrote since would be lost with the destination's disks.
func (f Facts) mayHaveRun() bool { return f.PostCopy && f.Dest == SightAbsent }

// Committed reports whether a domain found on the destination is the destination's
// own: the commit point. A domain that runs was resumed here, whether its memory is
// complete (RESUMED migrated) or still comes (RESUMED postcopy). A guest that was
// paused when it left, by its user or by the source, is not resumed: it is ours when it
// lies paused for that reason and the source's job has ended, which the source alone
// knows. A copy that waits
// (paused for the migration) is not ours.
func Committed(d virt.Domain, wasPaused, sourceJobEnded bool) bool {
	switch SightOf(d, nil) {
	case SightRunning, SightPostCopy, SightLost:
		return true
	case SightPaused:
		return wasPaused && sourceJobEnded
	case SightOff: // it ran here and ended in good order, or crashed
		return d.Reason == virt.ReasonShutdown || d.Reason == virt.ReasonCrashed
	case SightUnknown, SightAbsent, SightLeft, SightMoving:
		return false
	}
	return false
}
