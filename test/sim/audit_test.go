package sim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// The journal's tables, as an agent writes them.
var (
	instanceTable  = state.Table[instance.Instance]{Name: "instances", Version: 1}
	taskTable      = state.Table[agent.Task]{Name: "tasks", Version: 1}
	migrationTable = state.Table[migration.Record]{Name: "migrations", Version: 1}
)

// books is what one host's journal holds when its agent is stopped.
type books struct {
	instances map[string]instance.Instance
	tasks     []agent.Task
	records   []migration.Record
	outbox    int
}

// tally is what a run came to.
type tally struct {
	migrations, completed, failed, cancelled, unknown int
	requests, succeeded, refused                      int
}

func (t *tally) add(o tally) {
	t.migrations += o.migrations
	t.completed += o.completed
	t.failed += o.failed
	t.cancelled += o.cancelled
	t.unknown += o.unknown
	t.requests += o.requests
	t.succeeded += o.succeeded
	t.refused += o.refused
}

func (t *tally) String() string {
	return fmt.Sprintf("%d migrations (%d completed, %d failed, %d cancelled, %d unknown), %d requests (%d succeeded, %d refused)",
		t.migrations, t.completed, t.failed, t.cancelled, t.unknown, t.requests, t.succeeded, t.refused)
}

// audit holds what is left after a run against what must be so however it went.
type audit struct {
	*rig
	books map[string]books
	views map[string]map[string]instance.Instance // by host and instance
	moves map[string]map[string]instance.Migration
	power map[string]int  // requests that may have switched a guest on or off, by instance
	ended map[string]bool // guests that were terminated
	froze map[string]int  // migrations of unknown outcome, by instance
	tally tally
}

// check stops the agents and audits everything.
func (r *rig) check() tally {
	a := &audit{
		rig: r, books: map[string]books{}, views: map[string]map[string]instance.Instance{}, moves: map[string]map[string]instance.Migration{},
		power: map[string]int{}, ended: map[string]bool{}, froze: map[string]int{},
	}
	a.readViews()
	a.slots()
	r.stop()
	for _, name := range r.names {
		a.books[name] = a.read(name)
	}
	r.left = a.books
	a.requests()
	a.migrations()
	a.viewsAgree()
	for _, id := range a.guests() {
		a.guest(id)
	}
	a.leftovers()
	return a.tally
}

func (a *audit) bad(format string, args ...any) { a.t.Errorf(format, args...) }

// slots: all of them are free again.
func (a *audit) slots() {
	for _, name := range a.names {
		for _, m := range a.moves[name] {
			if m.Status == instance.MigrationError && a.torn(m) { // one that waits for people may keep its place
				return
			}
		}
	}
	for _, name := range a.names {
		s := a.sites[name]
		out, in := s.SlotsLeft()
		if c := s.Node.Agent.Migration; out != c.OutboundSlots || in != c.InboundSlots {
			a.bad("%s: %d of %d outbound and %d of %d inbound slots are free", name, out, c.OutboundSlots, in, c.InboundSlots)
		}
	}
}

// watch looks all the time for a guest that lives on two hosts. After the wires between
// two hypervisors lied (weather.twins) that can't be prevented, only ended.
func (r *rig) watch(ctx context.Context) {
	for ctx.Err() == nil {
		for _, f := range r.fleet.World.Audit() {
			r.mu.Lock()
			broken := r.broken[f.Instance]
			r.mu.Unlock()
			if len(f.Running) > 1 && !broken {
				r.t.Errorf("guest %s lives on %s", f.Instance, strings.Join(f.Running, " and "))
				return
			}
		}
		pass(150 * time.Millisecond)
	}
}

func (a *audit) readViews() {
	for _, name := range a.names {
		a.views[name], a.moves[name] = map[string]instance.Instance{}, map[string]instance.Migration{}
		entries, err := a.ctl.List(a.ctx, rpc.Instances, []string{name, "*"})
		if err != nil {
			a.bad("the view of instances can't be read: %v", err)
		}
		for _, e := range entries {
			var i instance.Instance
			if err := json.Unmarshal(e.Value, &i); err != nil {
				a.bad("view %v: %v", e.Key, err)
			}
			a.views[name][e.Key[1]] = i
		}
		entries, _ = a.ctl.List(a.ctx, rpc.Migrations, []string{name, "*"})
		for _, e := range entries {
			var m instance.Migration
			if err := json.Unmarshal(e.Value, &m); err != nil {
				a.bad("view %v: %v", e.Key, err)
			}
			a.moves[name][e.Key[1]] = m
		}
	}
}

