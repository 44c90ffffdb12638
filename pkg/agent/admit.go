package agent

import (
	"slices"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// Op is what a request asks of an instance, as far as admission tells requests apart.
type Op int

// The operations.
const (
	OpNone       Op = iota
	OpBuild         // build_and_run_instance
	OpTerminate     // terminate_instance
	OpStart         // start_instance
	OpStop          // stop_instance, asking the guest first
	OpStopNow       // stop_instance without asking
	OpRebootSoft    // reboot_instance SOFT
	OpRebootHard    // reboot_instance HARD
	OpFreeze        // pause, unpause, suspend, resume
	OpMigrate       // live_migration
	OpSteer         // live_migration_abort, live_migration_force_complete
	OpTell          // external_instance_event
)

// Ops lists all operations that can be asked.
func Ops() []Op {
	return []Op{OpBuild, OpTerminate, OpStart, OpStop, OpStopNow, OpRebootSoft, OpRebootHard, OpFreeze, OpMigrate, OpSteer, OpTell}
}

// String names an operation in errors.
func (o Op) String() string {
	names := map[Op]string{
		OpNone: "nothing", OpBuild: "a build", OpTerminate: "a termination", OpStart: "a start", OpStop: "a stop", OpStopNow: "a stop",
		OpRebootSoft: "a soft reboot", OpRebootHard: "a hard reboot", OpFreeze: "a pause or suspend", OpMigrate: "a live migration",
		OpSteer: "a migration's steering", OpTell: "an external event",
	}
	return names[o]
}

// Verdict says what becomes of a request.
type Verdict int

// The verdicts.
const (
	Run      Verdict = iota + 1 // carried out at admission, never waits for the lane
	Queue                       // joins the instance's lane
	TakeOver                    // what runs is ended early, then the lane goes on with this
	Refuse                      // conflict
)

/*
takes and refuses hold the cells of the admission matrix that are not "queue":
the row is what holds the instance (running or waiting in its lane), the column
what is asked. Steering and telling are carried out at admission in every row.

	              build  terminate start stop now  soft hard freeze migrate
	build          R      T         every other waits (q)
	terminate      R      q         every other is refused
	start          R      q         q     q   q    q    q    q      q
	stop           R      T         q     q   T    q    T    q      q
	stop now       R      q         q     q   q    q    q    q      q
	reboot soft    R      T         q     T   T    q    T    q      q
	reboot hard    R      q         q     q   q    q    q    q      q
	freeze         R      q         q     q   q    q    q    q      q
	migrate        R      T         every other is refused
*/
var takes = map[Op][]Op{ //nolint:exhaustive // the other rows have no such cell
	OpBuild:      {OpTerminate},
	OpStop:       {OpTerminate, OpStopNow, OpRebootHard},
	OpRebootSoft: {OpTerminate, OpStop, OpStopNow, OpRebootHard},
	OpMigrate:    {OpTerminate},
}

var refuses = map[Op][]Op{ //nolint:exhaustive // the other rows have no such cell
	OpTerminate: {OpStart, OpStop, OpStopNow, OpRebootSoft, OpRebootHard, OpFreeze, OpMigrate},
	OpMigrate:   {OpStart, OpStop, OpStopNow, OpRebootSoft, OpRebootHard, OpFreeze, OpMigrate},
}

// Admit is the admission matrix: what becomes of asked while held holds the
// instance. It is pure and total.
func Admit(held, asked Op) Verdict {
	switch {
	case asked == OpSteer || asked == OpTell:
		return Run
	case held == OpNone:
		return Queue
	case asked == OpBuild:
		return Refuse
	case has(takes[held], asked):
		return TakeOver
	case has(refuses[held], asked):
		return Refuse
	default:
		return Queue
	}
}

// admitAll asks the matrix for everything that holds the instance, the running
// operation first: one refusal refuses; a take-over only counts against what runs.
func admitAll(running Op, waiting []Op, asked Op) (verdict Verdict, because Op) {
	verdict = Admit(running, asked)
	if verdict == Refuse || verdict == Run {
		return verdict, running
	}
	for _, w := range waiting {
		if Admit(w, asked) == Refuse {
			return Refuse, w
		}
	}
	return verdict, running
}

func has(ops []Op, o Op) bool {
	return slices.Contains(ops, o)
}

// refusal is the error of a Refuse verdict.
func refusal(method, instanceID string, held Op) error {
	f := fault.Newf(fault.Conflict, method, instanceID, "%s holds the instance", held).WithDetail("held_by", held.String())
	if held == OpMigrate {
		return f.WithHint("wait for the migration to end, or end it with %s", api.LiveMigrationAbort)
	}
	return f.WithHint("wait for it to end")
}
