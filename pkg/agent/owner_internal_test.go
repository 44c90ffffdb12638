package agent

import (
	"context"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// A guest that has died before it could be owned here, while the journal took nothing: what the
// hypervisor told of it then was of no instance. Its arrival ends with a look at it.
func TestArrivedGuestIsLookedAt(t *testing.T) {
	atDesk(t, Config{Host: "a"}, func(d *desk) {
		d.agent.bus = rpc.NewBus().Connect("a")
		id := instance.NewUUID()
		rec := migration.Record{
			Role: migration.RoleDest, Committed: true,
			Instance:  instance.Instance{UUID: id, Host: "b", Generation: 1, VMState: instance.VMActive, PowerState: instance.PowerRunning},
			Migration: instance.Migration{UUID: instance.NewUUID(), Instance: id, Source: "b", Dest: "a", Generation: 2, Status: instance.MigrationPost},
		}
		o := owner{d.agent}
		if err := o.Own(d.t.Context(), rec); err != nil {
			d.t.Fatal(err)
		}
		rec.Phase, rec.Migration.Status = migration.PhaseEnd, instance.MigrationCompleted
		if err := o.Save(d.t.Context(), &rec, nil); err != nil {
			d.t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
		defer cancel()
		_ = d.agent.looks.Run(ctx, 1, func(ctx context.Context, id string, e virt.Event) error { // it ends with ctx
			defer cancel()
			return d.agent.look(ctx, id, e)
		})
		i, known := d.agent.ledger.instance(id)
		if !known || i.VMState != instance.VMError || i.Fault == nil {
			d.t.Errorf("the record of a guest that has no domain: %s, fault %v; want an error", i.VMState, i.Fault)
		}
	})
}
