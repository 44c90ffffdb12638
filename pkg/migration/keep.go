package migration

import (
	"context"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// keepEvery is how often the journal gets the timeline of a job that runs, beside each
// record that is written anyway.
const keepEvery = time.Minute

// keep journals the timeline and the progress, for whoever takes the job up after a
// restart. When the journal refuses, the next time will do.
func (m *monitor) keep(ctx context.Context, now time.Time) {
	if now.Sub(m.keptAt) < keepEvery {
		return
	}
	m.keptAt = now
	if err := aside(ctx, m.r.keep); err != nil {
		logkit.From(ctx).Debug("the timeline could not be journaled", logkit.Err(err))
	}
}

// keep writes the record as it stands, once.
func (r *run) keep(ctx context.Context) error {
	if err := r.saving.take(ctx); err != nil {
		return err
	}
	defer r.saving.pass()
	rec := r.record()
	rec.UpdatedAt = time.Now()
	return r.s.ports.Journal.Save(ctx, &rec, r.lineOf(&rec))
}

// withTimeline is the record as the journal has it.
func (r *run) withTimeline() Record {
	rec := r.record()
	rec.Timeline = r.lineOf(&rec)
	return rec
}

// lineOf is the timeline as the journal gets it with a record. What is kept of a migration
// in memory holds it only once; so does an ended record, in its result.
func (r *run) lineOf(rec *Record) []instance.Moment {
	if rec.Ended() {
		return nil
	}
	return r.remembered()
}

// restored goes on with the timeline of an earlier walk.
func restored(moments []instance.Moment) timeline {
	var t timeline
	for _, m := range moments {
		t.put(&glimpse{
			point: point{remaining: float32(m.RemainingBytes), atMS: narrow(m.AtMS)},
			shift: shift{
				permitted: narrow(m.PermittedMS), iteration: narrow(m.Iteration), throttle: uint8(min(max(m.ThrottlePercent, 0), 100)),
			},
			action: Action(m.Action), reason: m.Reason,
		})
	}
	t.every = t.apart()
	return t
}

// apart is the interval at which moments were kept: most of them are that far apart, or a beat
// more; an interval is none or a second, doubled again and again.
func (t *timeline) apart() time.Duration {
	var gaps []uint32
	all := t.glimpses()
	for i := 1; i < len(all); i++ {
		if all[i].action == "" { // a decision does not wait for its time
			gaps = append(gaps, all[i].atMS-all[i-1].atMS)
		}
	}
	if len(gaps) == 0 {
		return 0
	}
	slices.Sort(gaps)
	median, every := time.Duration(gaps[len(gaps)/2])*time.Millisecond, time.Duration(0)
	for next := time.Second; next <= median; next *= 2 {
		every = next
	}
	return every
}
