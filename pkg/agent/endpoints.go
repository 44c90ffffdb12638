package agent

import (
	"context"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// endpoint is one row of the table that routes requests: exactly one of read,
// verb and now is set.
type endpoint struct {
	op       Op                 // for admission
	holds    instance.TaskState // set while verb runs
	newcomer bool               // the instance need not be known here
	leaver   bool               // nor when the task is taken up again: it may have left
	read     func(*Agent, context.Context, any) (any, error)
	verb     func(*Agent, context.Context, *job) (outcome, error)
	now      func(*Agent, context.Context, *job) (outcome, error) // carried out at admission
}

// plain reports whether a task's begin asks for nothing but its instance's record.
func (e endpoint) plain() bool { return e.verb != nil && !e.newcomer && e.op != OpRebootSoft }

// endpoints is the table; a method that is not in it is unsupported.
func endpoints() map[string]endpoint {
	return map[string]endpoint{
		api.BuildAndRunInstance: {op: OpBuild, holds: instance.TaskSpawning, newcomer: true, verb: (*Agent).build},
		api.TerminateInstance:   {op: OpTerminate, holds: instance.TaskDeleting, verb: (*Agent).terminate},
		api.StartInstance:       {op: OpStart, holds: instance.TaskPoweringOn, verb: (*Agent).start},
		api.StopInstance:        {op: OpStop, holds: instance.TaskPoweringOff, verb: (*Agent).stop},
		api.RebootInstance:      {op: OpRebootSoft, holds: instance.TaskRebooting, verb: (*Agent).reboot},
		api.PauseInstance:       {op: OpFreeze, holds: instance.TaskPausing, verb: (*Agent).pause},
		api.UnpauseInstance:     {op: OpFreeze, holds: instance.TaskUnpausing, verb: (*Agent).unpause},
		api.SuspendInstance:     {op: OpFreeze, holds: instance.TaskSuspending, verb: (*Agent).suspend},
		api.ResumeInstance:      {op: OpFreeze, holds: instance.TaskResuming, verb: (*Agent).resume},
		api.LiveMigration:       {op: OpMigrate, holds: instance.TaskMigrating, leaver: true, verb: (*Agent).migrate},

		api.LiveMigrationAbort:         {op: OpSteer, now: (*Agent).abortMigration},
		api.LiveMigrationForceComplete: {op: OpSteer, now: (*Agent).forceMigration},
		api.LiveMigrationSetBandwidth:  {op: OpSteer, now: (*Agent).limitMigration},
		api.LiveMigrationRecover:       {op: OpSteer, now: (*Agent).recoverMigration},
		api.ResolveMigration:           {op: OpTell, newcomer: true, now: (*Agent).resolveMigration},
		api.ExternalInstanceEvent:      {op: OpTell, newcomer: true, now: (*Agent).externalEvents},
		api.SetHostEnabled:             {op: OpTell, newcomer: true, now: (*Agent).setEnabled},

		api.PreLiveMigration:      {read: (*Agent).prepareIncoming},
		api.PostLiveMigration:     {read: (*Agent).postIncoming},
		api.RollbackLiveMigration: {read: (*Agent).rollbackIncoming},

		api.CheckMigrateDestination: {read: (*Agent).checkIncoming},
		api.CheckMigrateSource:      {read: (*Agent).checkOutgoing},
		api.GetConsoleOutput:        {read: (*Agent).console},
		api.GetDiagnostics:          {read: (*Agent).diagnostics},
		api.ShowInstance:            {read: (*Agent).showInstance},
		api.ListInstances:           {read: (*Agent).listInstances},
		api.ListMigrations:          {read: (*Agent).listMigrations},
		api.ShowMigration:           {read: (*Agent).showMigration},
		api.GetHostInfo:             {read: (*Agent).hostInfo},
		api.GetAvailableResource:    {read: (*Agent).availableResource},
	}
}

// route finds the row of a method and checks how it came.
func (a *Agent) route(method string, style api.Style) (endpoint, error) {
	e, ok := a.endpoints[method]
	if !ok {
		return e, fault.New(fault.UnsupportedMethod, "", method, "this agent has no such method").
			WithHint("%s lists the methods of version %s", "docs/rpc.md", api.Version)
	}
	m, known := api.Find(method)
	if known && m.Style == api.Call && style == api.Cast {
		return e, fault.New(fault.InvalidArgument, "", method, "the method is a call: it is answered, send it as a request")
	}
	return e, nil
}

// decode reads the arguments of a method into their type.
func decode(method string, body []byte) (any, error) {
	m, ok := api.Find(method)
	if !ok {
		return nil, fault.New(fault.UnsupportedMethod, "", method, "no such method")
	}
	args := m.Args()
	return args, api.Decode(method, body, args)
}

// subjectOf names the instance and migration that arguments are about.
func subjectOf(args any) (instanceID, migrationID string) {
	switch v := args.(type) {
	case *api.InstanceArgs:
		return v.Instance, ""
	case *api.BuildArgs:
		return v.Spec.UUID, ""
	case *api.StopArgs:
		return v.Instance, ""
	case *api.RebootArgs:
		return v.Instance, ""
	case *api.MigrateArgs:
		return v.Instance, v.Migration
	case *api.MigrationRefArgs:
		return v.Instance, v.Migration
	case *api.BandwidthArgs:
		return v.Instance, v.Migration
	case *api.ExternalEventArgs:
		return sharedInstance(v.Events), ""
	default:
		return "", ""
	}
}

// sharedInstance is the instance that all events are about, empty if there are several.
func sharedInstance(events []api.ExternalEvent) string {
	id := ""
	for i, e := range events {
		if i > 0 && e.Instance != id {
			return ""
		}
		id = e.Instance
	}
	return id
}

// opOf refines the table's operation by the arguments.
func (e endpoint) opOf(args any) Op {
	switch v := args.(type) {
	case *api.StopArgs:
		if !v.Clean() {
			return OpStopNow
		}
	case *api.RebootArgs:
		if v.RebootType == api.RebootHard {
			return OpRebootHard
		}
	}
	return e.op
}
