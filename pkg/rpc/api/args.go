package api

import (
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// NoArgs is the argument object of methods that take none.
type NoArgs struct{}

// InstanceArgs names one instance.
type InstanceArgs struct {
	Instance string `json:"instance"`
}

// Check implements [Checker].
func (a InstanceArgs) Check() error { return instance.CheckUUID("instance", a.Instance) }

// BuildArgs carries the spec of a new instance.
type BuildArgs struct {
	Spec instance.Spec `json:"spec"`
}

// Check implements [Checker].
func (a BuildArgs) Check() error { return a.Spec.Check() }

// StopArgs are stop_instance's.
type StopArgs struct {
	Instance      string `json:"instance"`
	CleanShutdown *bool  `json:"clean_shutdown,omitempty"` // default true: ask the guest first
}

// Check implements [Checker].
func (a StopArgs) Check() error { return instance.CheckUUID("instance", a.Instance) }

// Clean is CleanShutdown with its default.
func (a StopArgs) Clean() bool { return a.CleanShutdown == nil || *a.CleanShutdown }

// The two kinds of reboot.
const (
	RebootSoft = "SOFT"
	RebootHard = "HARD"
)

// RebootArgs are reboot_instance's.
type RebootArgs struct {
	Instance   string `json:"instance"`
	RebootType string `json:"reboot_type"`
}

// Check implements [Checker].
func (a RebootArgs) Check() error {
	if a.RebootType != RebootSoft && a.RebootType != RebootHard {
		return fault.Newf(fault.InvalidArgument, "", "reboot_type", "%q: use SOFT or HARD", a.RebootType)
	}
	return instance.CheckUUID("instance", a.Instance)
}

// The priorities of a migration's place in the queue.
const (
	PriorityUser  = "user"
	PriorityDrain = "drain"
)

// MigrateArgs are live_migration's and check_can_live_migrate_source's.
type MigrateArgs struct {
	Instance                 string `json:"instance"`
	Dest                     string `json:"dest"`
	Migration                string `json:"migration,omitempty"`                  // UUID; one is made if empty
	BlockMigration           *bool  `json:"block_migration,omitempty"`            // default: copy the disks that are not shared
	Policy                   string `json:"policy,omitempty"`                     // nova, adaptive, pause_now, post_copy_now; default: the host's
	BandwidthMiB             uint64 `json:"bandwidth_mib,omitempty"`              // MiB/s; 0: the host's default
	ParallelConnections      int    `json:"parallel_connections,omitempty"`       // 0: the host's default
	Compression              string `json:"compression,omitempty"`                // of the memory: xbzrle, mt, zlib, zstd, or none; default: the host's
	CompletionTimeoutSeconds int    `json:"completion_timeout_seconds,omitempty"` // 0: the policy's
	Priority                 string `json:"priority,omitempty"`                   // user (default) or drain
}

// Check implements [Checker].
func (a MigrateArgs) Check() error {
	ids := MigrationRefArgs{Instance: a.Instance, Migration: a.Migration}
	if err := ids.Check(); err != nil {
		return err
	}
	switch {
	case a.Dest == "":
		return fault.New(fault.InvalidArgument, "", "dest", "name the destination host").WithHint("compute-agent host list shows the hosts")
	case a.Policy != "" && !slices.Contains(instance.Policies(), a.Policy):
		return fault.Newf(fault.InvalidArgument, "", "policy", "%q: use %s", a.Policy, anyOf(instance.Policies()))
	case !slices.Contains([]string{"", PriorityUser, PriorityDrain}, a.Priority):
		return fault.Newf(fault.InvalidArgument, "", "priority", "%q: use user or drain", a.Priority)
	case a.ParallelConnections < 0 || a.ParallelConnections > 64:
		return fault.Newf(fault.InvalidArgument, "", "parallel_connections", "%d is not between 0 and 64", a.ParallelConnections)
	case a.Compression != "" && !slices.Contains(instance.CompressionWords(), a.Compression):
		return fault.Newf(fault.InvalidArgument, "", "compression", "%q: use %s", a.Compression, anyOf(instance.CompressionWords()))
	case a.CompletionTimeoutSeconds < 0:
		return fault.Newf(fault.InvalidArgument, "", "completion_timeout_seconds", "%d is negative", a.CompletionTimeoutSeconds)
	}
	return nil
}

// anyOf lists words as a sentence does: a, b or c.
func anyOf(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// MigrationRefArgs name one migration of one instance.
type MigrationRefArgs struct {
	Instance  string `json:"instance"`
	Migration string `json:"migration,omitempty"` // empty: the one that is in progress
}

// Check implements [Checker].
func (a MigrationRefArgs) Check() error {
	if a.Migration != "" {
		if err := instance.CheckUUID("migration", a.Migration); err != nil {
			return err
		}
	}
	return instance.CheckUUID("instance", a.Instance)
}

// maxBandwidthMiB is the most that libvirt counts (bytes/s in 63 bits).
const maxBandwidthMiB = 1<<43 - 1

// BandwidthArgs are live_migration_set_bandwidth's.
type BandwidthArgs struct {
	Instance     string `json:"instance"`
	Migration    string `json:"migration,omitempty"` // empty: the one that is in progress
	BandwidthMiB uint64 `json:"bandwidth_mib"`       // MiB/s from now on; 0: no limit
}

// Check implements [Checker].
func (a BandwidthArgs) Check() error {
	if a.BandwidthMiB > maxBandwidthMiB {
		return fault.Newf(fault.InvalidArgument, "", "bandwidth_mib", "%d is more than %d", a.BandwidthMiB, uint64(maxBandwidthMiB))
	}
	return MigrationRefArgs{Instance: a.Instance, Migration: a.Migration}.Check()
}

// The ways in which a person may decide on a migration.
const (
	ResolveCompleted = "completed" // the guest is the destination's
	ResolveFailed    = "failed"    // the guest is still the source's
)

// ResolveArgs are resolve_migration's.
type ResolveArgs struct {
	Migration string `json:"migration"`
	As        string `json:"as,omitempty"` // completed or failed; empty: only tell the facts
}

// Check implements [Checker].
func (a ResolveArgs) Check() error {
	if !slices.Contains([]string{"", ResolveCompleted, ResolveFailed}, a.As) {
		return fault.Newf(fault.InvalidArgument, "", "as", "%q: use completed or failed", a.As)
	}
	return instance.CheckUUID("migration", a.Migration)
}

// PeerMigrateArgs is what a source tells a destination of a guest that is to come.
type PeerMigrateArgs struct {
	Migration  string            `json:"migration"`
	Generation uint64            `json:"generation"` // that the destination will own
	Source     string            `json:"source"`
	Instance   instance.Instance `json:"instance"` // the source's record
	CPUModel   string            `json:"cpu_model,omitempty"`
	// Storage is what the source says of the disks. Copies, in pre_live_migration, are the
	// targets whose content comes with the guest.
	Storage instance.StorageFacts `json:"storage,omitzero"`
	Copies  []string              `json:"copies,omitempty"`
	TLS     bool                  `json:"tls,omitempty"` // it comes over the hypervisor's own TLS
	// PostCopy says that it may switch to post-copy; CPU is the guest's, as the source's
	// hypervisor describes it.
	PostCopy bool   `json:"post_copy,omitempty"`
	CPU      string `json:"cpu,omitempty"`
	// Compression is how the memory is made smaller on its way; empty: not at all.
	Compression string `json:"compression,omitempty"`
}

// Check implements [Checker].
func (a PeerMigrateArgs) Check() error {
	if err := instance.CheckUUID("migration", a.Migration); err != nil {
		return err
	}
	if a.Source == "" {
		return fault.New(fault.InvalidArgument, "", "source", "the source host is missing")
	}
	return a.Instance.Spec.Check()
}

// PeerRefArgs name a migration to its destination. SourceEnded says that the
// source's job is over and that its guest does not run there: the only sign by
// which a guest that was paused when it left is known to have arrived. Without
// it post_live_migration_at_destination only asks. Stopped says that the source
// paused the guest to let the migration end: on the destination it is to go on.
type PeerRefArgs struct {
	Migration   string `json:"migration"`
	Generation  uint64 `json:"generation"`
	Instance    string `json:"instance"`
	SourceEnded bool   `json:"source_ended,omitempty"`
	Stopped     bool   `json:"stopped,omitempty"`
}

// Check implements [Checker].
func (a PeerRefArgs) Check() error {
	if err := instance.CheckUUID("migration", a.Migration); err != nil {
		return err
	}
	return instance.CheckUUID("instance", a.Instance)
}

// ShowMigrationArgs name a migration.
type ShowMigrationArgs struct {
	Migration string `json:"migration"`
}

// Check implements [Checker].
func (a ShowMigrationArgs) Check() error { return instance.CheckUUID("migration", a.Migration) }

// ConsoleArgs are get_console_output's.
type ConsoleArgs struct {
	Instance   string `json:"instance"`
	TailLength int    `json:"tail_length,omitempty"` // bytes; 0: the last 64 KiB
}

// Check implements [Checker].
func (a ConsoleArgs) Check() error {
	if a.TailLength < 0 {
		return fault.Newf(fault.InvalidArgument, "", "tail_length", "%d is negative", a.TailLength)
	}
	return instance.CheckUUID("instance", a.Instance)
}

// HostEnabledArgs are set_host_enabled's.
type HostEnabledArgs struct {
	Enabled bool   `json:"enabled"`
	Reason  string `json:"reason,omitempty"` // shown to whoever is refused
}

// ExternalEvent is one entry of external_instance_event, as in nova.
type ExternalEvent struct {
	Name     string         `json:"name"` // network-vif-plugged, network-vif-unplugged, …
	Instance string         `json:"instance"`
	Tag      string         `json:"tag,omitempty"` // the port id of a network event
	Status   string         `json:"status"`        // completed, failed or in-progress
	Data     map[string]any `json:"data,omitempty"`
}

// ExternalEventArgs are external_instance_event's.
type ExternalEventArgs struct {
	Events []ExternalEvent `json:"events"`
}

// Check implements [Checker].
func (a ExternalEventArgs) Check() error {
	if len(a.Events) == 0 {
		return fault.New(fault.InvalidArgument, "", "events", "there is no event in it")
	}
	for _, e := range a.Events {
		if err := instance.CheckUUID("events.instance", e.Instance); err != nil {
			return err
		}
		switch e.Status {
		case "completed", "failed", "in-progress":
		default:
			return fault.Newf(fault.InvalidArgument, "", "events.status", "%q: use completed, failed or in-progress", e.Status)
		}
	}
	return nil
}
