package migration

import (
	"math"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// ScheduleConfig is nova's live_migration_downtime (milliseconds count, at least
// 100), live_migration_downtime_steps (at least 3) and
// live_migration_downtime_delay (per GiB, whole seconds count, at least 3).
type ScheduleConfig struct {
	MaxDowntime time.Duration
	Steps       int
	DelayPerGB  time.Duration
}

// DowntimeStep permits Downtime once more than After has passed.
type DowntimeStep struct{ After, Downtime time.Duration }

// DowntimeSchedule is nova's linear ramp (nova.md 2.3): Steps+1 entries, from
// MaxDowntime/Steps up to MaxDowntime (or a millisecond below: nova truncates).
// Below one step there is none.
func DowntimeSchedule(c ScheduleConfig, dataGB float64) []DowntimeStep {
	if c.Steps < 1 {
		return nil
	}
	downtime := float64(c.MaxDowntime.Milliseconds())
	wait := time.Duration(c.DelayPerGB.Seconds()*dataGB) * time.Second
	base := downtime / float64(c.Steps)
	offset := (downtime - base) / float64(c.Steps)
	steps := make([]DowntimeStep, 0, c.Steps+1)
	for i := range c.Steps + 1 {
		// The inner conversion keeps the compiler from fusing the two operations,
		// whose result would differ between processors.
		ms := base + float64(offset*float64(i))
		steps = append(steps, DowntimeStep{After: wait * time.Duration(i), Downtime: time.Duration(ms) * time.Millisecond})
	}
	return steps
}

// DataGB is what nova scales its waits by (nova.md 2.2), in GiB: the memory and
// each copied disk, none of them below 2. A negative size is a disk that could not
// be read; it is skipped.
func DataGB(memoryMiB int, diskBytes []int64) float64 {
	const least = 2
	gb := max(float64(memoryMiB)/1024, least)
	for _, size := range diskBytes {
		if size >= 0 {
			gb += max(float64(size)/(1<<30), least)
		}
	}
	return gb
}

// DowntimeAt gives the last step whose After is strictly below elapsed; false
// before the first one. The strictness is nova's: nothing is set at once.
func DowntimeAt(steps []DowntimeStep, elapsed time.Duration) (time.Duration, bool) {
	for _, step := range slices.Backward(steps) {
		if elapsed > step.After {
			return step.Downtime, true
		}
	}
	return 0, false
}

// CompletionTimeout is nova's (nova.md 2.4): whole seconds, truncated; 0 is none.
func CompletionTimeout(perGB time.Duration, dataGB float64) time.Duration {
	return time.Duration(perGB.Seconds()*dataGB) * time.Second
}

// Progress is nova's percentage (nova.md 2.6): 0 without a total, rounded half to
// even, negative when more remains than the total.
func Progress(remaining, total uint64) int {
	if total == 0 {
		return 0
	}
	return 100 - int(math.RoundToEven(float64(remaining)*100/float64(total)))
}

// JobType is the kind of a domain's job, by libvirt's numbers.
type JobType = virt.JobType

// The job types.
const (
	JobNone      = virt.JobNone
	JobBounded   = virt.JobBounded
	JobUnbounded = virt.JobUnbounded
	JobCompleted = virt.JobCompleted
	JobFailed    = virt.JobFailed
	JobCancelled = virt.JobCancelled
)

// ResolveJobType is nova's find_job_type (nova.md 2.1): what became of a job that
// left no trace, from whether its guest is active on the source, or from the error
// of asking that. A guest that is not found has gone: completed.
func ResolveJobType(activeOnSource bool, err error) JobType {
	switch {
	case err != nil && fault.KindOf(err) == fault.NotFound:
		return JobCompleted
	case err != nil, activeOnSource:
		return JobFailed
	default:
		return JobCompleted
	}
}
