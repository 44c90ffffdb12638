package agent

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/version"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// viewsAtOnce is how many entries a round writes at the same time.
const viewsAtOnce = 256

// viewKey names one entry of a view.
type viewKey struct {
	bucket rpc.Bucket
	id     string
}

/*
viewSet collects the entries that differ from what the bus has. Marking one that
is marked already costs nothing, so a busy entry is written as often as the bus
takes it, with its newest value. One entry is never written twice at once, or the
older value might come last.

	mark ──▶ marked ──(a round later, or its event goes out)──▶ in work ──▶ gone
	            ▲──────────── mark, or the bus is away ────────────┘

mu guards all fields but wake.
*/
type viewSet struct {
	wake chan struct{} // has room for one

	mu    sync.Mutex
	round uint64
	dirty map[viewKey]uint64        // marked in which round
	work  map[viewKey]chan struct{} // closed when it is written
	stale bool                      // the bus may show what is no more
}

func newViewSet() *viewSet {
	return &viewSet{dirty: map[viewKey]uint64{}, work: map[viewKey]chan struct{}{}, wake: make(chan struct{}, 1)}
}

func (v *viewSet) mark(b rpc.Bucket, id string) {
	v.mu.Lock()
	k := viewKey{b, id}
	if _, marked := v.dirty[k]; !marked {
		v.dirty[k] = v.round
	}
	v.mu.Unlock()
	signal(v.wake)
}

// renew asks for all entries to be written anew, and for what is no more to go.
func (v *viewSet) renew() {
	v.mu.Lock()
	v.stale = true
	v.mu.Unlock()
	signal(v.wake)
}

// turn begins a round and gives the last one's number.
func (v *viewSet) turn() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.round++
	return v.round - 1
}

// due gives the entries that were marked up to a round, and whether there are later ones.
func (v *viewSet) due(round uint64) (keys []viewKey, stale, more bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for k, marked := range v.dirty {
		if marked <= round {
			keys = append(keys, k)
		} else {
			more = true
		}
	}
	stale, v.stale = v.stale, false
	return keys, stale, more
}

// claim unmarks those of keys that are to be written and that nobody writes, for one
// writer to write together; busy are written by somebody else right now.
func (v *viewSet) claim(keys []viewKey) (mine []viewKey, done chan struct{}, busy map[viewKey]<-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range keys {
		if other := v.work[k]; other != nil {
			if busy == nil {
				busy = map[viewKey]<-chan struct{}{}
			}
			busy[k] = other
			continue
		}
		if _, marked := v.dirty[k]; !marked {
			continue
		}
		if done == nil {
			done = make(chan struct{})
		}
		delete(v.dirty, k)
		v.work[k] = done
		mine = append(mine, k)
	}
	return mine, done, busy
}

// end says that what was claimed together is written, but for left.
func (v *viewSet) end(mine []viewKey, done chan struct{}, left []viewKey) {
	v.mu.Lock()
	for _, k := range mine {
		delete(v.work, k)
	}
	for _, k := range left {
		if _, marked := v.dirty[k]; !marked {
			v.dirty[k] = v.round
		}
	}
	v.mu.Unlock()
	close(done)
}

// showNow writes entries of a view at once, as far as they are marked. What can't be
// written stays marked.
func (a *Agent) showNow(ctx context.Context, b rpc.Bucket, ids ...string) {
	keys := make([]viewKey, len(ids))
	for i, id := range ids {
		keys[i] = viewKey{b, id}
	}
	if err := a.show(ctx, keys); err != nil {
		logkit.From(ctx).Debug("view entries wait for the bus", logkit.Err(err))
	}
}

