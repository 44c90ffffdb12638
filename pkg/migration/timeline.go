package migration

import (
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// keepMoments bounds a timeline; what happens oftener than it can hold is thinned out.
const keepMoments = 64

// timeline follows a job for people: a moment each interval, which doubles whenever the
// timeline is full, and one for each decision. Thousands of them are held at once, so
// what is kept is small; moments writes it out.
type timeline struct {
	every time.Duration
	kept  []glimpse
}

// glimpse is a moment as it is kept.
type glimpse struct {
	remaining uint64
	deed      *deed // nil: nothing was done
	atMS      uint32
	permitted uint32 // ms
	iteration uint32
	throttle  uint8 // percent
}

// deed is what a policy did, and why.
type deed struct {
	action Action
	reason string
}

// narrow fits a figure that is never negative into 32 bits; what is too large stays at
// the end (of milliseconds: seven weeks).
func narrow[T int64 | uint64](n T) uint32 {
	const end = 1<<32 - 1
	if n > end {
		return end
	}
	return uint32(n) //nolint:gosec // it fits
}

// add notes one look at the job and what the policy decided.
func (t *timeline) add(s *Snapshot, d Decision) {
	g := glimpse{
		atMS: narrow(s.Elapsed.Milliseconds()), remaining: s.Job.Memory.Remaining + s.Job.Disk.Remaining,
		permitted: narrow(s.Permitted.Milliseconds()), iteration: narrow(s.Job.Iteration), throttle: uint8(min(max(s.Job.Throttle, 0), 100)), //nolint:gosec // it fits
	}
	switch d.Action {
	case ActNone:
		if n := len(t.kept); n > 0 && time.Duration(g.atMS-t.kept[n-1].atMS)*time.Millisecond < t.every {
			return
		}
	case ActSetDowntime:
		g.deed, g.permitted = &deed{action: d.Action}, narrow(d.Downtime.Milliseconds())
	case ActPostCopy, ActPause, ActAbort:
		g.deed = &deed{action: d.Action, reason: d.Reason}
	}
	if len(t.kept) == cap(t.kept) { // append alone would take too much
		t.kept = append(make([]glimpse, 0, min(max(8, 2*len(t.kept)), keepMoments+1)), t.kept...)
	}
	t.kept = append(t.kept, g)
	if len(t.kept) > keepMoments {
		t.kept = thin(t.kept)
		t.every = max(2*t.every, time.Second)
	}
}

// thin leaves every second moment without a decision out; where decisions alone fill the
// timeline, the oldest go. It works in place.
func thin(kept []glimpse) []glimpse {
	out := kept[:0]
	last := len(kept) - 1
	for i, g := range kept {
		if g.deed != nil || i%2 == 0 || i == last {
			out = append(out, g)
		}
	}
	if over := len(out) - keepMoments; over > 0 {
		out = out[:copy(out, out[over:])]
	}
	return out
}

// moments writes the timeline out.
func (t *timeline) moments() []instance.Moment {
	var out []instance.Moment
	for _, g := range t.kept {
		m := instance.Moment{
			AtMS: int64(g.atMS), RemainingBytes: g.remaining, PermittedMS: int64(g.permitted),
			Iteration: uint64(g.iteration), ThrottlePercent: int(g.throttle),
		}
		if g.deed != nil {
			m.Action, m.Reason = string(g.deed.action), g.deed.reason
		}
		out = append(out, m)
	}
	return out
}

// remember adds a moment to the run's timeline.
func (r *run) remember(s *Snapshot, d Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.line.add(s, d)
}

// remembered gives the timeline so far.
func (r *run) remembered() []instance.Moment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.line.moments()
}

// throttled is the most that auto-converge took from the guest.
func throttled(moments []instance.Moment) int {
	most := 0
	for _, m := range moments {
		most = max(most, m.ThrottlePercent)
	}
	return most
}
