package agent

import (
	"cmp"
	"context"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/inventory"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/state"
)

// The journal's tables. A change of form raises the version and is read by code
// that knows both.
var (
	instanceTable  = state.Table[instance.Instance]{Name: "instances", Version: 1}
	taskTable      = state.Table[Task]{Name: "tasks", Version: 1}
	endedTable     = state.Table[string]{Name: "ended", Version: 1} // ids of ended tasks, by the time of their end
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
// mu guards what is below it. It is brought up to date by the journal's writer,
// commit by commit, before anybody is answered and before an event of that commit
// is let out, so that nothing is told before a reader can see it.
type ledger struct {
	host  string
	store *state.Store
	views *viewSet // marked when a record changes
	out   *outbox  // given the events of each commit
	order atomic.Uint64
	ended atomic.Int64  // tasks that have ended and are remembered
	full  chan struct{} // has room for one; filled when there are more of them than keep
	keep  int

	mu        sync.RWMutex
	instances map[string]*instance.Instance // nobody changes what it points to
	records   map[string]*migration.Record  // by recordKey; nobody changes what it points to
	byGuest   map[string][]string           // keys of records, by instance; mostly one
	open      map[string]struct{}           // keys of records that wait for something
	setting   setting
	taken     inventory.Taken // by instances and claims
	tasksOf   map[string]int  // how many tasks of each instance are accepted and have not ended
}

func newLedger(host string, keep int, store *state.Store, views *viewSet) *ledger {
	return &ledger{
		host: host, store: store, views: views, out: newOutbox(), full: make(chan struct{}, 1), keep: keep,
		instances: map[string]*instance.Instance{}, records: map[string]*migration.Record{},
		byGuest: map[string][]string{}, open: map[string]struct{}{}, tasksOf: map[string]int{},
	}
}

// load reads the journal at start and gives the tasks that have not ended, oldest
// first, and the records that can't be read. A journal of a later version is refused.
func (l *ledger) load() (open []Task, bad []error, err error) {
	err = l.store.View(func(tx *state.Tx) error {
		if err := state.Newer(tx, instanceTable, taskTable, endedTable, migrationTable, settingTable); err != nil {
			return fault.New(fault.UnsupportedVersion, "read journal", l.store.Path(), "it is left as it is").Because(err).
				WithHint("run the version of the agent that wrote %s; or, to begin without what it knows of requests and instances, move it aside", l.store.Path())
		}
		instances, bad1 := instanceTable.Values(tx)
		for _, i := range instances {
			l.keepInstanceLocked(&i)
		}
		records, bad2 := migrationTable.Values(tx)
		for _, r := range records {
			l.keepRecordLocked(&r)
		}
		bad = append(bad1, bad2...)
		for _, r := range taskTable.All(tx) {
			switch t := r.Value; {
			case r.Err != nil:
				bad = append(bad, r.Err)
			case t.State.Ended():
				l.ended.Add(1)
			default:
				open = append(open, t)
				l.tasksOf[t.Instance]++
			}
			l.order.Store(max(l.order.Load(), r.Value.Order))
		}
		set, _, err := settingTable.Get(tx, hostSetting)
		l.setting = set
		l.out.begin(state.LastEvent(tx))
		return err
	})
	slices.SortFunc(open, func(a, b Task) int { return cmp.Compare(a.Order, b.Order) })
	return open, bad, err
}

func recordKey(r *migration.Record) string { return string(r.Role) + "/" + r.Migration.UUID }

// waits reports whether a record holds its instance: it has not ended, or its
// outcome is unknown.
func waits(r migration.Record) bool {
	return !r.Ended() || r.Migration.Status == instance.MigrationError
}

func (l *ledger) keepRecordLocked(r *migration.Record) {
	key := recordKey(r)
	l.recountLocked(l.records[key], r)
	l.records[key] = r
	if guest := r.Migration.Instance; !slices.Contains(l.byGuest[guest], key) {
		l.byGuest[guest] = append(l.byGuest[guest], key)
	}
	if waits(*r) {
		l.open[key] = struct{}{}
	} else {
		delete(l.open, key)
	}
}

func (l *ledger) dropRecordLocked(key string) {
	old := l.records[key]
	if old == nil {
		return
	}
	id := old.Migration.Instance
	l.recountLocked(old, nil)
	delete(l.records, key)
	delete(l.open, key)
	if left := slices.DeleteFunc(l.byGuest[id], func(k string) bool { return k == key }); len(left) > 0 {
		l.byGuest[id] = left
	} else {
		delete(l.byGuest, id)
	}
}

// commit runs fn as one journal update. When it returns nil the change is on disk
// and readers see it. fn may run more than once; what it does goes through its
// change alone.
func (l *ledger) commit(ctx context.Context, fn func(*change) error) error {
	return l.store.Update(ctx, l.update(fn))
}

// commitFirst is commit ahead of the updates that wait.
func (l *ledger) commitFirst(ctx context.Context, fn func(*change) error) error {
	return l.store.UpdateFirst(ctx, l.update(fn))
}

func (l *ledger) update(fn func(*change) error) func(*state.Tx) error {
	return func(tx *state.Tx) error {
		c := &change{ledger: l, tx: tx, host: l.host, now: time.Now().UTC()}
		if err := fn(c); err != nil {
			return err
		}
		tx.OnCommit(func() { l.apply(c) })
		return nil
	}
}

// apply brings a committed change into the copy, marks the views and lets its
// events out.
func (l *ledger) apply(c *change) {
	l.mu.Lock()
	instances, moving := len(l.instances), len(l.open)
	for _, i := range c.puts {
		l.keepInstanceLocked(i)
	}
	for _, id := range c.drops {
		l.dropInstanceLocked(id)
	}
	for _, r := range c.recs {
		l.keepRecordLocked(r)
	}
	for _, key := range c.forgotten {
		l.dropRecordLocked(key)
	}
	if c.set != nil {
		l.setting = *c.set
	}
	l.countLocked(c)
	if instances != len(l.instances) || moving != len(l.open) {
		l.views.mark(rpc.Hosts, "")
	}
	l.mu.Unlock()
	l.mark(c)
	for _, fn := range c.then {
		fn()
	}
	l.out.add(c.events)
	if c.ended != 0 && l.ended.Add(int64(c.ended)) > int64(l.keep) {
		signal(l.full)
	}
}

// mark has the views of what a change touched written again.
func (l *ledger) mark(c *change) {
	for _, i := range c.puts {
		l.views.mark(rpc.Instances, i.UUID)
	}
	for _, id := range c.drops {
		l.views.mark(rpc.Instances, id)
	}
	for _, r := range c.recs {
		l.views.mark(rpc.Migrations, r.Migration.UUID)
	}
}

// countLocked keeps the number of open tasks of each instance.
func (l *ledger) countLocked(c *change) {
	for _, id := range c.taken {
		l.tasksOf[id]++
	}
	for _, id := range c.left {
		if l.tasksOf[id]--; l.tasksOf[id] <= 0 {
			delete(l.tasksOf, id)
		}
	}
}

// openTasks tells how many tasks of an instance are accepted and have not ended.
func (l *ledger) openTasks(id string) int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.tasksOf[id]
}