func (a *audit) read(host string) books {
	b := books{instances: map[string]instance.Instance{}}
	s, err := state.Open(a.ctx, a.dir+"/"+host, state.Options{NoSync: true})
	if err != nil {
		a.bad("%s: %v", host, err)
		return b
	}
	err = s.View(func(tx *state.Tx) error {
		list, bad1 := instanceTable.Values(tx)
		for _, i := range list {
			b.instances[i.UUID] = i
		}
		var bad2, bad3 []error
		b.tasks, bad2 = taskTable.Values(tx)
		b.records, bad3 = migrationTable.Values(tx)
		b.outbox = state.CountEvents(tx)
		if all := slices.Concat(bad1, bad2, bad3); len(all) > 0 {
			a.bad("%s: records can't be read: %v", host, all)
		}
		return nil
	})
	if err != nil {
		a.bad("%s: %v", host, err)
	}
	if err := s.Close(); err != nil {
		a.bad("%s: %v", host, err)
	}
	return b
}

// requests: each id has one outcome, the same in its events and in the journal.
func (a *audit) requests() {
	journaled := map[string]agent.Task{}
	for _, name := range a.names {
		for _, t := range a.books[name].tasks {
			if other, twice := journaled[t.ID]; twice {
				a.bad("request %s is in two journals: %+v and %+v", t.ID, other, t)
			}
			journaled[t.ID] = t
			if !t.State.Ended() {
				a.bad("%s: task %s (%s) is left %s", name, t.ID, t.Method, t.State)
			}
		}
	}
	for id, q := range a.rig.requests {
		a.tally.requests++
		ends := map[api.TaskState]bool{}
		for _, e := range a.events[id] {
			if e.State.Ended() {
				ends[e.State] = true
			}
		}
		t, known := journaled[id]
		if len(ends) != 1 || !known || !ends[t.State] {
			a.bad("request %s (%s of %s at %s) has the outcomes %v, in the journal %t %q", id, q.message.Method, q.instance, q.host, ends, known, t.State)
		}
		a.count(q, t.State)
	}
}

func (a *audit) count(q *request, end api.TaskState) {
	switch end {
	case api.TaskSucceeded:
		a.tally.succeeded++
		if q.message.Method == api.TerminateInstance {
			a.ended[q.instance] = true
		}
	case api.TaskRefused:
		a.tally.refused++
		return
	default:
	}
	switch q.message.Method {
	case api.StartInstance, api.StopInstance, api.RebootInstance, api.TerminateInstance, api.SuspendInstance, api.ResumeInstance:
		a.power[q.instance]++
	}
}

// migrations: each has an end, on both sides the same, and no more guests arrived
// than migrations were completed.
func (a *audit) migrations() {
	arrived := map[string]int{}
	for _, name := range a.names {
		for _, r := range a.books[name].records {
			id := r.Migration.UUID
			if !r.Ended() && !r.Frozen() && !a.waits(r.Migration.Instance) {
				a.bad("%s: the %s record of migration %s is left in phase %s (undoing: %t): %+v", name, r.Role, id, r.Phase, r.Undoing, r.Migration.Fault)
			}
			if r.Role != migration.RoleSource {
				continue
			}
			a.tally.migrations++
			there, promised := a.record(r.Migration.Dest, migration.RoleDest, id)
			switch r.Migration.Status {
			case instance.MigrationCompleted:
				a.tally.completed++
				arrived[r.Migration.Instance]++
				if !there.Committed || there.Migration.Generation != r.Migration.Generation {
					a.bad("migration %s is completed on %s, and on %s: %+v", id, name, r.Migration.Dest, there)
				}
			case instance.MigrationFailed, instance.MigrationCancelled:
				if r.Migration.Status == instance.MigrationFailed {
					a.tally.failed++
				} else {
					a.tally.cancelled++
				}
				if promised && there.Committed {
					a.bad("migration %s is %s on %s, but %s owns the guest by it", id, r.Migration.Status, name, r.Migration.Dest)
				}
			default:
				a.tally.unknown++
				a.froze[r.Migration.Instance]++
				if !a.torn(r.Migration) {
					a.bad("migration %s of %s is %s: %v", id, r.Migration.Instance, r.Migration.Status, r.Migration.Fault)
				}
			}
		}
	}
	for _, id := range a.guests() {
		sum := 0
		for _, name := range a.names {
			sum += a.sites[name].Machine.Counts(id).Arrivals
		}
		if sum < arrived[id] || sum > arrived[id]+a.froze[id] {
			a.bad("guest %s: %d migrations completed, it arrived %d times (%d unknown)", id, arrived[id], sum, a.froze[id])
		}
	}
}

func (a *audit) record(host string, role migration.Role, id string) (migration.Record, bool) {
	for _, r := range a.books[host].records {
		if r.Role == role && r.Migration.UUID == id {
			return r, true
		}
	}
	return migration.Record{}, false
}

// viewsAgree: what is published is what is recorded.
func (a *audit) viewsAgree() {
	for _, name := range a.names {
		want := map[string]instance.Migration{}
		for _, r := range a.books[name].records {
			if r.Role == migration.RoleSource {
				want[r.Migration.UUID] = r.Migration
			}
		}
		if diff := cmp.Diff(a.books[name].instances, a.views[name]); diff != "" {
			a.bad("%s: the instances in the journal (-) and in the view (+):\n%s", name, diff)
		}
		if diff := cmp.Diff(want, a.moves[name]); diff != "" {
			a.bad("%s: the migrations in the journal (-) and in the view (+):\n%s", name, diff)
		}
	}
}

