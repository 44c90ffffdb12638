package agent

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// migrate conducts a live migration from this host. A task that the agent's stop
// cut short finds its record in the journal and goes on from its phase.
func (a *Agent) migrate(ctx context.Context, j *job) (outcome, error) {
	rec, err := a.migrationAside(ctx, j)
	if err != nil {
		return outcome{}, err
	}
	if rec.Phase == migration.PhaseEnd { // the agent stopped between its end and the task's
		return overAlready(rec)
	}
	m, err := a.source.Run(ctx, rec)
	return resultOf(m), err
}

// What is below keeps its copies off the lane's stack.

//go:noinline
func overAlready(rec *migration.Record) (outcome, error) {
	return resultOf(&rec.Migration), endOf(&rec.Migration)
}

// resultOf is what a migration's task tells.
//
//go:noinline
func resultOf(m *instance.Migration) outcome {
	return outcome{result: api.MigrationResult{Migration: *m}}
}

// migrationAside is migrationOf on a stack of its own: the lane's is kept for as long as
// the guest's memory moves, thousands of them at once.
//
//go:noinline
func (a *Agent) migrationAside(ctx context.Context, j *job) (*migration.Record, error) {
	return green.Spawn(ctx, func(ctx context.Context) (*migration.Record, error) { return a.migrationOf(ctx, j) }).Wait(context.WithoutCancel(ctx))
}

// migrationOf gives the record of a task's migration, which is journaled now if it has
// none.
func (a *Agent) migrationOf(ctx context.Context, j *job) (*migration.Record, error) {
	args, err := as[api.MigrateArgs](j.args)
	if err != nil {
		return nil, err
	}
	rec, known := a.ledger.record(migration.RoleSource, j.task.Migration)
	switch {
	case known && rec.Migration.RequestID != j.task.ID:
		return nil, a.lawfulMigration(*j.task, &args, *j.inst)
	case !known:
		request := args
		request.Migration = j.task.Migration
		rec = migration.NewRecord(*j.inst, request, a.cfg.Host, j.task.ID)
		err = a.source.Accept(ctx, rec)
	}
	return &rec, err
}

// endOf is the error with which an ended migration ended.
func endOf(m *instance.Migration) error {
	switch {
	case m.Status == instance.MigrationCompleted:
		return nil
	case m.Fault != nil:
		return m.Fault
	default:
		return fault.Newf(fault.Internal, api.LiveMigration, m.UUID, "the migration ended as %s", m.Status)
	}
}

// abortMigration is live_migration_abort, carried out at admission. A migration
// that still waits for its lane is taken out of it.
func (a *Agent) abortMigration(ctx context.Context, j *job) (outcome, error) {
	args, err := as[api.MigrationRefArgs](j.args)
	if err != nil {
		return outcome{}, err
	}
	t, waits := a.lanes.withdraw(args.Instance, args.Migration)
	if !waits {
		return outcome{}, a.abort(ctx, args.Instance, args.Migration)
	}
	cause := fault.New(fault.Cancelled, api.LiveMigration, t.Instance, "aborted on request before it began")
	done, err := a.end(ctx, &job{task: &t}, outcome{}, cause)
	if err != nil {
		return outcome{}, err // the agent stops, and finds both at its next start
	}
	a.ended(done)
	return outcome{}, nil
}

// abortBeat is how often abort looks for a migration that is about to begin.
const abortBeat = 10 * time.Millisecond

// abort ends a migration that has begun. One that has its lane, or is to have it
// again after the agent's start, and is not yet known to its conductor, is waited for.
func (a *Agent) abort(ctx context.Context, id, migrationID string) error {
	for {
		begins := a.lanes.migrating(id, migrationID)
		err := a.source.Abort(ctx, id, migrationID)
		if !begins || !isGone(err) {
			return err
		}
		if err := green.Sleep(ctx, abortBeat); err != nil {
			return err
		}
	}
}

