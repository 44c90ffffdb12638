package migration

import (
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// keepMoments bounds a timeline; what happens oftener than it can hold is thinned out.
const keepMoments = 64

// timeline follows a job for people: a moment each interval, which doubles whenever the
// timeline is full, and one for each decision. It is a value; add never changes a slice
// that was given out.
type timeline struct {
	every   time.Duration
	moments []instance.Moment
}

// add notes one look at the job and what the policy decided.
func (t timeline) add(s Snapshot, d Decision) timeline {
	m := instance.Moment{
		AtMS: s.Elapsed.Milliseconds(), RemainingBytes: s.Job.Memory.Remaining + s.Job.Disk.Remaining,
		PermittedMS: s.Permitted.Milliseconds(), Iteration: s.Job.Iteration, ThrottlePercent: s.Job.Throttle,
	}
	switch d.Action {
	case ActNone:
		if n := len(t.moments); n > 0 && time.Duration(m.AtMS-t.moments[n-1].AtMS)*time.Millisecond < t.every {
			return t
		}
	case ActSetDowntime:
		m.Action, m.PermittedMS = string(d.Action), d.Downtime.Milliseconds()
	case ActPostCopy, ActPause, ActAbort:
		m.Action, m.Reason = string(d.Action), d.Reason
	}
	moments := append(append(make([]instance.Moment, 0, len(t.moments)+1), t.moments...), m)
	if len(moments) > keepMoments {
		moments = thin(moments)
		t.every = max(2*t.every, time.Second)
	}
	t.moments = moments
	return t
}

// thin leaves every second moment without a decision out; where decisions alone fill the
// timeline, the oldest go.
func thin(moments []instance.Moment) []instance.Moment {
	out := make([]instance.Moment, 0, len(moments))
	for i, m := range moments {
		if m.Action != "" || i%2 == 0 || i == len(moments)-1 {
			out = append(out, m)
		}
	}
	if over := len(out) - keepMoments; over > 0 {
		out = out[over:]
	}
	return out
}

// remember adds a moment to the run's timeline.
func (r *run) remember(s Snapshot, d Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.line = r.line.add(s, d)
}

// remembered gives the timeline so far.
func (r *run) remembered() []instance.Moment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.line.moments
}

// throttled is the most that auto-converge took from the guest.
func throttled(moments []instance.Moment) int {
	most := 0
	for _, m := range moments {
		most = max(most, m.ThrottlePercent)
	}
	return most
}
