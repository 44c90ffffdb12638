package vif

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// updateKey is what is worked on one at a time. The instance is part of it, so that
// a stray update of a former owner doesn't replace the present one's.
type updateKey struct{ instance, port string }

// Update has a plugged port brought to new values by Run's workers: one at a
// time for each port, the newest values win. It returns at once. A port that is
// not plugged here when its turn comes is left alone.
func (m *Manager) Update(instanceID string, port instance.Port) {
	m.updates.Add(updateKey{instanceID, port.ID}, 0, port)
}

// Run serves the updates with Config.Workers workers until ctx ends, and gives
// its cause once those that were at work have returned. How an update ended is
// told by OnChange and Status.
func (m *Manager) Run(ctx context.Context) error {
	return m.updates.Run(ctx, m.cfg.Workers, m.mendPort)
}

// mendPort carries out one update.
func (m *Manager) mendPort(ctx context.Context, k updateKey, p instance.Port) error {
	want, err := wish(k.instance, p)
	if err != nil {
		return err
	}
	release, err := m.turns.take(ctx, p.ID)
	if err != nil {
		return err
	}
	defer release()
	if !m.plugged(k.instance, k.port) { // asked in its turn, or an unplug could come between
		logkit.From(ctx).Debug("an update for a port that is not plugged here", logkit.Instance.Of(k.instance), logkit.Port.Of(k.port))
		return nil
	}
	_, err = m.plugInTurn(ctx, want, p, m.cfg.MaxRetry)
	return err
}
