package agent

import (
	"context"
	"strconv"
	"strings"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/inventory"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// defaultConsoleTail is how much of a console is sent when the caller does not say.
const defaultConsoleTail = 64 << 10

// showInstance gives a record with the power state that the hypervisor has now.
// With the hypervisor away it is unavailable: an old power state would be a guess.
func (a *Agent) showInstance(ctx context.Context, args any) (any, error) {
	v, err := as[api.InstanceArgs](args)
	if err != nil {
		return nil, err
	}
	inst, known := a.ledger.instance(v.Instance)
	if !known {
		return nil, a.unknownInstance(api.ShowInstance, v.Instance)
	}
	d, err := a.hv.Lookup(ctx, v.Instance)
	switch {
	case err == nil:
		inst.PowerState = d.Power()
	case isGone(err):
		inst.PowerState = instance.PowerPending
	default:
		return nil, err
	}
	return api.InstanceResult{Instance: inst}, nil
}

// listInstances gives every record; one inventory of the hypervisor brings their power states.
func (a *Agent) listInstances(ctx context.Context, _ any) (any, error) {
	domains, err := a.hv.List(ctx)
	if err != nil {
		return nil, err
	}
	power := make(map[string]instance.PowerState, len(domains))
	for _, d := range domains {
		power[d.UUID] = d.Power()
	}
	all := a.ledger.all()
	for i := range all {
		all[i].PowerState = instance.PowerPending
		if p, ok := power[all[i].UUID]; ok {
			all[i].PowerState = p
		}
	}
	return api.InstancesResult{Instances: all}, nil
}

// listMigrations gives those that this host conducts or receives, ended ones as
// long as the journal keeps them.
func (a *Agent) listMigrations(context.Context, any) (any, error) {
	out := []instance.Migration{}
	for _, r := range a.ledger.migrations() {
		out = append(out, a.progress.of(r))
	}
	return api.MigrationsResult{Migrations: out}, nil
}

func (a *Agent) showMigration(_ context.Context, args any) (any, error) {
	v, err := as[api.ShowMigrationArgs](args)
	if err != nil {
		return nil, err
	}
	for _, role := range []migration.Role{migration.RoleSource, migration.RoleDest} {
		if r, ok := a.ledger.record(role, v.Migration); ok {
			return api.MigrationResult{Migration: a.progress.of(r)}, nil
		}
	}
	return nil, fault.Newf(fault.NotFound, api.ShowMigration, v.Migration, "host %s knows no such migration", a.cfg.Host).
		WithHint("compute-agent migration list shows those of all hosts")
}

func (a *Agent) hostInfo(context.Context, any) (any, error) { return a.hostView(), nil }

func (a *Agent) availableResource(context.Context, any) (any, error) { return a.resources(""), nil }

// resources counts instances and claims; without is left out, so that an instance
// does not stand in its own way.
func (a *Agent) resources(without string) api.Resources {
	facts, _, _ := a.machine.get()
	return inventory.Count(a.cfg.Inventory, facts, a.ledger.takenWithout(without), a.machine.foreignCount())
}

// console gives the end of a guest's console.
func (a *Agent) console(ctx context.Context, args any) (any, error) {
	v, err := as[api.ConsoleArgs](args)
	if err != nil {
		return nil, err
	}
	if _, known := a.ledger.instance(v.Instance); !known {
		return nil, a.unknownInstance(api.GetConsoleOutput, v.Instance)
	}
	n := v.TailLength
	if n == 0 {
		n = defaultConsoleTail
	}
	raw, err := a.hv.Console(ctx, v.Instance, n)
	if err != nil {
		return nil, err
	}
	return api.ConsoleResult{Output: strings.ToValidUTF8(string(raw), "\uFFFD")}, nil
}

func (a *Agent) diagnostics(ctx context.Context, args any) (any, error) {
	v, err := as[api.InstanceArgs](args)
	if err != nil {
		return nil, err
	}
	if _, known := a.ledger.instance(v.Instance); !known {
		return nil, a.unknownInstance(api.GetDiagnostics, v.Instance)
	}
	stats, err := a.hv.Stats(ctx, v.Instance)
	if err != nil {
		return nil, err
	}
	raw, err := rpc.JSON(stats)
	return api.DiagnosticsResult{Stats: raw}, err
}

// setEnabled is set_host_enabled: the switch is journaled and shown in the view.
func (a *Agent) setEnabled(ctx context.Context, j *job) (outcome, error) {
	args, err := as[api.HostEnabledArgs](j.args)
	if err != nil {
		return outcome{}, err
	}
	set := setting{Disabled: !args.Enabled}
	if set.Disabled {
		set.Reason = args.Reason
	}
	if err := a.ledger.commit(ctx, func(c *change) error { return c.putSetting(set) }); err != nil {
		return outcome{}, err
	}
	a.views.mark(rpc.Hosts, "")
	return outcome{result: a.hostView()}, nil
}

// externalEvents hands what happened outside to those who wait for it. A port
// event of a guest that is on its way out is passed on to where it goes.
func (a *Agent) externalEvents(ctx context.Context, j *job) (outcome, error) {
	args, err := as[api.ExternalEventArgs](j.args)
	if err != nil {
		return outcome{}, err
	}
	for _, e := range args.Events {
		if !a.net.Event(e) {
			logkit.From(ctx).Debug("an external event was for nobody here",
				logkit.Key("event").Of(e.Name), logkit.Instance.Of(e.Instance), logkit.Port.Of(e.Tag))
		}
		if dest := a.leavingTo(e.Instance); dest != "" {
			a.forward(ctx, dest, e)
		}
	}
	return outcome{}, nil
}

// leavingTo gives the destination of an instance's running migration.
func (a *Agent) leavingTo(id string) string {
	for _, r := range a.ledger.migrationsOf(id) {
		if r.Role == migration.RoleSource && !r.Ended() {
			return r.Migration.Dest
		}
	}
	return ""
}

func (a *Agent) forward(ctx context.Context, dest string, e api.ExternalEvent) {
	body, err := rpc.JSON(api.ExternalEventArgs{Events: []api.ExternalEvent{e}})
	if err == nil {
		_, err = a.bus.Call(ctx, dest, rpc.Message{
			Method: api.ExternalInstanceEvent, RequestID: instance.NewUUID(), Version: api.Needs(api.ExternalInstanceEvent), Args: body,
		})
	}
	if err != nil {
		logkit.From(ctx).Warn("an external event did not reach the destination", logkit.Peer.Of(dest), logkit.Instance.Of(e.Instance), logkit.Err(err))
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
