package migration

import "time"

// AdaptiveConfig tunes the policy adaptive. Zero fields mean the defaults, which
// are KubeVirt's (VEP 248 and 291).
type AdaptiveConfig struct {
	DowntimeFirst  time.Duration // the lowest permitted downtime; 150 ms
	DowntimeStep   time.Duration // one raise; 150 ms
	DowntimeLimit  time.Duration // the highest; 1050 ms
	StartIteration uint64        // no raise before this iteration; 3
	Cooldown       time.Duration // between two raises; 10 s
	StallAfter     time.Duration // without a new minimum of what remains; 60 s
	StallMargin    float64       // a minimum counts when it is lower by this part; 0.04
}

func (c AdaptiveConfig) withDefaults() AdaptiveConfig {
	c.DowntimeFirst = or(c.DowntimeFirst, 150*time.Millisecond)
	c.DowntimeStep = or(c.DowntimeStep, 150*time.Millisecond)
	c.DowntimeLimit = or(c.DowntimeLimit, 1050*time.Millisecond)
	c.StartIteration = or(c.StartIteration, 3)
	c.Cooldown = or(c.Cooldown, 10*time.Second)
	c.StallAfter = or(c.StallAfter, 60*time.Second)
	c.StallMargin = or(c.StallMargin, 0.04)
	return c
}
