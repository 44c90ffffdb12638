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
	deeds []deed
}

// glimpse is a moment as it is kept.
type glimpse struct {
	remaining float32 // bytes, to seven digits
	atMS      uint32
	permitted uint32 // ms
	iteration uint32
	throttle  uint8 // percent
	deed      uint8 // its number in deeds, from 1; 0: nothing was done
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
	return uint32(n)
}

// add notes one look at the job and what the policy decided.
func (t *timeline) add(s *Snapshot, d *Decision) {
	g := glimpse{
		atMS: narrow(s.Elapsed.Milliseconds()), remaining: float32(s.Job.Memory.Remaining + s.Job.Disk.Remaining),
		permitted: narrow(s.Permitted.Milliseconds()), iteration: narrow(s.Job.Iteration), throttle: uint8(min(max(s.Job.Throttle, 0), 100)),
	}
	switch d.Action {
	case ActNone:
		if n := len(t.kept); n > 0 && time.Duration(g.atMS-t.kept[n-1].atMS)*time.Millisecond < t.every {
			return
		}
	case ActSetDowntime:
		g.permitted = narrow(d.Downtime.Milliseconds())
	case ActPostCopy, ActPause, ActAbort:
	}
	action := d.Action
	if action == ActNone {
		action = ""
	}
	t.put(g, action, d.Reason)
}

// put adds a moment; an empty action is none.
func (t *timeline) put(g glimpse, action Action, reason string) {
	t.makeRoom()
	if action != "" {
		t.deeds = append(t.deeds, deed{action: action, reason: reason})
		g.deed = uint8(len(t.deeds)) //nolint:gosec // at most one for each moment
	}
	t.kept = append(t.kept, g)
}

// makeRoom is append's growing, up to what a full timeline takes; that one is thinned out.
func (t *timeline) makeRoom() {
	switch n := len(t.kept); {
	case n == keepMoments:
		t.thin()
		t.every = max(2*t.every, time.Second)
	case n == cap(t.kept):
		t.kept = append(make([]glimpse, 0, min(max(8, 2*n), keepMoments)), t.kept...)
	}
}

// thin leaves every second moment without a decision out; where decisions alone fill the
// timeline, the oldest go.
func (t *timeline) thin() {
	out, last := t.kept[:0], len(t.kept)-1
	for i, g := range t.kept {
		if g.deed != 0 || i%2 == 0 || i == last {
			out = append(out, g)
		}
	}
	if over := len(out) - (keepMoments - 1); over > 0 {
		out = out[:copy(out, out[over:])]
	}
	var deeds []deed
	for i := range out {
		if n := out[i].deed; n != 0 {
			deeds = append(deeds, t.deeds[n-1])
			out[i].deed = uint8(len(deeds)) //nolint:gosec // fewer than before
		}
	}
	t.kept, t.deeds = out, deeds
}

// moments writes the timeline out.
func (t *timeline) moments() []instance.Moment {
	var out []instance.Moment
	for _, g := range t.kept {
		m := instance.Moment{
			AtMS: int64(g.atMS), RemainingBytes: uint64(g.remaining), PermittedMS: int64(g.permitted),
			Iteration: uint64(g.iteration), ThrottlePercent: int(g.throttle),
		}
		if g.deed != 0 {
			d := t.deeds[g.deed-1]
			m.Action, m.Reason = string(d.action), d.reason
		}
		out = append(out, m)
	}
	return out
}

// remember adds a moment to the run's timeline.
func (r *run) remember(s *Snapshot, d *Decision) {
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
