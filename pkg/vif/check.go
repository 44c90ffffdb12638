package vif

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// Check gives every reason why the ports could not be plugged on this host: a
// bridge that is missing, a device name that somebody else uses, a binding that
// this version can't do. None: an empty slice. It changes nothing; its error
// means that the host's network could not be asked.
func (m *Manager) Check(ctx context.Context, ports []instance.Port) (reasons []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.TryTimeout)
	defer cancel()
	reasons = []string{}
	bridges, err := m.net.Bridges(ctx)
	if err != nil {
		return reasons, fault.Wrap(err, "check ports", "")
	}
	for _, p := range ports {
		reason, err := m.obstacle(ctx, p, bridges)
		if err != nil {
			return reasons, fault.Wrap(err, "check ports", p.ID)
		}
		if reason != "" {
			reasons = append(reasons, "port "+p.ID+": "+reason)
		}
	}
	return reasons, nil
}

// obstacle is what stands in the way of one port; empty: nothing.
func (m *Manager) obstacle(ctx context.Context, p instance.Port, bridges []string) (string, error) {
	want, err := wish("", p)
	if err != nil {
		if reason, hint := unsupported(p); reason != "" {
			return reason + ": " + hint, nil
		}
		return err.Error(), nil
	}
	if want.Bridge != "" && !slices.Contains(bridges, want.Bridge) {
		reason, hint := bridgeReason(want.Bridge, bridges)
		return fmt.Sprintf("%s (%s)", reason, hint), nil
	}
	have, err := m.net.Look(ctx, want.Name)
	switch {
	case errors.Is(err, fault.NotFound):
		return "", nil
	case err != nil:
		return "", err
	}
	return taken(want, have), nil
}
