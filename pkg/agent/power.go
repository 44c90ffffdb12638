package agent

import (
	"context"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// destroyer is the hypervisor for those who take a guest's power on its owner's word: what
// a source still holds of that guest is wanted no more then. That is written down first, for
// the hypervisor's answer may be lost.
type destroyer struct {
	Hypervisor
	agent *Agent
}

// Destroy implements [reboot.Hypervisor].
func (d destroyer) Destroy(ctx context.Context, id string) error {
	if err := d.agent.dest.Supersede(ctx, id); err != nil {
		return err
	}
	return d.Hypervisor.Destroy(ctx, id)
}

// start starts an instance that is off, from its record: ports and definition are
// made anew, as nova's power-on does (nova.md section 3). One that runs is left alone.
func (a *Agent) start(ctx context.Context, j *job) (outcome, error) {
	d, err := a.hv.Lookup(ctx, j.inst.UUID)
	if err != nil && !isGone(err) {
		return outcome{}, err
	}
	if err == nil && d.Active() {
		if d.Power() == instance.PowerPaused {
			return outcome{}, fault.New(fault.Conflict, j.task.Method, j.inst.UUID, "the instance is paused").
				WithHint("compute-agent instance unpause %s", j.inst.UUID)
		}
		if j.resumed { // it was done before the agent stopped
			return outcome{event: "started"}, a.net.Activate(ctx, j.inst.UUID, portsOf(*j.inst))
		}
		return outcome{}, nil
	}
	if err := a.raise(ctx, *j.inst); err != nil {
		return outcome{}, err
	}
	return outcome{event: "started"}, nil
}

// stop asks the guest to go off, waits, and takes the power away.
func (a *Agent) stop(ctx context.Context, j *job) (outcome, error) {
	args, err := as[api.StopArgs](j.args)
	if err != nil {
		return outcome{}, err
	}
	if err := a.rebooter.Stop(ctx, j.inst.UUID, args.Clean()); err != nil {
		return outcome{}, err
	}
	return outcome{event: "stopped"}, a.defined(ctx, *j.inst)
}

// defined makes the domain of a guest that is off where none is left: one that was put
// off while its memory still arrived had no definition of its own yet.
func (a *Agent) defined(ctx context.Context, inst instance.Instance) error {
	if _, err := a.hv.Lookup(ctx, inst.UUID); !isGone(err) {
		return nil // it is there; and who can't tell finds out when it is started
	}
	return a.hv.Define(ctx, definitionOf(inst))
}

// reboot reboots softly or hard; the result says which of the two happened.
func (a *Agent) reboot(ctx context.Context, j *job) (outcome, error) {
	args, err := as[api.RebootArgs](j.args)
	if err != nil {
		return outcome{}, err
	}
	reboot := a.rebooter.Soft
	if args.RebootType == api.RebootHard {
		reboot = a.rebooter.Hard
	}
	r, err := reboot(ctx, definitionOf(*j.inst), j.task.DomainID)
	if err != nil {
		return outcome{}, err
	}
	return outcome{
		event: "rebooted", detail: r.Type,
		result: map[string]any{"reboot_type": r.Type, "reason": r.Reason, "took_ms": r.Took.Milliseconds()},
	}, nil
}

func (a *Agent) pause(ctx context.Context, j *job) (outcome, error) {
	return outcome{event: "paused"}, a.hv.Pause(ctx, j.inst.UUID)
}

func (a *Agent) unpause(ctx context.Context, j *job) (outcome, error) {
	return outcome{event: "unpaused"}, a.hv.Unpause(ctx, j.inst.UUID)
}

// suspend saves the guest's memory and stops it. Its ports stay plugged.
func (a *Agent) suspend(ctx context.Context, j *job) (outcome, error) {
	if d, err := a.hv.Lookup(ctx, j.inst.UUID); !j.resumed || err != nil || d.Power() != instance.PowerSuspended {
		if err := a.hv.Save(ctx, j.inst.UUID); err != nil {
			return outcome{}, err
		}
	}
	return outcome{event: "suspended", change: func(i *instance.Instance) { i.VMState = instance.VMSuspended }}, nil
}

// resume starts a suspended guest where it was.
func (a *Agent) resume(ctx context.Context, j *job) (outcome, error) {
	ports := portsOf(*j.inst)
	if err := a.net.Plug(ctx, j.inst.UUID, ports); err != nil {
		return outcome{}, err
	}
	if d, err := a.hv.Lookup(ctx, j.inst.UUID); !j.resumed || err != nil || !d.Active() { // else it was done before the agent stopped
		if err := a.hv.Restore(ctx, j.inst.UUID); err != nil {
			return outcome{}, err
		}
	}
	return outcome{event: "resumed"}, a.net.Activate(ctx, j.inst.UUID, ports)
}

func isGone(err error) bool { return fault.KindOf(err) == fault.NotFound }

// as gives decoded arguments their type; it fails only when the endpoint table and
// the api disagree.
func as[T any](args any) (T, error) {
	if v, ok := args.(*T); ok {
		return *v, nil
	}
	var zero T
	return zero, fault.Newf(fault.Internal, "", "", "the arguments are %T, want %T", args, zero)
}
