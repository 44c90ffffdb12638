package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/inventory"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// owner is the agent's instance records as a migration changes them, and the
// journal of its own records. Each method is one transaction.
type owner struct{ a *Agent }

// Save implements [migration.Journal]. What a record says that is new is also told as an event.
// A guest that has arrived is looked at once more: what was heard of it before it was owned
// here, such as its death while the journal took nothing, was of no instance.
func (o owner) Save(ctx context.Context, r *migration.Record, line []instance.Moment) error {
	err := o.a.ledger.commit(ctx, func(c *change) error { return o.save(c, r, line) })
	if err == nil && r.Role == migration.RoleDest && r.Committed && r.Ended() {
		o.a.lookAt(virt.Event{Domain: r.Migration.Instance, Reason: reconciled})
	}
	return err
}

// Load implements [migration.Journal].
func (o owner) Load(role migration.Role, id string) (migration.Record, bool) {
	return o.a.ledger.record(role, id)
}

func (o owner) save(c *change, r *migration.Record, line []instance.Moment) error {
	was, _ := o.a.ledger.record(r.Role, r.Migration.UUID)
	if err := c.putRecord(r, line); err != nil {
		return err
	}
	m := &r.Migration
	if r.Role != migration.RoleSource || m.Status == was.Migration.Status && m.Phase == was.Migration.Phase && m.Mode == was.Migration.Mode {
		return nil
	}
	return c.event(state.OutEvent{
		Kind: api.EventMigration, ID: m.UUID, MsgID: fmt.Sprintf("%s/%s/%s/%s/%d", m.UUID, m.Phase, m.Status, m.Mode, r.UpdatedAt.UnixNano()),
	}, api.MigrationEvent{Migration: *m, At: c.now})
}

// CanClaim implements [migration.Owner].
func (o owner) CanClaim(_ context.Context, args api.PeerMigrateArgs) []string {
	var reasons []string
	if set := o.a.ledger.switched(); set.Disabled {
		reasons = append(reasons, disabledFault(o.a.cfg.Host, set.Reason).Error())
	}
	id := args.Instance.UUID
	if inst, known := o.a.ledger.instance(id); known {
		reasons = append(reasons, fmt.Sprintf("host %s has an instance %s already (%s)", o.a.cfg.Host, id, inst.VMState))
	}
	if r, claimed := o.a.claimOf(id); claimed && r.Migration.UUID != args.Migration {
		reasons = append(reasons, fmt.Sprintf("another migration of it comes here: %s", r.Migration.UUID))
	}
	if r, leaving := o.a.leavingOf(id); leaving { // its clean-up would take what is made for the guest
		reasons = append(reasons, fmt.Sprintf("migration %s, which took it away from here, has not ended yet (%s)", r.Migration.UUID, r.Migration.Status))
	}
	return append(reasons, inventory.Reasons(o.a.cfg.Inventory, o.a.resources(id), args.Instance.Spec)...)
}

// Claim implements [migration.Owner].
func (o owner) Claim(ctx context.Context, r migration.Record) error {
	reasons := o.CanClaim(ctx, api.PeerMigrateArgs{
		Migration: r.Migration.UUID, Generation: r.Migration.Generation, Source: r.Migration.Source, Instance: r.Instance,
	})
	if len(reasons) > 0 {
		return fault.New(fault.PreconditionFailed, "claim", r.Migration.Instance, strings.Join(reasons, "; ")).WithDetail("reasons", reasons)
	}
	return o.Save(ctx, &r, nil)
}

// Unclaim implements [migration.Owner].
func (o owner) Unclaim(ctx context.Context, r migration.Record) error { return o.Save(ctx, &r, nil) }

