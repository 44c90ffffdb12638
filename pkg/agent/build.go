package agent

import (
	"context"
	"errors"
	"strings"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/inventory"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

/*
build makes and starts an instance:

	check (room, hypervisor, ports) ─▶ plug ports ─▶ define ─▶ ports ready ─▶ start
	      all reasons at once              └───────────┴──────────────┴── a failure undoes them

Each step is idempotent, so a build that the agent's stop cut short goes through
them again. A build that the host can't satisfy leaves nothing; one that failed
later leaves the record, in error with the fault, and nothing else: it can be built
again under the same UUID, or deleted.
*/
func (a *Agent) build(ctx context.Context, j *job) (outcome, error) {
	inst := *j.inst
	if err := a.fits(ctx, inst); err != nil {
		j.refused = j.fresh
		return outcome{}, err
	}
	if err := a.raise(ctx, inst); err != nil {
		if a.stopping(ctx, err) { // the next start goes on with what is there
			return outcome{}, err
		}
		return outcome{}, errors.Join(err, a.raze(context.WithoutCancel(ctx), inst))
	}
	return outcome{
		event:  "built",
		change: func(i *instance.Instance) { i.VMState = instance.VMStateOf(i.PowerState, instance.VMActive) },
	}, nil
}

// fits names every reason why the host can't run the instance.
func (a *Agent) fits(ctx context.Context, inst instance.Instance) error {
	reasons, err := a.hv.Check(ctx, definitionOf(inst))
	if err != nil {
		return err
	}
	more, err := a.net.Check(ctx, inst.UUID, portsOf(inst))
	if err != nil {
		return err
	}
	reasons = append(reasons, more...)
	res := a.resources(inst.UUID)
	reasons = append(reasons, inventory.Reasons(a.cfg.Inventory, res, inst.Spec)...)
	if len(reasons) == 0 {
		return nil
	}
	return fault.Newf(fault.PreconditionFailed, api.BuildAndRunInstance, inst.UUID, "host %s can't run it: %s", a.cfg.Host, strings.Join(reasons, "; ")).
		WithHint("change the spec, or choose another host: compute-agent host list").WithDetail("reasons", reasons)
}

// raise makes everything of an instance and starts it.
func (a *Agent) raise(ctx context.Context, inst instance.Instance) error {
	ports := portsOf(inst)
	if err := a.net.Plug(ctx, inst.UUID, ports); err != nil {
		return err
	}
	if err := a.hv.Define(ctx, definitionOf(inst)); err != nil {
		return err
	}
	if err := a.net.Ready(ctx, inst.UUID, ports); err != nil {
		return err
	}
	if err := a.hv.Start(ctx, inst.UUID); err != nil {
		return err
	}
	return a.net.Activate(ctx, inst.UUID, ports)
}

// raze removes everything of an instance but its record; it goes on where it can
// and gives all that it could not do. A guest that may still run keeps its ports: the
// instance stays, and must not stay without them.
func (a *Agent) raze(ctx context.Context, inst instance.Instance) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.CleanupTimeout)
	defer cancel()
	err := ignoreGone(destroyer{a.hv, a}.Destroy(ctx, inst.UUID))
	if err == nil {
		err = errors.Join(
			ignoreGone(a.hv.Undefine(ctx, inst.UUID, true)),
			a.net.Unplug(ctx, inst.UUID, portsOf(inst)),
		)
	}
	if err != nil {
		logkit.From(ctx).Warn("something of the instance stayed behind", logkit.Err(err))
	}
	return err
}

func ignoreGone(err error) error {
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// terminate stops an instance and removes everything of it. The record goes last
// and only when nothing stayed behind.
func (a *Agent) terminate(ctx context.Context, j *job) (outcome, error) {
	if err := a.raze(ctx, *j.inst); err != nil {
		return outcome{}, err
	}
	return outcome{remove: true, event: "deleted"}, nil
}