// forceMigration is live_migration_force_complete, carried out at admission.
func (a *Agent) forceMigration(ctx context.Context, j *job) (outcome, error) {
	args, err := as[api.MigrationRefArgs](j.args)
	if err != nil {
		return outcome{}, err
	}
	return outcome{}, a.source.ForceComplete(ctx, args.Instance, args.Migration)
}

// limitMigration is live_migration_set_bandwidth, carried out at admission.
func (a *Agent) limitMigration(ctx context.Context, j *job) (outcome, error) {
	args, err := as[api.BandwidthArgs](j.args)
	if err != nil {
		return outcome{}, err
	}
	return outcome{}, a.source.SetBandwidth(ctx, args.Instance, args.Migration, args.BandwidthMiB)
}

// recoverMigration is live_migration_recover, carried out at admission. A migration
// whose recovery was given up is in nobody's hands: it goes on beside the answer.
func (a *Agent) recoverMigration(ctx context.Context, j *job) (outcome, error) {
	args, err := as[api.MigrationRefArgs](j.args)
	if err != nil {
		return outcome{}, err
	}
	err = a.source.Recover(ctx, args.Instance, args.Migration)
	if !isGone(err) {
		return outcome{}, err
	}
	for _, rec := range a.ledger.migrationsOf(args.Instance) {
		if rec.Role != migration.RoleSource || !rec.Frozen() || rec.Ended() || args.Migration != "" && rec.Migration.UUID != args.Migration {
			continue
		}
		_, err := a.source.TakeUp(ctx, rec)
		if err == nil {
			a.goOnWith(rec) //nolint:contextcheck // it outlives the request
		}
		return outcome{}, err
	}
	return outcome{}, err
}

// The peer's side of a migration that comes here. These calls are idempotent by
// migration and generation, and the destination journals each of its own steps
// before it takes it: that record is their journal, so they take no lane and leave
// no task.

func (a *Agent) prepareIncoming(ctx context.Context, args any) (any, error) {
	v, err := as[api.PeerMigrateArgs](args)
	if err != nil {
		return nil, err
	}
	return a.dest.Prepare(ctx, v)
}

func (a *Agent) postIncoming(ctx context.Context, args any) (any, error) {
	v, err := as[api.PeerRefArgs](args)
	if err != nil {
		return nil, err
	}
	owned, err := a.dest.Post(ctx, v)
	if err == nil && owned.Owned { // the source takes its entry away when it hears this: ours is to stand then
		a.showNow(ctx, rpc.Instances, v.Instance)
		inst, known := a.ledger.instance(v.Instance)
		owned.Superseded = owned.Superseded || !known || inst.Generation > v.Generation
	}
	return owned, err
}

func (a *Agent) rollbackIncoming(ctx context.Context, args any) (any, error) {
	v, err := as[api.PeerRefArgs](args)
	if err != nil {
		return nil, err
	}
	return struct{}{}, a.dest.Rollback(ctx, v)
}

func (a *Agent) checkIncoming(ctx context.Context, args any) (any, error) {
	v, err := as[api.PeerMigrateArgs](args)
	if err != nil {
		return nil, err
	}
	return a.dest.Check(ctx, v)
}

func (a *Agent) checkOutgoing(ctx context.Context, args any) (any, error) {
	v, err := as[api.MigrateArgs](args)
	if err != nil {
		return nil, err
	}
	inst, known := a.ledger.instance(v.Instance)
	if !known {
		return nil, a.unknownInstance(api.CheckMigrateSource, v.Instance)
	}
	if v.Dest == a.cfg.Host {
		return nil, alreadyHere(api.CheckMigrateSource, v.Dest)
	}
	reasons, err := a.source.Check(ctx, inst, v)
	if err != nil {
		return nil, err
	}
	return api.CheckResult{Reasons: append([]string{}, reasons...)}, nil
}

// SlotsLeft tells how many migrations may begin to leave and to arrive at this moment.
func (a *Agent) SlotsLeft() (out, in int) { return a.source.SlotsLeft(), a.dest.SlotsLeft() }

func alreadyHere(method, dest string) error {
	return fault.Newf(fault.InvalidArgument, method, dest, "the instance is on %s already", dest).
		WithHint("name another host: compute-agent host list")
}