// show writes the marked ones of keys, and waits for those that somebody else writes.
func (a *Agent) show(ctx context.Context, keys []viewKey) error {
	for len(keys) > 0 {
		mine, done, busy := a.views.claim(keys)
		if len(mine) > 0 {
			stored, err := a.putViews(ctx, mine)
			a.views.end(mine, done, mine[stored:])
			if err != nil {
				signal(a.views.wake)
				return err
			}
		}
		keys = keys[:0:0]
		for k, written := range busy { // while we hold none ourselves
			select {
			case <-written:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			keys = append(keys, k) // it may have changed meanwhile
		}
	}
	return nil
}

// publishViews writes what is marked, again and again. What was marked has an
// interval's time to change again or to be written by showNow, so that neither
// progress nor short tasks flood the bus.
func (a *Agent) publishViews(ctx context.Context) error {
	pause := a.cfg.RetryFirst
	said := newViewTroubles()
	for {
		select {
		case <-a.views.wake:
		case <-ctx.Done():
			return nil
		}
		round := a.views.turn()
		err := green.Sleep(ctx, a.cfg.ViewInterval)
		if err == nil {
			err = a.publishRound(ctx, round, said)
		}
		if err == nil {
			pause = a.cfg.RetryFirst
			continue
		}
		logkit.From(ctx).Debug("views wait for the bus", logkit.Err(err))
		_ = green.Sleep(ctx, pause) // ended early: the loop sees why
		pause = min(2*pause, a.cfg.RetryLimit)
		signal(a.views.wake)
	}
}

func (a *Agent) publishRound(ctx context.Context, round uint64, said *viewTroubles) error {
	keys, stale, more := a.views.due(round)
	if more {
		signal(a.views.wake)
	}
	var unlisted, unwritten error
	if stale {
		if unlisted = a.refreshViews(ctx); unlisted != nil {
			a.views.renew()
		}
		said.list.tell(ctx, unlisted)
	}
	for part := range slices.Chunk(keys, viewsAtOnce) { // unlisted or not: a host that writes nothing counts as down
		if unwritten = a.show(ctx, part); unwritten != nil {
			break // the bus is away: the others stay marked
		}
	}
	if len(keys) > 0 {
		said.write.tell(ctx, unwritten)
	}
	return errors.Join(unlisted, unwritten)
}

// viewTroubles are those of reading what the bus shows of this host, and of writing it.
type viewTroubles struct{ list, write viewTrouble }

func newViewTroubles() *viewTroubles {
	return &viewTroubles{
		list:  viewTrouble{does: "listed", shows: "show what is no more", right: "read"},
		write: viewTrouble{does: "written", shows: "show what was", right: "write"},
	}
}

// viewTrouble is what was said of views that can't be reached, until they can: a missing right
// is in the way at each try, and nobody reads on for what comes every few seconds.
type viewTrouble struct {
	does, shows, right string   // for the log
	said               []string // each cause, by kind and subject
}

// tell says how a try ended, if that is news. A bus that is away is none: it comes back
// by itself.
func (v *viewTrouble) tell(ctx context.Context, err error) {
	log := logkit.From(ctx)
	if err == nil {
		if v.said != nil {
			log.Info("the views of this host are " + v.does + " again")
		}
		v.said = nil
		return
	}
	if ctx.Err() != nil || errors.Is(err, rpc.ErrAway) {
		return
	}
	cause := string(fault.KindOf(err))
	if f, ok := errors.AsType[*fault.Error](err); ok {
		cause += " " + f.Subject
	}
	if slices.Contains(v.said, cause) {
		return
	}
	v.said = append(v.said, cause)
	log.Warn("the views of this host can't be "+v.does+", and "+v.shows+"; when that lasts, see that its credential may "+v.right+
		" them: compute-agent nats-permissions", logkit.Err(err))
}

// putViews writes entries as they are now, and tells how many from the front are stored.
func (a *Agent) putViews(ctx context.Context, keys []viewKey) (stored int, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.PublishTimeout)
	defer cancel()
	entries := make([]rpc.Entry, len(keys))
	for i, k := range keys {
		if entries[i], err = a.viewEntry(k); err != nil {
			return 0, err
		}
	}
	return a.bus.PutAll(ctx, entries)
}

// viewEntry is an entry as it is now.
func (a *Agent) viewEntry(k viewKey) (e rpc.Entry, err error) {
	e = rpc.Entry{Bucket: k.bucket, Key: []string{a.cfg.Host, k.id}}
	var value any
	switch k.bucket {
	case rpc.Instances:
		if inst, ok := a.ledger.instance(k.id); ok {
			value = inst
		}
	case rpc.Migrations:
		if r, ok := a.ledger.record(migration.RoleSource, k.id); ok {
			value = a.progress.of(r)
		}
	case rpc.Hosts:
		e.Key, value = []string{a.cfg.Host}, a.hostView()
	}
	if value == nil {
		e.Deleted = true
		return e, nil
	}
	e.Value, err = rpc.JSON(value)
	return e, err
}

