package migration

import (
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// statusOf is the end that nova's tools know.
func (v Verdict) statusOf() instance.MigrationStatus {
	switch v {
	case VerdictCompleted:
		return instance.MigrationCompleted
	case VerdictFailed:
		return instance.MigrationFailed
	case VerdictCancelled:
		return instance.MigrationCancelled
	case VerdictUnknown, VerdictNone:
		return instance.MigrationError
	}
	return instance.MigrationError
}

// result collects what is known at the end.
func (r *run) result(rec Record, why error) *instance.Result {
	res := instance.Result{TotalMS: time.Since(rec.Migration.StartedAt).Milliseconds()}
	if rec.Migration.Result != nil {
		res.DowntimeMS = rec.Migration.Result.DowntimeMS
	}
	p := rec.Migration.Progress
	res.Bytes, res.Iterations = p.Memory.Processed+p.Disk.Processed, p.Iteration
	if j := r.completedJob(); j != nil {
		res.Bytes, res.Iterations = j.Memory.Processed+j.Disk.Processed, j.Iteration
		res.CompressedPages, res.CompressedBytes = j.Compressed.Pages, j.Compressed.Bytes
		if j.Downtime > 0 && j.Type == JobCompleted {
			res.DowntimeMS = j.Downtime.Milliseconds()
		}
	}
	res.Timeline = r.remembered()
	if len(res.Timeline) == 0 && rec.Migration.Result != nil { // of a walk before a restart
		res.Timeline = rec.Migration.Result.Timeline
	}
	res.ThrottlePercent = throttled(res.Timeline)
	switch {
	case why != nil:
		res.Reason = why.Error()
	case rec.AbortRequested:
		res.Reason = "completed: the abort came too late"
	}
	return &res
}
