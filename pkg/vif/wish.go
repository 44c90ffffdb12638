package vif

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// wish is the device that a port needs, or why this version can't make it
// (invalid_argument or precondition_failed).
func wish(instanceID string, p instance.Port) (Tap, error) {
	if err := p.Check(); err != nil {
		return Tap{}, fault.Wrap(err, "plug", p.ID)
	}
	if reason, hint := unsupported(p); reason != "" {
		return Tap{}, fault.New(fault.PreconditionFailed, "plug", p.ID, reason).WithHint("%s", hint).
			WithDetail("reasons", []string{reason})
	}
	return Tap{
		Name: p.Device(), Port: p.ID, Instance: instanceID, MAC: HostMAC(p.MAC), MTU: p.MTU, Bridge: p.Bridge, Up: true, Kind: kindTap,
	}, nil
}

// unsupported says what this version can't do for a port, and what to do instead.
func unsupported(p instance.Port) (reason, hint string) {
	switch {
	case p.Binding == instance.BindingOVS:
		return "binding ovs is not supported in this version", "use binding bridge, or binding tap and add the tap to Open vSwitch from outside"
	case p.VLAN != 0:
		return fmt.Sprintf("vlan %d is not supported with binding %s", p.VLAN, p.Binding), "name a bridge that is in that VLAN"
	}
	return "", ""
}

// HostMAC is the address of the host's side of a guest's tap: fe and the last five
// octets of the guest's, so that a bridge never takes it for its own (it prefers the
// lowest) and never sees the guest's address on the wrong side. libvirt gives the
// same to taps that it manages. What is not a MAC address gives "".
func HostMAC(guest string) string {
	mac, err := net.ParseMAC(guest)
	if err != nil || len(mac) != 6 {
		return ""
	}
	mac[0] = 0xfe
	return mac.String()
}

const kindTap = "tap"

// label is what an interface alias says of a tap of ours.
func label(port, instanceID string) string {
	return labelMark + " port=" + port + " instance=" + instanceID
}

const labelMark = "compute-agent"

// readLabel gives what a label says; empty for an alias that is not a label.
func readLabel(alias string) (port, instanceID string) {
	words := strings.Fields(alias)
	if len(words) == 0 || words[0] != labelMark {
		return "", ""
	}
	for _, w := range words[1:] {
		if v, ok := strings.CutPrefix(w, "port="); ok {
			port = v
		}
		if v, ok := strings.CutPrefix(w, "instance="); ok {
			instanceID = v
		}
	}
	return port, instanceID
}

// taken says why the device that is there can't become the wished one; empty: it
// can. A tap without a label that nobody holds is one of ours that an agent died
// over, or one that was made for us.
func taken(want, have Tap) string {
	switch {
	case have.Kind != kindTap:
		return fmt.Sprintf("device %s is a %s", have.Name, have.Kind)
	case have.Port == "" && have.Carrier:
		return fmt.Sprintf("device %s is not ours and in use", have.Name)
	case have.Port != "" && have.Port != want.Port:
		return fmt.Sprintf("device %s belongs to port %s, whose id begins alike", have.Name, have.Port)
	case have.Port != "" && have.Instance != want.Instance && want.Instance != "" && have.Carrier:
		return fmt.Sprintf("device %s is in use by instance %s", have.Name, have.Instance)
	}
	return ""
}

// takenError makes an error of a reason of taken.
func takenError(op, port, reason string) error {
	return fault.New(fault.Conflict, op, port, reason).
		WithHint("see it with `ip -d link show`; remove or rename it, or give the port another id")
}

// lacks says what a device misses to be the wished one; empty: it is. A wish without a bridge
// or an MTU takes what there is: with binding tap somebody else decides where it goes.
func lacks(want, have Tap) string {
	switch {
	case have.Port != want.Port || have.Instance != want.Instance:
		return "our label"
	case want.MAC != have.MAC:
		return "its MAC address"
	case want.MTU != 0 && want.MTU != have.MTU:
		return "its MTU"
	case want.Bridge != "" && want.Bridge != have.Bridge:
		return "its place in bridge " + want.Bridge
	case !have.Up:
		return "its link (it is down)"
	}
	return ""
}

// noBridge is the error for a bridge that is missing; the operator makes bridges.
func noBridge(op, port, bridge string, there []string) error {
	reason, hint := bridgeReason(bridge, there)
	return fault.New(fault.PreconditionFailed, op, port, reason).WithHint("%s", hint).WithDetail("reasons", []string{reason})
}

func bridgeReason(bridge string, there []string) (reason, hint string) {
	reason = fmt.Sprintf("there is no bridge %s on this host", bridge)
	if names := near(bridge, there); len(names) > 0 {
		return reason, "did you mean " + strings.Join(names, " or ") + "?"
	}
	if len(there) == 0 {
		return reason, "this host has no bridge; make one, e.g. `ip link add " + bridge + " type bridge`"
	}
	return reason, "make it; these are here: " + strings.Join(there, ", ")
}

// near gives the names that differ from one by at most two edits, best first.
func near(name string, all []string) []string {
	type scored struct {
		name string
		d    int
	}
	var hits []scored
	for _, n := range all {
		if d := distance(name, n); d <= 2 && d < len(name) {
			hits = append(hits, scored{n, d})
		}
	}
	slices.SortFunc(hits, func(a, b scored) int {
		if a.d != b.d {
			return a.d - b.d
		}
		return strings.Compare(a.name, b.name)
	})
	out := make([]string, len(hits))
	for i, h := range hits {
		out[i] = h.name
	}
	return out
}

// distance counts the edits (insert, delete, replace) between two names.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
