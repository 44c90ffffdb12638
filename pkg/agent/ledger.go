package agent

import (
	"context"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
)

// The journal's tables. A change of form raises the version and is read by code
// that knows both.
var (
	instanceTable  = state.Table[instance.Instance]{Name: "instances", Version: 1}
	taskTable      = state.Table[Task]{Name: "tasks", Version: 1}
	migrationTable = state.Table[migration.Record]{Name: "migrations", Version: 1}
	settingTable   = state.Table[setting]{Name: "settings", Version: 1}
)

// setting is the host's own switch, kept over restarts.
type setting struct {
	Disabled bool   `json:"disabled"`
	Reason   string `json:"reason,omitempty"`
}

const hostSetting = "host"

// ledger is the only writer of the journal. It keeps a copy of the records for
// readers and tells what changed to those who publish.
//
// mu guards the maps. They are brought up to date by the journal's writer, commit
// by commit, before anybody is answered; visible says up to which place of the
// outbox that has happened, so that no event is told before a reader can see what
// it tells of.
type ledger struct {
	host  string
	store *state.Store
	views *viewSet      // marked when a record changes
	wake  chan struct{} // the outbox has something

	visible   atomic.Uint64
	mu        sync.RWMutex
	instances map[string]instance.Instance
	records   map[string]migration.Record // by recordKey
	setting   setting
}

func newLedger(host string, store *state.Store, views *viewSet) *ledger {
	return &ledger{
		host: host, store: store, views: views, wake: make(chan struct{}, 1),
		instances: map[string]instance.Instance{}, records: map[string]migration.Record{},
	}
}

// load reads the journal at start and gives the tasks that have not ended, oldest
// first, and the records that can't be read.
func (l *ledger) load() (open []Task, bad []error, err error) {
	err = l.store.View(func(tx *state.Tx) error {
		instances, bad1 := instanceTable.Values(tx)
		for _, i := range instances {
			l.instances[i.UUID] = i
		}
		records, bad2 := migrationTable.Values(tx)
		for _, r := range records {
			l.records[recordKey(r)] = r
		}
		tasks, bad3 := taskTable.Values(tx)
		for _, t := range tasks {
			if !t.State.Ended() {
				open = append(open, t)
			}
		}
		set, _, err := settingTable.Get(tx, hostSetting)
		l.setting = set
		l.visible.Store(state.LastEvent(tx))
		bad = append(append(bad1, bad2...), bad3...)
		return err
	})
	sort.Slice(open, func(i, j int) bool { return open[i].Order < open[j].Order })
	return open, bad, err
}

func recordKey(r migration.Record) string { return string(r.Role) + "/" + r.Migration.UUID }

// change is one transaction being written. Its methods are called inside commit.
type change struct {
	tx     *state.Tx
	host   string
	now    time.Time
	puts   []instance.Instance
	drops  []string
	recs   []migration.Record
	set    *setting
	events uint64 // place of the last event in the outbox; 0: none
}

// commit runs fn as one journal update. When it returns nil the change is on disk
// and readers see it. fn may run more than once; what it does goes through its
// change alone.
func (l *ledger) commit(ctx context.Context, fn func(*change) error) error {
	return l.store.Update(ctx, func(tx *state.Tx) error {
		c := &change{tx: tx, host: l.host, now: time.Now().UTC()}
		if err := fn(c); err != nil {
			return err
		}
		tx.OnCommit(func() { l.apply(c) })
		return nil
	})
}

