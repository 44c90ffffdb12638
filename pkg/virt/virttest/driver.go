// Package virttest is the contract that every driver passes: the full set of
// methods and, in Suite, what they promise. A driver that passes it can stand
// behind the agent; a fake that differs from the real one fails here.
package virttest

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Driver is everything the agent asks of a hypervisor, by duty. All methods are
// safe for concurrent use; ids are instance UUIDs; the promises are those of
// package virt. A method that would change a foreign domain answers conflict.
type Driver interface {
	Machines
	Power
	Mover
	Disks
	Host
}

// Machines defines, finds and removes domains.
type Machines interface {
	// List gives every domain of the host, foreign ones included.
	List(ctx context.Context) ([]virt.Domain, error)
	// Lookup gives one domain; not_found if there is none.
	Lookup(ctx context.Context, id string) (virt.Domain, error)
	// Check gives every reason why this host could not run the definition
	// (machine type, CPU, files that are missing); none: an empty slice. It changes nothing.
	Check(ctx context.Context, d virt.Definition) (reasons []string, err error)
	// Define makes the files (overlays, console log) and defines the domain, or
	// defines it anew from d if it exists (a running guest keeps running on its old definition).
	Define(ctx context.Context, d virt.Definition) error
	// Undefine removes the definition of a domain that is off; with files, also
	// everything Define made. conflict while it runs.
	Undefine(ctx context.Context, id string, files bool) error
	// Console gives the last n bytes of the guest's console, all of it for n <= 0.
	Console(ctx context.Context, id string, n int) ([]byte, error)
	// Stats reads the counters of a running domain; conflict if it is off.
	Stats(ctx context.Context, id string) (virt.Stats, error)
}

// Power starts and stops domains.
type Power interface {
	// Start starts a domain that is off. A managed save is discarded; Restore uses it.
	Start(ctx context.Context, id string) error
	// Shutdown asks the guest to go off and returns at once; conflict if it is not running.
	Shutdown(ctx context.Context, id string, how virt.ShutdownMethod) error
	// Destroy takes the power away and returns when the domain is off.
	Destroy(ctx context.Context, id string) error
	// Pause freezes a running guest, Unpause lets it go on; conflict if it is off.
	Pause(ctx context.Context, id string) error
	Unpause(ctx context.Context, id string) error
	// Save writes the memory to disk and stops (managed save), Restore starts from it;
	// Save of a domain that is off and Restore of one without a save are conflicts.
	Save(ctx context.Context, id string) error
	Restore(ctx context.Context, id string) error
}

// Mover moves running guests.
type Mover interface {
	// PrepareIncoming makes what a guest needs to arrive (files, folders) and says where
	// to send it. Idempotent by migration.
	PrepareIncoming(ctx context.Context, in virt.Incoming) (virt.Inbound, error)
	// CancelIncoming removes what PrepareIncoming made. It never touches a domain that runs
	// or that is paused in post-copy (conflict then).
	CancelIncoming(ctx context.Context, id, migration string) error
	// Migrate moves the guest and blocks until the hypervisor's job is over. Its error is a
	// hint, never the outcome (design section 7). The job goes on when ctx ends. conflict
	// while another job runs, and when the guest would be sent to where it is; invalid_argument
	// for a compression that is unknown or does not go with the rest of the request.
	Migrate(ctx context.Context, r virt.MigrateRequest) error
	// CheckLeaving says what a destination has to know of a guest, and every reason why this
	// host could not send it as asked, before a destination is known. It changes nothing.
	CheckLeaving(ctx context.Context, r virt.MigrateRequest) (virt.Leaving, error)
	// Job gives the running job, JobNone without one; not_found when the domain is gone,
	// conflict when it is off.
	Job(ctx context.Context, id string) (virt.Job, error)
	// CompletedJob gives the statistics of the last completed job, on either host; not_found
	// without one. On the source it may be lost with the domain.
	CompletedJob(ctx context.Context, id string) (virt.Job, error)
	// AbortJob ends the running job; conflict without one and in post-copy.
	AbortJob(ctx context.Context, id string) error
	// SetMaxDowntime and SetBandwidth (MiB/s, 0: no limit) steer a running job; in post-copy
	// the limit is of what is sent ahead.
	SetMaxDowntime(ctx context.Context, id string, d time.Duration) error
	SetBandwidth(ctx context.Context, id string, mib uint64) error
	// StartPostCopy switches a running job that allows it; there is no way back. conflict
	// without a job, and when the request did not allow it.
	StartPostCopy(ctx context.Context, id string) error
	// ResumePostCopy takes up a post-copy whose connection broke, with the request that
	// began it, and blocks as Migrate does. conflict when the guest's memory is not in two
	// places here; any other error leaves it so, and it may be asked again.
	ResumePostCopy(ctx context.Context, r virt.MigrateRequest) error
}

// Disks tells of guests' disks, for block migration.
type Disks interface {
	// Storage gives the facts of a definition's disks on this host, one for each, in the
	// spec's order; capacities where the domain is here. It changes nothing.
	Storage(ctx context.Context, d virt.Definition) (instance.StorageFacts, error)
	// RemoveDisks removes the storage of these targets from this host: their content lives
	// on another one. conflict while the domain is active; gone already is success.
	RemoveDisks(ctx context.Context, d virt.Definition, targets []string) error
}

// Ports is what a driver that can plug interfaces into a guest has beside Driver.
type Ports interface {
	// AttachPort gives a domain an interface on the port's tap, which must be there: in its
	// definition and, when it is on, in the guest. There already is success.
	AttachPort(ctx context.Context, id string, p instance.Port) error
	// DetachPort takes it away again, from a running guest when the guest lets go of it; timeout
	// when it never does. Gone already is success.
	DetachPort(ctx context.Context, id string, p instance.Port) error
}

// Host describes the machine and tells of events.
type Host interface {
	// Host gives what the machine is and has.
	Host(ctx context.Context) (virt.Host, error)
	// Subscribe calls fn for every event from now on, in order, from one goroutine, until
	// cancel. fn must not block. A driver that is connected at the time of the call sends
	// EventConnected first.
	Subscribe(fn func(virt.Event)) (cancel func())
	// Close ends the driver's goroutines and connections; guests stay as they are.
	Close() error
}
