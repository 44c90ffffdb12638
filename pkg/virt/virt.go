// Package virt is the language of machines: domains, jobs, events and what is
// asked of a hypervisor. It holds values only. The drivers (virt/libvirt,
// virt/fake) speak it; every consumer declares the few methods it needs as an
// interface of its own; virt/virttest declares all of them and tests that a
// driver keeps its promises.
//
// What every driver promises:
//   - Errors are pkg/fault errors: not_found for a domain that is not there,
//     unavailable while the hypervisor is away, conflict for a wrong state,
//     timeout when a call's bound passed, else internal with the hypervisor's text.
//   - "Already so" is success: starting a running domain, destroying one that is
//     off, undefining one that is gone, cancelling what was never prepared.
//   - Domains without our metadata are foreign: listed, never touched.
//   - Events come in order, from one goroutine, after the change they tell of.
package virt

import (
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// State is a domain's state, by libvirt's meaning.
type State string

// The states. Libvirt's "blocked" is running.
const (
	NoState      State = "nostate"
	Running      State = "running"
	Paused       State = "paused"
	ShuttingDown State = "shutting-down" // asked to go off, not yet there
	Shutoff      State = "shutoff"
	Crashed      State = "crashed"
	PMSuspended  State = "pmsuspended"
)

// Reason says why a domain is in its state, as far as anybody here decides by it.
type Reason string

// The reasons. Others are passed on by libvirt's own name.
const (
	ReasonUnknown        Reason = ""
	ReasonBooted         Reason = "booted"
	ReasonMigrated       Reason = "migrated"        // running: came here; shutoff: left
	ReasonMigrating      Reason = "migrating"       // paused: incoming, or at its switch-over
	ReasonPostCopy       Reason = "postcopy"        // running here while memory still comes; paused: left in post-copy
	ReasonPostCopyFailed Reason = "postcopy_failed" // paused, its memory is in two places
	ReasonUser           Reason = "user"
	ReasonSaved          Reason = "saved"
	ReasonShutdown       Reason = "shutdown"
	ReasonDestroyed      Reason = "destroyed"
	ReasonCrashed        Reason = "crashed"
	ReasonFailed         Reason = "failed"
	ReasonStarting       Reason = "starting"
	ReasonUnpaused       Reason = "unpaused"
	ReasonCanceled       Reason = "migration_canceled" // running: stood at its switch-over, and was let go on here
)

// Power maps a state to nova's power_state (nova.md section 0). A domain that is
// shutting down already counts as shutdown, as in nova.
func (s State) Power() instance.PowerState {
	switch s {
	case Running:
		return instance.PowerRunning
	case Paused:
		return instance.PowerPaused
	case ShuttingDown, Shutoff:
		return instance.PowerShutdown
	case Crashed:
		return instance.PowerCrashed
	case PMSuspended:
		return instance.PowerSuspended
	case NoState:
		return instance.PowerPending
	}
	return instance.PowerPending
}

// Domain is what the hypervisor says of one guest at one moment.
type Domain struct {
	UUID       string // equal to the instance's
	Name       string
	ID         int // the hypervisor's number while it runs, -1 when off; a new number is a new start
	State      State
	Reason     Reason
	Saved      bool // off with its memory saved (managed save)
	Persistent bool
	Owned      bool   // carries our metadata; false: foreign, never touch it
	Generation uint64 // from our metadata
	Migration  string // from our metadata: the migration that brought it here, if any
	VCPUs      int
	MemoryMiB  int
}

// Active reports whether the domain has a running hypervisor process.
func (d Domain) Active() bool { return d.ID >= 0 }

// Power is the domain's power_state; a managed save counts as suspended.
func (d Domain) Power() instance.PowerState {
	if d.Saved && !d.Active() {
		return instance.PowerSuspended
	}
	return d.State.Power()
}

// Definition is all a driver needs to define a domain: the record's spec and
// ports, and the metadata that marks it as ours.
type Definition struct {
	Spec       instance.Spec // ports included; each port's tap is Port.Device() and exists before the start
	Generation uint64
	Migration  string // set on a destination
	// Copies, on a destination, are the disks whose content comes with the guest: they must
	// not be there yet, and PrepareIncoming makes them, as large as told. All others are
	// there already or are made as Define would.
	Copies []instance.DiskFacts `json:",omitempty"`
	// TLS, on a destination, says that the guest comes over the hypervisor's own TLS.
	TLS bool `json:",omitempty"`
	// PostCopy, on a destination, says that it may switch to post-copy.
	PostCopy bool `json:",omitempty"`
	// Compression, on a destination, is how the memory is made smaller on its way, one of
	// [instance.Compressions]; empty: not at all.
	Compression string `json:",omitempty"`
	// CPU, on a destination, is the guest's CPU as the source's hypervisor describes it: the
	// one here must be able to give the same. Empty: not compared.
	CPU string `json:",omitempty"`
}

// Host is what the hypervisor host is and has.
type Host struct {
	Hostname          string   `json:"hostname"`
	MachineID         string   `json:"machine_id"` // stable identity of the machine (libvirt's host UUID)
	Driver            string   `json:"driver"`     // fake or libvirt
	HypervisorType    string   `json:"hypervisor_type"`
	HypervisorVersion string   `json:"hypervisor_version"`
	LibraryVersion    string   `json:"library_version,omitempty"`
	Arch              string   `json:"arch"`
	VCPUs             int      `json:"vcpus"`
	MemoryMiB         int      `json:"memory_mib"`
	DiskGiB           int      `json:"disk_gib"`      // where instances live
	DiskFreeGiB       int      `json:"disk_free_gib"` // there
	CPUModel          string   `json:"cpu_model,omitempty"`
	MachineTypes      []string `json:"machine_types,omitempty"`
	DomainTypes       []string `json:"domain_types,omitempty"` // kvm, qemu
}

// Stats are the counters of one running domain.
type Stats struct {
	CPUTimeNS uint64           `json:"cpu_time_ns"`
	MemoryKiB uint64           `json:"memory_kib"`
	RSSKiB    uint64           `json:"rss_kib,omitempty"`
	Disks     map[string]IO    `json:"disks,omitempty"` // by target device
	Nics      map[string]IO    `json:"nics,omitempty"`  // by host device
	Extra     map[string]int64 `json:"extra,omitempty"`
}

// IO counts bytes and requests (or packets) of one device.
type IO struct {
	ReadBytes  uint64 `json:"read_bytes"`
	WriteBytes uint64 `json:"write_bytes"`
	Reads      uint64 `json:"reads"`
	Writes     uint64 `json:"writes"`
	Errors     uint64 `json:"errors,omitempty"`
}

// ShutdownMethod is one way to ask a guest to go off (peers.md: never "any").
type ShutdownMethod string

// The methods that soft reboot and clean shutdown may list.
const (
	ShutdownACPI  ShutdownMethod = "acpi"
	ShutdownAgent ShutdownMethod = "agent"
)

// EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	EventStarted      EventKind = "started"
	EventResumed      EventKind = "resumed"
	EventSuspended    EventKind = "suspended" // paused, in libvirt's word
	EventStopped      EventKind = "stopped"
	EventShutdown     EventKind = "shutdown" // the guest goes off; stopped follows
	EventCrashed      EventKind = "crashed"
	EventPMSuspended  EventKind = "pmsuspended"
	EventDefined      EventKind = "defined"
	EventUndefined    EventKind = "undefined"
	EventRebooted     EventKind = "rebooted" // the guest reset itself
	EventIteration    EventKind = "migration-iteration"
	EventJobCompleted EventKind = "job-completed" // with the completed statistics
	EventConnected    EventKind = "connected"     // the hypervisor is reachable (again): take an inventory, events may be missing
	EventDisconnected EventKind = "disconnected"
)

// Event is one thing that happened to one domain, or to the connection (no Domain then).
type Event struct {
	Kind      EventKind
	Domain    string // UUID
	Reason    Reason // e.g. migrated, postcopy, user
	Iteration uint64 // of EventIteration
	Job       *Job   // of EventJobCompleted
	At        time.Time
}
