package vif

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// Check gives every reason why the instance's ports could not be plugged on this
// host: a bridge that is missing or is none, a device name that somebody else uses,
// an MTU that a tap can't have, a binding that this version can't do. None: an empty
// slice. It changes nothing; its error means that the host's network could not be asked.
func (m *Manager) Check(ctx context.Context, instanceID string, ports []instance.Port) (reasons []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.TryTimeout)
	defer cancel()
	reasons = []string{}
	bridges, err := m.net.Bridges(ctx)
	if err != nil {
		return reasons, fault.Wrap(err, "check ports", "")
	}
	for _, p := range ports {
		found, err := m.obstacles(ctx, instanceID, p, bridges)
		if err != nil {
			return reasons, fault.Wrap(err, "check ports", p.ID)
		}
		for _, reason := range found {
			reasons = append(reasons, "port "+p.ID+": "+reason)
		}
	}
	return reasons, nil
}

// maxMTU is the most that the kernel gives a tap: 65535 less its Ethernet header.
const maxMTU = 65521

// obstacles is what stands in the way of one port.
func (m *Manager) obstacles(ctx context.Context, instanceID string, p instance.Port, bridges []string) (out []string, err error) {
	want, err := wish(instanceID, p)
	if err != nil {
		if reason, hint := unsupported(p); reason != "" {
			return []string{reason + ": " + hint}, nil
		}
		return []string{err.Error()}, nil
	}
	if want.MTU > maxMTU {
		out = append(out, fmt.Sprintf("mtu %d is more than a tap can have (%d)", want.MTU, maxMTU))
	}
	if want.Bridge != "" && !slices.Contains(bridges, want.Bridge) {
		reason, err := m.notBridge(ctx, want.Bridge, bridges)
		if err != nil {
			return nil, err
		}
		out = append(out, reason)
	}
	have, err := m.net.Look(ctx, want.Name)
	switch {
	case errors.Is(err, fault.NotFound):
	case err != nil:
		return nil, err
	default:
		if reason := taken(want, have); reason != "" {
			out = append(out, reason)
		}
	}
	return out, nil
}

// notBridge says why a name is none of this host's bridges.
func (m *Manager) notBridge(ctx context.Context, name string, bridges []string) (string, error) {
	have, err := m.net.Look(ctx, name)
	if err != nil && !errors.Is(err, fault.NotFound) {
		return "", err
	}
	reason, hint := bridgeReason(name, bridges)
	if err == nil && have.Kind != "bridge" { // else it came this moment
		hint = "device " + name + " is a " + have.Kind + "; " + hint
	}
	return reason + " (" + hint + ")", nil
}
