package vif

import "context"

// Tap is a host-side device, as it shall be or as it is.
type Tap struct {
	Name     string // instance.Port.Device
	Port     string // the port's UUID, from the label; empty: not labelled by us
	Instance string // the instance's UUID, from the label
	MAC      string // the host's side: fe and the last five octets of the guest's
	MTU      int    // 0 in a wish: leave the default
	Bridge   string // empty: in none
	Up       bool   // administratively; a wish is always up
	Carrier  bool   // somebody holds the other end; never part of a wish
	Kind     string // tap, or what else has the name (bridge, veth, …)
}

// Network is the backend that makes devices. Errors are pkg/fault errors:
// not_found for what is not there, precondition_failed for a bridge that is
// missing, conflict for a name that somebody else uses. All are safe for
// concurrent use.
type Network interface {
	// Make ensures the tap: makes it, or mends what differs. It reports whether it
	// made the device; what it made is gone again when it fails.
	Make(ctx context.Context, want Tap) (made bool, err error)
	// Remove removes the port's tap; gone already is success, somebody else's is a conflict.
	Remove(ctx context.Context, name, port string) error
	// Look gives the device of that name, of whatever kind; not_found without one.
	Look(ctx context.Context, name string) (Tap, error)
	// Taps gives every tap that carries our label.
	Taps(ctx context.Context) ([]Tap, error)
	// Bridges names the bridges of this host.
	Bridges(ctx context.Context) ([]string, error)
}