// tasks reads the tasks that are known among ids, and those that can't be read.
func (l *ledger) tasks(ids []string) (known map[string]Task, unread map[string]error, err error) {
	err = l.store.View(func(tx *state.Tx) error {
		for _, id := range ids {
			t, ok, err := taskTable.Get(tx, id)
			switch {
			case err != nil:
				if unread == nil {
					unread = map[string]error{}
				}
				unread[id] = err
			case ok:
				if known == nil {
					known = map[string]Task{}
				}
				known[id] = t
			}
		}
		return nil
	})
	return known, unread, err
}

// instance gives the record as last committed.
func (l *ledger) instance(id string) (instance.Instance, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if i := l.instances[id]; i != nil {
		return *i, true
	}
	return instance.Instance{}, false
}

// shared gives the record as last committed, for a reader alone; the zero record if there is none.
func (l *ledger) shared(id string) (*instance.Instance, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if i := l.instances[id]; i != nil {
		return i, true
	}
	return &instance.Instance{}, false
}

// all gives every record, by UUID.
func (l *ledger) all() []instance.Instance {
	out := l.instancesNow()
	sort.Slice(out, func(i, j int) bool { return out[i].UUID < out[j].UUID })
	return out
}

// instancesNow gives every record, in no order.
func (l *ledger) instancesNow() []instance.Instance {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := make([]instance.Instance, 0, len(l.instances))
	for _, i := range l.instances {
		out = append(out, *i)
	}
	return out
}

// count tells how many records there are.
func (l *ledger) count() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.instances)
}

// migrations gives every migration record that is kept, oldest first.
func (l *ledger) migrations() []migration.Record {
	l.mu.RLock()
	out := make([]migration.Record, 0, len(l.records))
	for _, r := range l.records {
		out = append(out, *r)
	}
	l.mu.RUnlock()
	sort.Slice(out, func(i, j int) bool { return out[i].Migration.StartedAt.Before(out[j].Migration.StartedAt) })
	return out
}

// openMigrations gives the records that hold their instance, in no order, for readers
// alone: a host may have thousands, and none is copied.
func (l *ledger) openMigrations() []*migration.Record {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := make([]*migration.Record, 0, len(l.open))
	for key := range l.open {
		out = append(out, l.records[key])
	}
	return out
}

// migrationsOf gives the records that are kept of one instance, in no order.
func (l *ledger) migrationsOf(id string) (out []migration.Record) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, key := range l.byGuest[id] {
		out = append(out, *l.records[key])
	}
	return out
}

// record gives one migration record.
func (l *ledger) record(role migration.Role, id string) (migration.Record, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if r := l.records[string(role)+"/"+id]; r != nil {
		return *r, true
	}
	return migration.Record{}, false
}

// switched gives the host's switch.
func (l *ledger) switched() setting {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.setting
}
