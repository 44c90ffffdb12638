package migration

import (
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// keepMoments bounds a timeline; what happens oftener than it can hold is thinned out.
const keepMoments = 64

// timeline follows a job for people: a moment each interval, which doubles whenever the
// timeline is full, and one for each decision. Thousands of them are held at once, so
// what is kept is small, and what rarely changes is kept once for many moments; glimpses
// and moments spread it out.
type timeline struct {
	every  time.Duration
	lastMS uint32 // when the last one was
	kept   []point
	shifts []shift
	deeds  []deed
}

// point is the part of a moment that is another one each time.
type point struct {
	remaining float32 // bytes, to seven digits
	atMS      uint32
}

// shift is the rest of it, from one of the points on to the next shift.
type shift struct {
	permitted uint32 // ms
	iteration uint32
	throttle  uint8 // percent
	from      uint8
}

// alike compares shifts but for where they begin.
func (s shift) alike(other shift) bool {
	s.from = other.from
	return s == other
}

// deed is what a policy did at one of the points, and why.
type deed struct {
	action Action
	reason string
	at     uint8
}

// glimpse is a whole moment; an empty action is none.
type glimpse struct {
	point
	shift
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
		point: point{atMS: narrow(s.Elapsed.Milliseconds()), remaining: float32(s.Job.Memory.Remaining + s.Job.Disk.Remaining)},
		shift: shift{
			permitted: narrow(s.Permitted.Milliseconds()), iteration: narrow(s.Job.Iteration), throttle: uint8(min(max(s.Job.Throttle, 0), 100)),
		},
	}
	switch d.Action {
	case ActNone:
		if len(t.kept) > 0 && time.Duration(g.atMS-t.lastMS)*time.Millisecond < t.every {
			return
		}
	case ActSetDowntime:
		g.permitted = narrow(d.Downtime.Milliseconds())
	case ActPostCopy, ActPause, ActAbort:
	}
	if d.Action != ActNone {
		g.action, g.reason = d.Action, d.Reason
	}
	t.put(&g)
}

// put adds a moment; a full timeline is thinned out first.
func (t *timeline) put(g *glimpse) {
	if len(t.kept) == keepMoments {
		t.thin()
		t.every = max(2*t.every, time.Second)
	}
	g.from = uint8(len(t.kept)) //nolint:gosec // below keepMoments
	t.kept, t.lastMS = append(t.kept, g.point), g.atMS
	if n := len(t.shifts); n == 0 || !t.shifts[n-1].alike(g.shift) {
		t.shifts = append(t.shifts, g.shift)
	}
	if g.action != "" {
		t.deeds = append(t.deeds, deed{action: g.action, reason: g.reason, at: g.from})
	}
}

// thin leaves every second moment without a decision out; where decisions alone fill the
// timeline, the oldest go.
func (t *timeline) thin() {
	all := t.glimpses()
	out, last := all[:0], len(all)-1
	for i, g := range all {
		if g.action != "" || i%2 == 0 || i == last {
			out = append(out, g)
		}
	}
	if over := len(out) - (keepMoments - 1); over > 0 {
		out = out[over:]
	}
	t.kept, t.shifts, t.deeds = t.kept[:0], nil, nil
	for i := range out {
		t.put(&out[i])
	}
}

// glimpses spreads the timeline out.
func (t *timeline) glimpses() []glimpse {
	out := make([]glimpse, len(t.kept))
	for i, p := range t.kept {
		out[i].point = p
	}
	for n, s := range t.shifts {
		end := len(out)
		if n+1 < len(t.shifts) {
			end = int(t.shifts[n+1].from)
		}
		for i := int(s.from); i < end; i++ {
			out[i].shift = s
		}
	}
	for _, d := range t.deeds {
		out[d.at].action, out[d.at].reason = d.action, d.reason
	}
	return out
}

// moments writes the timeline out.
func (t *timeline) moments() []instance.Moment {
	var out []instance.Moment
	for _, g := range t.glimpses() {
		out = append(out, instance.Moment{
			AtMS: int64(g.atMS), RemainingBytes: uint64(g.remaining), PermittedMS: int64(g.permitted),
			Iteration: uint64(g.iteration), ThrottlePercent: int(g.throttle), Action: string(g.action), Reason: g.reason,
		})
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