// apply brings a committed change into the copy, marks the views and lets its
// events out.
func (l *ledger) apply(c *change) {
	l.mu.Lock()
	for _, i := range c.puts {
		l.instances[i.UUID] = i
	}
	for _, id := range c.drops {
		delete(l.instances, id)
	}
	for _, r := range c.recs {
		l.records[recordKey(r)] = r
	}
	if c.set != nil {
		l.setting = *c.set
	}
	l.mu.Unlock()
	for _, i := range c.puts {
		l.views.mark(rpc.Instances, i.UUID)
	}
	for _, id := range c.drops {
		l.views.mark(rpc.Instances, id)
	}
	for _, r := range c.recs {
		l.views.mark(rpc.Migrations, r.Migration.UUID)
	}
	if c.events == 0 {
		return
	}
	l.visible.Store(c.events)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// putInstance writes an instance's record, with its time of change.
func (c *change) putInstance(i instance.Instance) error {
	i.UpdatedAt = c.now
	c.puts = append(c.puts, i)
	return instanceTable.Put(c.tx, i.UUID, i)
}

// instance reads a record as this transaction sees it.
func (c *change) instance(id string) (instance.Instance, bool, error) {
	return instanceTable.Get(c.tx, id)
}

// dropInstance removes a record.
func (c *change) dropInstance(id string) error {
	c.drops = append(c.drops, id)
	return instanceTable.Delete(c.tx, id)
}

// putRecord writes a migration's record.
func (c *change) putRecord(r migration.Record) error {
	c.recs = append(c.recs, r)
	return migrationTable.Put(c.tx, recordKey(r), r)
}

// putTask writes a task and, for a cast, the event of its state.
func (c *change) putTask(t Task) error {
	if t.Order == 0 {
		n, err := taskTable.NextSequence(c.tx)
		if err != nil {
			return err
		}
		t.Order = n
	}
	if err := taskTable.Put(c.tx, t.ID, t); err != nil {
		return err
	}
	if t.Style != api.Cast {
		return nil
	}
	return c.event(state.OutEvent{Kind: api.EventTask, ID: t.ID, MsgID: t.ID + "/" + string(t.State), Instance: t.Instance}, t.event(c.host, c.now))
}

// putSetting writes the host's switch.
func (c *change) putSetting(s setting) error {
	c.set = &s
	return settingTable.Put(c.tx, hostSetting, s)
}

// event puts an event with that body into the outbox.
func (c *change) event(e state.OutEvent, body any) error {
	raw, err := rpc.JSON(body)
	if err != nil {
		return err
	}
	e.MsgID, e.Body = c.host+"/"+e.MsgID, raw
	c.events, err = state.AppendEvent(c.tx, e)
	return err
}

// instanceEvent tells what happened to an instance.
func (c *change) instanceEvent(i instance.Instance, name, detail, requestID string) error {
	return c.event(state.OutEvent{Kind: api.EventInstance, ID: i.UUID, MsgID: instance.NewUUID(), Instance: i.UUID}, api.InstanceEvent{
		Instance: i.UUID, Host: c.host, Event: name, Detail: detail, VMState: i.VMState,
		PowerState: i.PowerState, TaskState: i.TaskState, RequestID: requestID, At: c.now,
	})
}

// task reads a task by its request id.
func (l *ledger) task(id string) (t Task, ok bool, err error) {
	err = l.store.View(func(tx *state.Tx) error {
		t, ok, err = taskTable.Get(tx, id)
		return err
	})
	return t, ok, err
}

// instance gives the record as last committed.
func (l *ledger) instance(id string) (instance.Instance, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	i, ok := l.instances[id]
	return i, ok
}

// all gives every record, by UUID.
func (l *ledger) all() []instance.Instance {
	l.mu.RLock()
	out := make([]instance.Instance, 0, len(l.instances))
	for _, i := range l.instances {
		out = append(out, i)
	}
	l.mu.RUnlock()
	sort.Slice(out, func(i, j int) bool { return out[i].UUID < out[j].UUID })
	return out
}

// migrations gives every migration record that is kept, oldest first.
func (l *ledger) migrations() []migration.Record {
	l.mu.RLock()
	out := make([]migration.Record, 0, len(l.records))
	for _, r := range l.records {
		out = append(out, r)
	}
	l.mu.RUnlock()
	sort.Slice(out, func(i, j int) bool { return out[i].Migration.StartedAt.Before(out[j].Migration.StartedAt) })
	return out
}

// record gives one migration record.
func (l *ledger) record(role migration.Role, id string) (migration.Record, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	r, ok := l.records[string(role)+"/"+id]
	return r, ok
}

// switched gives the host's switch.
func (l *ledger) switched() setting {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.setting
}

// pruneBefore removes tasks and migrations that ended before t, at most max of
// each, and tells how many went.
func (l *ledger) pruneBefore(ctx context.Context, t time.Time, max int) (int, error) {
	var tasks, records []string
	err := l.store.View(func(tx *state.Tx) error {
		for key, r := range taskTable.All(tx) {
			if r.Err == nil && r.Value.State.Ended() && r.Value.EndedAt.Before(t) && len(tasks) < max {
				tasks = append(tasks, key)
			}
		}
		for key, r := range migrationTable.All(tx) {
			if r.Err == nil && r.Value.Migration.Status.Ended() && r.Value.Migration.EndedAt.Before(t) && len(records) < max {
				records = append(records, key)
			}
		}
		return nil
	})
	if err != nil || len(tasks)+len(records) == 0 {
		return 0, err
	}
	err = l.store.Update(ctx, func(tx *state.Tx) error {
		for _, key := range tasks {
			if err := taskTable.Delete(tx, key); err != nil {
				return err
			}
		}
		for _, key := range records {
			if err := migrationTable.Delete(tx, key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	var gone []string
	for _, key := range records {
		gone = append(gone, l.records[key].Migration.UUID)
		delete(l.records, key)
	}
	l.mu.Unlock()
	for _, id := range gone {
		l.views.mark(rpc.Migrations, id)
	}
	return len(tasks) + len(records), nil
}
