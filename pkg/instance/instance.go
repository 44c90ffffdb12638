// Package instance holds the nouns of compute-agent: the instance with its
// spec, ports and states, and the migration that moves it; and the lawful moves
// between states. It does nothing: every floor above speaks with these words.
//
// Names of states are nova's (vm_state, task_state, power_state).
package instance

import (
	"time"

	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Instance is one guest as its owner, the agent of Host, knows it.
type Instance struct {
	UUID       string       `json:"uuid"`
	Name       string       `json:"name"`
	Host       string       `json:"host"`
	Generation uint64       `json:"generation"` // rises with each change of owner; of two records the higher one is right
	VMState    VMState      `json:"vm_state"`
	TaskState  TaskState    `json:"task_state,omitempty"`
	PowerState PowerState   `json:"power_state"` // derived from the hypervisor when the record is shown, never decided from memory
	Spec       Spec         `json:"spec"`
	Ports      []PortStatus `json:"ports,omitempty"`
	CreatedAt  time.Time    `json:"created_at"`
	UpdatedAt  time.Time    `json:"updated_at"`
	Fault      *fault.Error `json:"fault,omitempty"` // the last error, cleared by the next success
}

// PortState says how far a port is wired on this host.
type PortState string

// The states of a port on one host.
const (
	PortUnplugged PortState = "unplugged"
	PortPlugging  PortState = "plugging"
	PortPlugged   PortState = "plugged"
	PortFailed    PortState = "failed"
)

// PortStatus is a port of an instance and how it is wired here.
type PortStatus struct {
	Port
	State  PortState    `json:"state"`
	Device string       `json:"device,omitempty"` // the host-side device, e.g. tapdf8e1f1a-9f
	Fault  *fault.Error `json:"fault,omitempty"`
}

// CheckUUID refuses what is not a UUID in its canonical text form. what names
// the argument in the error.
func CheckUUID(what, id string) error {
	if u, err := uuid.Parse(id); err != nil || u.String() != id {
		return fault.Newf(fault.InvalidArgument, "", what, "%q is not a UUID in lower-case canonical form", id).
			WithHint("write it like 0b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b")
	}
	return nil
}

// NewUUID makes a time-ordered UUID (version 7) for requests, migrations and instances.
func NewUUID() string {
	u, err := uuid.NewV7()
	if err != nil { // the system's random source failed; version 4 panics with the reason
		return uuid.NewString()
	}
	return u.String()
}

// NewPortID makes a random UUID (version 4) for a port. A port's device is named
// after the beginning of its id, and those of version 7 that are made within a
// quarter of a second begin alike.
func NewPortID() string { return uuid.NewString() }
