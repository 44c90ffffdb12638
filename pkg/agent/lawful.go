package agent

import (
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// lawful checks what can be known before anything is done: that the instance is
// here, that the host takes newcomers, that a migration does not end where it
// begins. It is asked at admission when nothing is before the request, and always
// when its turn has come.
func (a *Agent) lawful(e endpoint, t Task, args any, inst instance.Instance, known bool) error {
	if !e.newcomer && !known {
		return a.unknownInstance(t.Method, t.Instance)
	}
	if e.now == nil {
		if err := a.frozen(t.Method, t.Instance); err != nil {
			return err
		}
	}
	switch v := args.(type) {
	case *api.BuildArgs:
		return a.lawfulBuild(t.Instance, inst, known)
	case *api.MigrateArgs:
		return a.lawfulMigration(t, v, inst)
	}
	return nil
}

func (a *Agent) lawfulMigration(t Task, args *api.MigrateArgs, inst instance.Instance) error {
	if args.Dest == a.cfg.Host {
		return alreadyHere(t.Method, args.Dest)
	}
	if r, used := a.ledger.record(migration.RoleSource, t.Migration); used && r.Migration.RequestID != t.ID {
		return fault.Newf(fault.Conflict, t.Method, t.Migration, "this migration UUID was used for a migration of %s", r.Migration.Instance).
			WithHint("make a new UUID for each migration, or leave it out: one is made")
	}
	if inst.VMState != instance.VMActive && inst.VMState != instance.VMPaused {
		return fault.Newf(fault.Conflict, t.Method, t.Instance, "the instance is %s; only an active or paused one can be migrated live", inst.VMState).
			WithHint("start it first: compute-agent instance start %s", t.Instance)
	}
	return nil
}

func (a *Agent) lawfulBuild(id string, inst instance.Instance, known bool) error {
	if r, claimed := a.claimOf(id); claimed {
		return fault.Newf(fault.Conflict, api.BuildAndRunInstance, id, "the instance is on its way here from %s (migration %s)", r.Migration.Source, r.Migration.UUID).
			WithHint("use a new UUID for a new instance")
	}
	if set := a.ledger.switched(); set.Disabled {
		return disabledFault(a.cfg.Host, set.Reason)
	}
	if known && (inst.VMState != instance.VMError || inst.TaskState != instance.TaskNone) {
		return fault.Newf(fault.Conflict, api.BuildAndRunInstance, inst.UUID, "the instance exists here (%s)", inst.VMState).
			WithHint("use a new UUID for a new instance")
	}
	return nil
}

func disabledFault(host, reason string) error {
	if reason == "" {
		reason = "no reason was given"
	}
	return fault.Newf(fault.Conflict, "", host, "the host is disabled: %s", reason).
		WithHint("choose another host, or enable this one: compute-agent host enable %s", host)
}

// unknownInstance says so, and where it went or comes from as far as is known.
func (a *Agent) unknownInstance(method, id string) error {
	f := fault.Newf(fault.NotFound, method, id, "no such instance on host %s", a.cfg.Host)
	var last migration.Record
	for _, r := range a.ledger.migrationsOf(id) {
		if r.Migration.StartedAt.After(last.Migration.StartedAt) {
			last = r
		}
	}
	switch m := last.Migration; {
	case m.UUID == "":
	case m.Dest == a.cfg.Host && !m.Status.Ended():
		return f.WithHint("it is on its way here from %s (migration %s)", m.Source, m.UUID)
	case m.Dest != a.cfg.Host && m.Status.Ended():
		return f.WithHint("it moved to %s (migration %s)", m.Dest, m.UUID)
	}
	return f.WithHint("compute-agent instance list shows where instances are")
}
