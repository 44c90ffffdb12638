package migration

import (
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Role says which side of a migration a record belongs to.
type Role string

// The roles.
const (
	RoleSource Role = "source"
	RoleDest   Role = "dest"
)

// Phase is a row of a phase table.
type Phase string

// The phases of the source, in their order (design section 7).
const (
	PhaseAccept  Phase = "accept"
	PhaseQueue   Phase = "queue"
	PhaseCheck   Phase = "check"
	PhasePrepare Phase = "prepare"
	PhasePerform Phase = "perform"
	PhaseSwitch  Phase = "switch"
	PhaseClean   Phase = "clean"
)

// The phases of the destination, in their order.
const (
	PhaseClaim    Phase = "claim"
	PhaseFiles    Phase = "files"
	PhasePlug     Phase = "plug"
	PhaseReady    Phase = "ready"
	PhaseAwait    Phase = "await"    // prepared; the guest may come
	PhaseActivate Phase = "activate" // it runs here: the ports speak
	PhaseOwn      Phase = "own"      // and the record says so
)

// PhaseEnd is the last phase of both roles: nothing is left to do.
const PhaseEnd Phase = "end"

// Record is what is journaled, one per role and migration, before each side
// effect. Phase and Undoing are the cursor of the phase table: after a restart
// the walk goes on from there, forward or, when Undoing, backward.
type Record struct {
	Role      Role               `json:"role"`
	Phase     Phase              `json:"phase"`
	Undoing   bool               `json:"undoing,omitempty"`
	Migration instance.Migration `json:"migration"`
	Args      api.MigrateArgs    `json:"args,omitzero"` // source
	Instance  instance.Instance  `json:"instance"`      // the source's record; on the destination as received
	Inbound   virt.Inbound       `json:"inbound,omitzero"`

	// Storage is what the source says of the disks. Copies are those whose content goes with
	// the guest; with KeepFolder the instance's folder is the destination's too.
	Storage    instance.StorageFacts `json:"storage,omitzero"`
	Copies     []instance.DiskFacts  `json:"copies,omitempty"`
	KeepFolder bool                  `json:"keep_folder,omitempty"`
	Shared     []string              `json:"shared,omitempty"` // the writable targets that are the same at both hosts
	Cached     []string              `json:"cached,omitempty"` // those that only this host may read, because it caches them

	CPU            string  `json:"cpu,omitempty"`             // source: as its hypervisor describes it
	WasPaused      bool    `json:"was_paused,omitempty"`      // the guest was paused by its user when it left, and nobody let it go on
	Limited        bool    `json:"limited,omitempty"`         // source: Args.BandwidthMiB was set on request while it was under way
	AbortRequested bool    `json:"abort_requested,omitempty"` // source
	AbortReason    string  `json:"abort_reason,omitempty"`    // source: who or what asked
	PostCopy       bool    `json:"post_copy,omitempty"`       // source: the one-way door was opened
	PausedByUs     bool    `json:"paused_by_us,omitempty"`    // paused by the source to let the migration end
	OwnedThere     bool    `json:"owned_there,omitempty"`     // source: the destination has answered that it owns the guest
	RolledBack     bool    `json:"rolled_back,omitempty"`     // source: the destination answered that nothing is left there
	Verdict        Verdict `json:"verdict,omitempty"`         // source: how it ends, once known
	Committed      bool    `json:"committed,omitempty"`       // destination: it owns the guest
	Superseded     bool    `json:"superseded,omitempty"`      // destination: its owner destroys the domain that arrived, or has
	Settling       bool    `json:"settling,omitempty"`        // source: it goes on after a freeze; its task has ended long ago
	Resolved       Verdict `json:"resolved,omitempty"`        // source: what a person decided

	// Timeline is how the job went until the record was last written, so that a restart does not lose it.
	Timeline []instance.Moment `json:"timeline,omitempty"` // source

	UpdatedAt time.Time `json:"updated_at"`
}

// NewRecord makes the record of a migration that source conducts: the first
// thing to journal, before any side effect. A UUID is made if args has none.
// The destination will own one generation above the instance's.
func NewRecord(inst instance.Instance, args api.MigrateArgs, source, requestID string) Record {
	if args.Migration == "" {
		args.Migration = instance.NewUUID()
	}
	now := time.Now()
	return Record{
		Role:  RoleSource,
		Phase: PhaseAccept,
		Migration: instance.Migration{
			UUID:       args.Migration,
			Generation: inst.Generation + 1,
			Instance:   inst.UUID,
			Source:     source,
			Dest:       args.Dest,
			RequestID:  requestID,
			Status:     instance.MigrationAccepted,
			Phase:      string(PhaseAccept),
			Mode:       instance.ModePreCopy,
			Policy:     args.Policy,
			StartedAt:  now,
			UpdatedAt:  now,
		},
		Args:      args,
		Instance:  inst,
		UpdatedAt: now,
	}
}

// Ended reports whether nothing is left to do for the record.
func (r Record) Ended() bool { return r.Phase == PhaseEnd }

// Frozen reports whether the outcome is unknown and people decide. Run of a frozen
// record looks at the facts again and goes on when they have become clear.
func (r Record) Frozen() bool { return r.Migration.Status == instance.MigrationError }

// advance gives the record at a phase, with the matching status and time.
func (r Record) advance(p Phase, status instance.MigrationStatus, undoing bool) Record {
	r.Phase, r.Undoing = p, undoing
	r.Migration.Phase = string(p)
	if undoing {
		r.Migration.Phase = "undo " + string(p)
	}
	if status != "" {
		r.Migration.Status = status
	}
	r.UpdatedAt = time.Now()
	r.Migration.UpdatedAt = r.UpdatedAt
	return r
}

// ref names the migration to the other host.
func (r Record) ref(sourceEnded bool) api.PeerRefArgs {
	return api.PeerRefArgs{
		Migration:   r.Migration.UUID,
		Generation:  r.Migration.Generation,
		Instance:    r.Migration.Instance,
		SourceEnded: sourceEnded,
		Stopped:     r.PausedByUs,
	}
}

// ports gives the ports of the guest: of its record, or of its spec.
func (r Record) ports() []instance.Port {
	if len(r.Instance.Ports) == 0 {
		return r.Instance.Spec.Ports
	}
	ports := make([]instance.Port, 0, len(r.Instance.Ports))
	for _, p := range r.Instance.Ports {
		ports = append(ports, p.Port)
	}
	return ports
}

// definition is the guest as the destination's driver will know it.
func (r Record) definition() virt.Definition {
	spec := r.Instance.Spec
	spec.Ports = r.ports()
	return virt.Definition{Spec: spec, Generation: r.Migration.Generation, Migration: r.Migration.UUID, Copies: r.Copies}
}

// here is the guest as the source's driver knows it.
func (r Record) here() virt.Definition {
	d := r.definition()
	d.Generation, d.Migration, d.Copies = r.Instance.Generation, "", nil
	return d
}
