package migration

import (
	"fmt"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Action is what a policy wants done.
type Action string

// The actions.
const (
	ActNone        Action = "none"
	ActSetDowntime Action = "set_downtime"
	ActPostCopy    Action = "post_copy"
	ActPause       Action = "pause"
	ActAbort       Action = "abort"
)

// Decision is a policy's answer to one snapshot.
type Decision struct {
	Action   Action
	Downtime time.Duration // of ActSetDowntime
	Reason   string        // of the others, for people
}

// Snapshot is one look at a running job. It holds all that a policy may know.
type Snapshot struct {
	Elapsed     time.Duration // since the monitor began to watch
	Job         virt.Job
	Track       Track
	Permitted   time.Duration // the downtime set last, by us; 0: none yet
	RaisedAt    time.Duration // when that was
	CanPostCopy bool          // the job was started so that it may switch
	PostCopy    bool          // it has switched: there is no way back
	Paused      bool          // we paused the guest
	Force       bool          // somebody asked for the end
}

// Track follows what remains over the iterations of a pre-copy. What QEMU calls
// remaining falls within an iteration and jumps up at the next, so the figure at
// the begin of an iteration is what tells whether a guest converges.
type Track struct {
	Base      uint64        // the iteration seen first, less one: the counter may go on from an earlier attempt
	Iteration uint64        // of the last look, from 1
	Start     uint64        // bytes that remained at its begin
	Best      uint64        // the lowest Start so far
	BestAt    time.Duration // when that was seen
	BestIter  uint64        // and in which iteration
}

// Observe gives the track after another look. A new minimum counts when it is
// lower by the part margin.
func (t Track) Observe(j virt.Job, elapsed time.Duration, margin float64) Track {
	return t.observe(&j, elapsed, margin)
}

func (t Track) observe(j *virt.Job, elapsed time.Duration, margin float64) Track {
	if j.Iteration == 0 { // the job has not begun to send
		return t
	}
	if t.Iteration == 0 {
		t.Base = j.Iteration - 1
	}
	iteration := j.Iteration - t.Base
	if iteration == t.Iteration {
		return t
	}
	t.Iteration, t.Start = iteration, j.Memory.Remaining
	if t.BestIter == 0 || float64(t.Start) < float64(t.Best)*(1-margin) {
		t.Best, t.BestAt, t.BestIter = t.Start, elapsed, iteration
	}
	return t
}

// Implied is the downtime that would be needed now: the best remaining over the
// measured bandwidth; 0 while either is unknown.
func (s *Snapshot) Implied() time.Duration {
	if s.Job.Bandwidth == 0 || s.Track.Iteration == 0 {
		return 0
	}
	return time.Duration(float64(s.Track.Best) / float64(s.Job.Bandwidth) * float64(time.Second))
}

// Policy decides on snapshots. It is data: what varies between requests and hosts.
type Policy struct { //nolint:recvcheck // Decide takes a value: it changes nothing
	Name     string         // nova, adaptive, pause_now or post_copy_now
	OnStall  OnStall        // on a stall or a passed timeout
	Timeout  time.Duration  // after which OnStall follows; 0: never
	Schedule []DowntimeStep // of nova
	Adaptive AdaptiveConfig // of adaptive
}

// Decide answers one snapshot. It is pure. Post-copy is a one-way door: behind it
// nothing is decided any more. A guest that we
// paused has twice the time, then it is let go on here.
func (p Policy) Decide(s Snapshot) Decision { return p.decide(&s) }

// decide is Decide without the copies: it is asked twenty thousand times a second.
func (p *Policy) decide(s *Snapshot) Decision {
	if d, decided := p.limits(s); decided {
		return d
	}
	switch p.Name {
	case instance.PolicyNova:
		return p.nova(s)
	case instance.PolicyPauseNow:
		if s.Track.Iteration == 0 && s.Job.Disk.Remaining > 0 { // the disks go first, beside a guest that runs
			return Decision{Action: ActNone}
		}
		return s.end(StallPause, "the policy is pause_now")
	case instance.PolicyPostCopyNow:
		if s.Track.Iteration == 0 {
			return Decision{Action: ActNone}
		}
		return s.end(StallPostCopy, "the policy is post_copy_now")
	default:
		return p.adaptive(s)
	}
}

// limits is what holds for every policy.
func (p *Policy) limits(s *Snapshot) (d Decision, decided bool) {
	none := Decision{Action: ActNone}
	late := func(limit time.Duration) bool { return limit > 0 && s.Elapsed > limit }
	switch {
	case s.PostCopy:
		return none, true
	case s.Force:
		return s.end(StallPostCopy, "asked to complete"), true
	case s.Paused && late(2*p.Timeout): // not even that helped: the link must be broken
		return s.end(StallAbort, fmt.Sprintf("not complete after %v although the guest stands still", 2*p.Timeout)), true
	case s.Paused:
		return none, true
	case late(p.Timeout):
		return s.end(p.OnStall, fmt.Sprintf("not complete after %v", p.Timeout)), true
	}
	return none, false
}

// end brings a migration to its end one way or the other.
func (s *Snapshot) end(how OnStall, why string) Decision {
	switch {
	case how == StallAbort:
		return Decision{Action: ActAbort, Reason: why}
	case how == StallPostCopy && s.CanPostCopy:
		return Decision{Action: ActPostCopy, Reason: why}
	case s.Paused:
		return Decision{Action: ActNone, Reason: "the guest is paused already"}
	default:
		return Decision{Action: ActPause, Reason: why}
	}
}

// nova steps the permitted downtime by the clock alone (nova.md 2.3).
func (p *Policy) nova(s *Snapshot) Decision {
	downtime, ok := DowntimeAt(p.Schedule, s.Elapsed)
	if !ok || downtime == s.Permitted {
		return Decision{Action: ActNone}
	}
	return Decision{Action: ActSetDowntime, Downtime: downtime}
}
