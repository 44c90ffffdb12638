package migration

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Guests is what a migration asks about one guest, and does to it. The methods
// keep the promises of virttest.Machines and virttest.Power.
type Guests interface {
	Lookup(ctx context.Context, id string) (virt.Domain, error)
	Pause(ctx context.Context, id string) error
	Unpause(ctx context.Context, id string) error
	Destroy(ctx context.Context, id string) error // only of a paused copy whose guest is owned elsewhere
	Undefine(ctx context.Context, id string, files bool) error
}

// Mover moves a running guest; see virttest.Mover.
type Mover interface {
	CheckLeaving(ctx context.Context, r virt.MigrateRequest) (virt.Leaving, error)
	Migrate(ctx context.Context, r virt.MigrateRequest) error
	Job(ctx context.Context, id string) (virt.Job, error)
	CompletedJob(ctx context.Context, id string) (virt.Job, error)
	AbortJob(ctx context.Context, id string) error
}

// Steerer changes a job that runs; see virttest.Mover.
type Steerer interface {
	SetMaxDowntime(ctx context.Context, id string, d time.Duration) error
	SetBandwidth(ctx context.Context, id string, mib uint64) error
	StartPostCopy(ctx context.Context, id string) error
	ResumePostCopy(ctx context.Context, r virt.MigrateRequest) error
}

// Arrivals makes ready for a guest that is to come; see virttest.Mover.
type Arrivals interface {
	Check(ctx context.Context, d virt.Definition) (reasons []string, err error)
	PrepareIncoming(ctx context.Context, in virt.Incoming) (virt.Inbound, error)
	CancelIncoming(ctx context.Context, id, migration string) error
}

// Disks tells of a guest's disks and removes them; see virttest.Disks.
type Disks interface {
	Storage(ctx context.Context, d virt.Definition) (instance.StorageFacts, error)
	RemoveDisks(ctx context.Context, d virt.Definition, targets []string) error
}

// Events tells what happens to domains; see virttest.Host.
type Events interface {
	Subscribe(fn func(virt.Event)) (cancel func())
}

// Hypervisor is all that a migration needs of a driver, on either side.
type Hypervisor interface {
	Guests
	Mover
	Steerer
	Arrivals
	Disks
	Events
}

// Peer asks the agent of another host. Every method is one bounded call; errors
// keep the other host's fault kind, unavailable means that nobody answered.
type Peer interface {
	Check(ctx context.Context, host string, args api.PeerMigrateArgs) (api.CheckResult, error)
	Prepare(ctx context.Context, host string, args api.PeerMigrateArgs) (api.PreparedResult, error)
	Post(ctx context.Context, host string, args api.PeerRefArgs) (api.OwnedResult, error)
	Rollback(ctx context.Context, host string, args api.PeerRefArgs) error
	// Show gives a migration as that host knows it, whichever its role; not_found if it does not.
	Show(ctx context.Context, host, migration string) (instance.Migration, error)
}

// Plugger wires ports on this host. All methods are idempotent and end with ctx.
type Plugger interface {
	// Check gives every reason why Plug could not make the ports, as far as that can be
	// known without changing anything; none: an empty slice.
	Check(ctx context.Context, instanceID string, ports []instance.Port) (reasons []string, err error)
	// Plug makes the ports, final but silent: nothing is announced yet.
	Plug(ctx context.Context, instanceID string, ports []instance.Port) error
	// Ready waits until the ports can carry traffic.
	Ready(ctx context.Context, instanceID string, ports []instance.Port) error
	// Activate lets the ports speak: the guest runs here now.
	Activate(ctx context.Context, instanceID string, ports []instance.Port) error
	// Unplug removes them; what is gone already is success.
	Unplug(ctx context.Context, instanceID string, ports []instance.Port) error
}

// Journal is the memory across restarts.
type Journal interface {
	// Save stores the record with line as its Timeline, by role and migration; it is
	// durable when Save returns. The journal may keep r, which nobody changes any more.
	Save(ctx context.Context, r *Record, line []instance.Moment) error
	// Load gives a record as it was saved last.
	Load(role Role, migration string) (r Record, known bool)
}

// Owner keeps the agent's instance records. Each method is one transaction and
// idempotent by migration UUID.
type Owner interface {
	// CanClaim gives every reason against taking the guest (host disabled, room, an
	// instance or a claim of that UUID); none: it may be claimed. It changes nothing.
	CanClaim(ctx context.Context, args api.PeerMigrateArgs) (reasons []string)
	// Claim, on the destination, keeps room for the guest and journals that, or
	// refuses by the same rules (precondition_failed or conflict).
	Claim(ctx context.Context, r Record) error
	// Unclaim, on the destination, gives the room back; no claim is success.
	Unclaim(ctx context.Context, r Record) error
	// Own, on the destination, is the commit: the claim becomes the instance record
	// with r.Migration.Generation, host = this one, and is published.
	Own(ctx context.Context, r Record) error
	// Disown, on the source, removes the record and its view key: the guest lives on r.Migration.Dest.
	Disown(ctx context.Context, r Record) error
}

// Reporter hears each change of a migration's status, phase or progress, on its
// source. It must not block.
type Reporter interface {
	Report(m instance.Migration)
}

// SourcePorts is the world of a Source. All fields are required.
type SourcePorts struct {
	Hypervisor Hypervisor
	Peer       Peer
	Plugger    Plugger
	Journal    Journal
	Owner      Owner
	Reporter   Reporter
}

// DestPorts is the world of a Dest. All fields are required.
type DestPorts struct {
	Hypervisor Hypervisor
	Peer       Peer
	Plugger    Plugger
	Journal    Journal
	Owner      Owner
}