// Own implements [migration.Owner]: the commit point. The record with the higher
// generation appears here in the transaction that marks the claim as committed.
func (o owner) Own(ctx context.Context, r migration.Record) error {
	power, seen := o.a.power(ctx, r.Migration.Instance)
	err := o.a.ledger.commit(ctx, func(c *change) error {
		inst, known := c.instance(r.Migration.Instance)
		if known && inst.Generation >= r.Migration.Generation {
			return o.save(c, &r, nil) // it was owned before
		}
		inst = r.Instance
		inst.Host, inst.Generation = o.a.cfg.Host, r.Migration.Generation
		inst.TaskState, inst.Fault = instance.TaskNone, nil
		if seen {
			inst.PowerState = power
			inst.VMState = instance.VMStateOf(power, inst.VMState)
		}
		inst.Ports = o.a.portStatuses(inst)
		if err := c.putInstance(inst); err != nil {
			return err
		}
		if err := c.instanceEvent(inst, "arrived", "from "+r.Migration.Source, r.Migration.RequestID); err != nil {
			return err
		}
		return o.save(c, &r, nil)
	})
	if err == nil { // at once, but nothing waits for the bus: the guest may stand still until its ports and it go on
		green.SpawnN(o.a.base, func(ctx context.Context) error { //nolint:contextcheck // it outlives the request
			o.a.showNow(ctx, rpc.Instances, r.Migration.Instance)
			return nil
		})
	}
	return err
}

// Disown implements [migration.Owner]: the guest lives on the destination, the
// source forgets it. A record of a higher generation is a guest that came back: it stays.
func (o owner) Disown(ctx context.Context, r migration.Record) error {
	return o.a.ledger.commit(ctx, func(c *change) error {
		inst, known := c.instance(r.Migration.Instance)
		if known && inst.Generation < r.Migration.Generation {
			if err := c.dropInstance(inst.UUID); err != nil {
				return err
			}
			if err := c.instanceEvent(inst, "left", "to "+r.Migration.Dest, r.Migration.RequestID); err != nil {
				return err
			}
		}
		return o.save(c, &r, nil)
	})
}

// claimOf gives the open claim of a guest that is to come here.
func (a *Agent) claimOf(id string) (migration.Record, bool) {
	for _, r := range a.ledger.migrationsOf(id) {
		if claims(r) {
			return r, true
		}
	}
	return migration.Record{}, false
}

// leavingOf gives the migration that takes a guest away from here, until its clean-up has
// ended: as long as that may still remove something, the guest can't come back.
func (a *Agent) leavingOf(id string) (migration.Record, bool) {
	for _, r := range a.ledger.migrationsOf(id) {
		if r.Role == migration.RoleSource && waits(r) {
			return r, true
		}
	}
	return migration.Record{}, false
}

// arrivalBeat is how often awaitArrival looks.
const arrivalBeat = 50 * time.Millisecond

// awaitArrival lets a task wait for the end of the guest's own arrival. A guest that its
// source paused to let the migration end is owned here a moment before it goes on: a
// migration, pause or suspend that began in between would take it for one that its user
// paused, and be undone in its middle.
func (a *Agent) awaitArrival(ctx context.Context, method, id string) error {
	for began := time.Now(); ; {
		r, arrives := a.arrivalOf(id)
		switch {
		case !arrives:
			return nil
		case time.Since(began) > a.cfg.ArrivalWait:
			return fault.Newf(fault.Conflict, method, id, "its arrival by migration %s has not ended yet", r.Migration.UUID).
				WithHint("the hypervisor does not let it go on, see the agent's log; try again later")
		}
		if err := green.Sleep(ctx, arrivalBeat); err != nil {
			return context.Cause(ctx)
		}
	}
}

// arrivalOf gives the migration by which a guest came, until all of it is done.
func (a *Agent) arrivalOf(id string) (migration.Record, bool) {
	for _, r := range a.ledger.migrationsOf(id) {
		if r.Role == migration.RoleDest && r.Committed && !r.Ended() {
			return r, true
		}
	}
	return migration.Record{}, false
}

func claims(r migration.Record) bool {
	return r.Role == migration.RoleDest && !r.Ended() && !r.Committed
}

// Report implements [migration.Reporter]: progress goes to the view, at most as
// often as the publisher comes round; it is not journaled.
func (o owner) Report(m instance.Migration) { o.a.progress.put(&m) }
