package agent

import (
	"context"
	"errors"
	"sort"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/state"
)

// forgetBatch is how many records one transaction removes.
const forgetBatch = 1000

// forget removes ended tasks and migrations that are too old or too many, now and
// then and whenever there are too many.
func (a *Agent) forget(ctx context.Context) error {
	return every(ctx, a.cfg.ReconcileInterval, 0, func(ctx context.Context) {
		before := time.Now().Add(-a.cfg.TaskRetention)
		for gone := 0; ; {
			n, err := a.ledger.prune(ctx, before, a.cfg.TasksKept, a.cfg.MigrationsKept)
			gone += n
			switch {
			case err != nil && ctx.Err() == nil:
				logkit.From(ctx).Warn("old tasks were not removed", logkit.Err(err))
				return
			case err == nil && n > 0:
				continue
			case gone > 0:
				logkit.From(ctx).Debug("old tasks and migrations were forgotten", logkit.Key("count").Of(gone))
			}
			return
		}
	}, green.WakeOn(a.ledger.full))
}

// prune removes some of the ended tasks and migrations that ended before t, or are
// more than those to keep, oldest first; it tells how many. A migration whose
// outcome is unknown stays.
func (l *ledger) prune(ctx context.Context, t time.Time, tasks, migrations int) (gone int, err error) {
	keys, ids, err := l.oldTasks(t, tasks)
	records, views := l.oldMigrations(t, migrations)
	if err != nil || len(keys)+len(records) == 0 {
		return 0, err
	}
	err = l.commit(ctx, func(c *change) error {
		c.ended, c.forgotten = -len(ids), records
		return errors.Join(
			drop(c, endedTable, keys),
			drop(c, taskTable, ids),
			drop(c, migrationTable, records),
		)
	})
	if err != nil {
		return 0, err
	}
	for _, id := range views {
		l.views.mark(rpc.Migrations, id)
	}
	return len(keys) + len(records), nil
}

func drop[T any](c *change, t state.Table[T], keys []string) error {
	for _, key := range keys {
		if err := t.Delete(c.tx, key); err != nil {
			return err
		}
	}
	return nil
}

// oldTasks gives some of the ended tasks that may be forgotten: their keys among the
// ended ones, and their ids.
func (l *ledger) oldTasks(t time.Time, kept int) (keys, ids []string, err error) {
	surplus := int(l.ended.Load()) - kept
	err = l.store.View(func(tx *state.Tx) error {
		for key, r := range endedTable.All(tx) {
			if old := key < endedBefore(t); len(keys) == forgetBatch || !old && len(keys) >= surplus {
				break
			}
			keys, ids = append(keys, key), append(ids, r.Value)
		}
		return nil
	})
	return keys, ids, err
}

// oldMigrations gives the keys and UUIDs of migrations that may be forgotten.
func (l *ledger) oldMigrations(t time.Time, kept int) (keys, ids []string) {
	type ended struct {
		key, id string
		at      time.Time
	}
	var all []ended
	l.mu.RLock()
	for key, r := range l.records {
		if _, open := l.open[key]; !open && r.Migration.Status.Ended() {
			all = append(all, ended{key, r.Migration.UUID, r.Migration.EndedAt})
		}
	}
	l.mu.RUnlock()
	sort.Slice(all, func(i, j int) bool { return all[i].at.Before(all[j].at) })
	for i, e := range all {
		if len(keys) == forgetBatch || !e.at.Before(t) && len(all)-i <= kept {
			break
		}
		keys, ids = append(keys, e.key), append(ids, e.id)
	}
	return keys, ids
}
