package migration

import (
	"fmt"
	"time"
)

// AdaptiveConfig tunes the policy adaptive. Zero fields mean the defaults, which
// are KubeVirt's (VEP 248 and 291), but for the first downtime (docs/decisions).
type AdaptiveConfig struct {
	DowntimeFirst  time.Duration // the permitted downtime at the start; 300 ms, QEMU's own default
	DowntimeStep   time.Duration // one raise; 150 ms
	DowntimeLimit  time.Duration // the highest; 1050 ms
	StartIteration uint64        // no raise before this iteration; 3
	Cooldown       time.Duration // between two raises; 10 s
	StallAfter     time.Duration // since the last minimum and the last raise; 40 s
	StallMargin    float64       // a minimum counts when it is lower by this part; 0.04
}

// WithDefaults fills what was left open.
func (c AdaptiveConfig) WithDefaults() AdaptiveConfig {
	c.DowntimeFirst = or(c.DowntimeFirst, 300*time.Millisecond)
	c.DowntimeStep = or(c.DowntimeStep, 150*time.Millisecond)
	c.DowntimeLimit = or(c.DowntimeLimit, 1050*time.Millisecond)
	c.StartIteration = or(c.StartIteration, 3)
	c.Cooldown = or(c.Cooldown, 10*time.Second)
	c.StallAfter = or(c.StallAfter, 40*time.Second)
	c.StallMargin = or(c.StallMargin, 0.04)
	return c
}

// adaptive permits a short downtime first and raises it step by step while the
// guest would need more; when that has gone on for long without what remains
// getting less, the migration has stalled. At least two iterations must have
// passed since the best one: a slow link alone is no stall.
func (p *Policy) adaptive(s *Snapshot) Decision {
	c := &p.Adaptive
	if s.Permitted == 0 {
		return Decision{Action: ActSetDowntime, Downtime: c.DowntimeFirst}
	}
	implied := s.Implied()
	if s.Track.Iteration < c.StartIteration || implied <= s.Permitted {
		return Decision{Action: ActNone}
	}
	if s.Permitted < c.DowntimeLimit && s.Elapsed-s.RaisedAt >= c.Cooldown {
		return Decision{Action: ActSetDowntime, Downtime: min(s.Permitted+c.DowntimeStep, c.DowntimeLimit)}
	}
	quiet := s.Elapsed - max(s.Track.BestAt, s.RaisedAt)
	if s.Track.Iteration < s.Track.BestIter+2 || quiet < c.StallAfter {
		return Decision{Action: ActNone}
	}
	return s.end(p.OnStall, fmt.Sprintf("stalled: no progress for %v, the guest would have to stand still for %v and may for %v",
		quiet.Round(time.Second), implied.Round(time.Millisecond), s.Permitted))
}
