package migration

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
)

// keepEvery is how often the journal gets the timeline of a job that runs, beside each
// record that is written anyway.
const keepEvery = time.Minute

// keep journals the timeline and the progress, for whoever takes the job up after a
// restart. When the journal refuses, the next time will do.
func (m *monitor) keep(ctx context.Context) {
	if time.Since(m.keptAt) < keepEvery {
		return
	}
	m.keptAt = time.Now()
	if err := m.r.keep(ctx); err != nil {
		logkit.From(ctx).Debug("the timeline could not be journaled", logkit.Err(err))
	}
}

// keep writes the record as it stands, once.
func (r *run) keep(ctx context.Context) error {
	select {
	case r.saving <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-r.saving }()
	rec := r.record()
	rec.Timeline, rec.UpdatedAt = r.remembered(), time.Now()
	return r.s.ports.Journal.Save(ctx, rec)
}