// waits reports whether people have to decide about a guest whose memory the run itself
// split: both hosts keep what they have of it until then.
func (a *audit) waits(id string) bool {
	for _, b := range a.books {
		if slices.ContainsFunc(b.records, func(r migration.Record) bool { return r.Migration.Instance == id && r.Frozen() && a.torn(r.Migration) }) {
			return true
		}
	}
	return false
}

// guests names every instance that was ever asked for.
func (a *audit) guests() []string {
	all := map[string]bool{}
	for _, q := range a.rig.requests {
		if q.message.Method == api.BuildAndRunInstance {
			all[q.instance] = true
		}
	}
	ids := make([]string, 0, len(all))
	for id := range all {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// guest: it is on one host and recorded there, wired there and nowhere else.
func (a *audit) guest(id string) {
	var records, defined, active, wired []string
	var rec instance.Instance
	var dom virt.Domain
	for _, name := range a.names {
		if i, known := a.books[name].instances[id]; known {
			records, rec = append(records, name), i
		}
		found, here := a.sites[name].Machine.Look(id)
		if here {
			defined, dom = append(defined, name), found
		}
		if here && found.Active() {
			active = append(active, name)
		}
		taps, _ := a.sites[name].Network.Taps(a.ctx)
		for _, tap := range taps {
			if tap.Instance == id {
				wired = append(wired, name)
			}
		}
	}
	where := fmt.Sprintf("guest %s: recorded on %v (%s, generation %d), defined on %v (%s %s, generation %d), active on %v, wired on %v",
		id, records, rec.VMState, rec.Generation, defined, dom.State, dom.Reason, dom.Generation, active, wired)
	if a.waits(id) {
		return
	}
	if a.ended[id] {
		if len(records)+len(defined)+len(wired) > 0 {
			a.bad("%s: it was deleted", where)
		}
		return
	}
	if len(records) != 1 || rec.Host != records[0] {
		a.bad("%s: want one record", where)
		return
	}
	a.agree(id, where, rec, dom, [][]string{records, defined, active, wired})
	a.effects(id, where)
}

// agree: record, domain and ports tell one story.
func (a *audit) agree(id, where string, rec instance.Instance, dom virt.Domain, places [][]string) {
	records, defined, active, wired := places[0], places[1], places[2], places[3]
	if rec.TaskState != instance.TaskNone {
		a.bad("%s: it is stuck in %s", where, rec.TaskState)
	}
	if len(defined) > 1 || len(defined) == 1 && defined[0] != records[0] {
		a.bad("%s: a domain is left elsewhere", where)
	}
	if len(active) == 1 && dom.Generation != rec.Generation {
		a.bad("%s: the generations differ", where)
	}
	if len(active) == 1 && (len(wired) != 1 || wired[0] != records[0]) {
		a.bad("%s: want its port where it runs", where)
	}
	for _, w := range wired {
		if w != records[0] {
			a.bad("%s: a port is left elsewhere", where)
		}
	}
	power := instance.PowerPending
	if len(defined) == 1 {
		power = dom.Power()
	}
	if rec.PowerState != power || rec.VMState != instance.VMStateOf(power, rec.VMState) {
		a.bad("%s: the record says %s, %s; the hypervisor %s", where, rec.VMState, rec.PowerState, power)
	}
	if len(active) != 1 && a.power[id] == 0 && !a.killed[id] {
		a.bad("%s: nobody switched it off", where)
	}
	if len(active) != 1 && rec.VMState == instance.VMActive {
		a.bad("%s: its end is not reported", where)
	}
}

// effects: a guest that nobody switched was started once and never stopped.
func (a *audit) effects(id, where string) {
	var sum fake.Effects
	for _, name := range a.names {
		c := a.sites[name].Machine.Counts(id)
		sum.Starts += c.Starts
	}
	if a.power[id] == 0 && sum.Starts != 1 {
		a.bad("%s: it was built once and started %d times", where, sum.Starts)
	}
}

// leftovers: no place kept, no tap without a guest, no event untold, no split brain.
func (a *audit) leftovers() {
	for _, f := range a.fleet.World.Audit() {
		if len(f.Running) > 1 && !a.waits(f.Instance) {
			a.bad("guest %s lives on %s", f.Instance, strings.Join(f.Running, " and "))
		}
	}
	for _, name := range a.names {
		left := a.sites[name].Machine.Expected()
		maps.DeleteFunc(left, func(id, _ string) bool { return a.waits(id) })
		if len(left) > 0 {
			a.bad("%s: places are kept for guests that do not come: %v", name, left)
		}
		if n := a.books[name].outbox; n > 0 {
			a.bad("%s: %d events are untold", name, n)
		}
	}
}
