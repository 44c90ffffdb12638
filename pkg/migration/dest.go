package migration

import (
	"context"

	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// Dest receives the guests that come to this host. Its methods may be called from
// any goroutine and are idempotent by migration UUID and generation.
type Dest struct {
	cfg   Config
	ports DestPorts
}

// NewDest makes a Dest; Start makes it listen.
func NewDest(cfg Config, ports DestPorts) *Dest {
	return &Dest{cfg: cfg.withDefaults(), ports: ports}
}

// Start subscribes to the hypervisor's events and watches the claims until ctx
// ends. It returns at once; call it before Resume and before any request.
func (d *Dest) Start(_ context.Context) error { return errSoon }

// Check lists every reason against the guest's coming (check_can_live_migrate_destination).
// All inbound slots taken is busy, with details.retry_after_seconds.
func (d *Dest) Check(_ context.Context, _ api.PeerMigrateArgs) (api.CheckResult, error) {
	return api.CheckResult{}, errSoon
}

// Prepare makes this host ready for the guest (pre_live_migration), or undoes what
// it made and says why not.
func (d *Dest) Prepare(_ context.Context, _ api.PeerMigrateArgs) (api.PreparedResult, error) {
	return api.PreparedResult{}, errSoon
}

// Post tells whether this host owns the guest, after taking it when the facts say
// that it has arrived (post_live_migration_at_destination).
func (d *Dest) Post(_ context.Context, _ api.PeerRefArgs) (api.OwnedResult, error) {
	return api.OwnedResult{}, errSoon
}

// Rollback undoes what Prepare made, and makes a later Prepare of the same
// migration a conflict (rollback_live_migration_at_destination). Conflict when the
// guest runs here.
func (d *Dest) Rollback(_ context.Context, _ api.PeerRefArgs) error { return errSoon }

// Resume takes up a record of the journal after a restart: finishes what is
// committed, undoes what was being prepared, waits on for what was promised.
func (d *Dest) Resume(_ context.Context, _ Record) error { return errSoon }
