package agent

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// resolveMigration is resolve_migration: the facts, and a person's decision. What
// follows from it goes on beside the answer.
func (a *Agent) resolveMigration(ctx context.Context, j *job) (outcome, error) {
	args, err := as[api.ResolveArgs](j.args)
	if err != nil {
		return outcome{}, err
	}
	rec, known := a.ledger.record(migration.RoleSource, args.Migration)
	if !known {
		return outcome{}, fault.Newf(fault.NotFound, api.ResolveMigration, args.Migration, "host %s conducts no such migration", a.cfg.Host).
			WithHint("compute-agent migration list shows the migrations and their source hosts")
	}
	facts, proved, err := a.source.Look(ctx, rec)
	if err == nil && args.As != "" {
		rec, err = a.source.Settle(ctx, rec, migration.Verdict(args.As), true)
		if err == nil {
			a.goOnWith(rec) //nolint:contextcheck // it outlives the request
		}
	}
	if err != nil {
		return outcome{}, err
	}
	return outcome{result: api.ResolveResult{
		Migration: rec.Migration, Source: string(facts.Source), Dest: string(facts.Dest), Owned: facts.Owned, Outcome: string(proved),
	}}, nil
}

// goOnWith carries a settled migration to its end; it has no task any more. Somebody else
// may do so, or have done it already.
func (a *Agent) goOnWith(rec migration.Record) {
	a.spawn(func(ctx context.Context) {
		if err := a.source.GoOn(ctx, rec); err != nil && ctx.Err() == nil {
			logkit.From(ctx).Warn("a settled migration ended", logkit.Migration.Of(rec.Migration.UUID), logkit.Err(err))
		}
	})
}

// reviews looks at frozen migrations every ReviewInterval, for a host that was away and
// comes back tells nobody that it did, and after each inventory. It alone does, so that
// no two looks act on one migration.
func (a *Agent) reviews(ctx context.Context) error {
	return every(ctx, a.cfg.ReviewInterval, a.cfg.ReviewInterval, a.review, green.WakeOn(a.reviewSoon))
}

// review looks at each frozen migration again: hosts come back, and facts with them.
// What has become clear goes on by itself, and so does what an earlier run of the agent
// had settled.
func (a *Agent) review(ctx context.Context) {
	for _, open := range a.ledger.openMigrations() {
		if !open.Frozen() && !open.Settling {
			continue
		}
		rec, known := a.ledger.record(open.Role, open.Migration.UUID) // the looks before took their time
		if !known || rec.Role != migration.RoleSource || rec.Ended() || a.source.Conducts(rec) {
			continue
		}
		if rec.Settling && !rec.Frozen() {
			a.goOnWith(rec) //nolint:contextcheck // it outlives the review
			continue
		}
		if rec.Frozen() {
			a.reviewOne(ctx, rec)
		}
	}
}

func (a *Agent) reviewOne(ctx context.Context, rec migration.Record) {
	ctx = logkit.With(ctx, logkit.Instance.Of(rec.Migration.Instance), logkit.Migration.Of(rec.Migration.UUID))
	facts, proved, err := a.source.Look(ctx, rec)
	if err == nil && facts.Source == migration.SightRunning && facts.Owned { // it runs on both hosts
		if err = a.source.Fence(ctx, rec); err == nil {
			facts, proved, err = a.source.Look(ctx, rec)
		}
	}
	if err != nil || proved == migration.VerdictUnknown {
		logkit.From(ctx).Warn("the outcome of a migration is still unknown; compute-agent migration resolve decides",
			logkit.Key("source").Of(facts.Source), logkit.Key("dest").Of(facts.Dest), logkit.Err(err))
		return
	}
	if _, err := a.source.Settle(ctx, rec, proved, false); err != nil {
		logkit.From(ctx).Warn("a frozen migration can't go on", logkit.Err(err))
		return
	}
	a.goOnWith(rec) //nolint:contextcheck // it outlives the review
}

// frozen refuses what would act on a guest of which nobody knows where it is.
func (a *Agent) frozen(method, id string) error {
	for _, r := range a.ledger.migrationsOf(id) {
		if r.Role == migration.RoleSource && r.Frozen() && !r.Ended() {
			return fault.Newf(fault.Conflict, method, id, "the outcome of migration %s to %s is unknown since %s: nothing is done to the instance",
				r.Migration.UUID, r.Migration.Dest, r.Migration.UpdatedAt.Format(time.RFC3339)).
				WithHint("compute-agent migration resolve %s shows the facts of both hosts and lets you decide", r.Migration.UUID)
		}
	}
	return nil
}