// refreshViews marks everything that is ours, and what the bus still shows of us
// that is no more. Nothing is marked when the bus does not tell: it is tried again soon,
// and all of it would be written each time.
func (a *Agent) refreshViews(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, a.cfg.PublishTimeout)
	defer cancel()
	var shown []viewKey
	for _, b := range []rpc.Bucket{rpc.Instances, rpc.Migrations} {
		entries, err := a.bus.List(bounded, b, []string{a.cfg.Host, "*"})
		if err != nil {
			return err
		}
		for _, e := range entries {
			if len(e.Key) == 2 {
				shown = append(shown, viewKey{b, e.Key[1]})
			}
		}
	}
	for _, k := range shown {
		a.views.mark(k.bucket, k.id)
	}
	for _, i := range a.ledger.instancesNow() {
		a.views.mark(rpc.Instances, i.UUID)
	}
	for _, r := range a.ledger.migrations() {
		if r.Role == migration.RoleSource {
			a.views.mark(rpc.Migrations, r.Migration.UUID)
		}
	}
	a.views.mark(rpc.Hosts, "")
	return nil
}

// beat rewrites the host's view every report_interval; on a change it is marked
// like any other entry.
func (a *Agent) beat(ctx context.Context) error {
	return every(ctx, a.cfg.ReportInterval, 0, func(context.Context) { a.views.mark(rpc.Hosts, "") })
}

// hostView is the host as it is now.
func (a *Agent) hostView() api.HostView {
	facts, connected, problems := a.machine.get()
	set := a.ledger.switched()
	v := api.HostView{
		Host: a.cfg.Host, Agent: version.String(), APIVersion: a.cfg.APIVersion, MachineID: a.cfg.MachineID,
		Enabled: !set.Disabled, DisabledReason: set.Reason, Driver: a.cfg.Driver, Hypervisor: "away",
		HypervisorType: facts.HypervisorType, HypervisorVersion: facts.HypervisorVersion, CPUModel: facts.CPUModel,
		Resources: a.resources(""), Problems: problems,
		StartedAt: a.started, ReportedAt: time.Now().UTC(), ReportIntervalMS: a.cfg.ReportInterval.Milliseconds(),
	}
	if connected {
		v.Hypervisor = "connected"
	}
	a.ledger.eachOpen(func(r *migration.Record) {
		switch {
		case r.Migration.Status == instance.MigrationError:
			v.Problems = append(v.Problems, "migration "+r.Migration.UUID+": its outcome is unknown; compute-agent migration resolve "+r.Migration.UUID)
		case r.Role == migration.RoleSource:
			v.MigrationsOut++
		case r.Role == migration.RoleDest && !r.Committed:
			v.MigrationsIn++
		}
	})
	return v
}

// eachOpen walks over the records that hold their instance, in no order, and copies no
// table: a host may have thousands. fn must not change its argument.
func (l *ledger) eachOpen(fn func(*migration.Record)) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for key := range l.open {
		fn(l.records[key])
	}
}

// progressBoard holds the newest progress of each running migration. What was put is
// never changed.
type progressBoard struct {
	views *viewSet
	mu    sync.Mutex
	by    map[string]*instance.Migration
}

func (p *progressBoard) put(m *instance.Migration) {
	p.mu.Lock()
	if p.by == nil {
		p.by = map[string]*instance.Migration{}
	}
	if m.Status.Ended() {
		delete(p.by, m.UUID) // the record has it now
	} else {
		p.by[m.UUID] = m
	}
	p.mu.Unlock()
	p.views.mark(rpc.Migrations, m.UUID)
}

// of gives a migration as its record has it, with the progress of the moment.
func (p *progressBoard) of(r migration.Record) instance.Migration {
	p.mu.Lock()
	live := p.by[r.Migration.UUID]
	p.mu.Unlock()
	if live != nil && !r.Migration.Status.Ended() {
		return *live
	}
	return r.Migration
}
