package agent

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/version"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// viewWorkers is how many entries a round writes at the same time.
const viewWorkers = 8

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

// begin unmarks an entry for writing; nil: it was not marked. While somebody else
// writes it, it waits.
func (v *viewSet) begin(ctx context.Context, k viewKey) (done chan struct{}) {
	for {
		v.mu.Lock()
		other := v.work[k]
		if other == nil {
			break
		}
		v.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil
		}
	}
	defer v.mu.Unlock()
	if _, marked := v.dirty[k]; !marked {
		return nil
	}
	delete(v.dirty, k)
	done = make(chan struct{})
	v.work[k] = done
	return done
}

func (v *viewSet) end(k viewKey, done chan struct{}) {
	v.mu.Lock()
	delete(v.work, k)
	v.mu.Unlock()
	close(done)
}

// showNow writes one entry of a view at once, if it is marked. What can't be written
// stays marked.
func (a *Agent) showNow(ctx context.Context, b rpc.Bucket, id string) {
	if err := a.show(ctx, viewKey{b, id}); err != nil {
		logkit.From(ctx).Debug("a view entry waits for the bus", logkit.Err(err))
	}
}

func (a *Agent) show(ctx context.Context, k viewKey) error {
	done := a.views.begin(ctx, k)
	if done == nil {
		return nil
	}
	defer a.views.end(k, done)
	err := a.publishView(ctx, k)
	if err != nil {
		a.views.mark(k.bucket, k.id)
	}
	return err
}

// publishViews writes what is marked, again and again. What was marked has an
// interval's time to change again or to be written by showNow, so that neither
// progress nor short tasks flood the bus.
func (a *Agent) publishViews(ctx context.Context) error {
	pause := a.cfg.RetryFirst
	for {
		select {
		case <-a.views.wake:
		case <-ctx.Done():
			return nil
		}
		round := a.views.turn()
		err := green.Sleep(ctx, a.cfg.ViewInterval)
		if err == nil {
			err = a.publishRound(ctx, round)
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

func (a *Agent) publishRound(ctx context.Context, round uint64) error {
	keys, stale, more := a.views.due(round)
	if more {
		signal(a.views.wake)
	}
	if stale {
		if err := a.refreshViews(ctx); err != nil {
			a.views.renew()
			return err
		}
	}
	pool := green.NewPool(viewWorkers)
	var failed atomic.Pointer[error]
	for _, k := range keys {
		if failed.Load() != nil {
			break // the bus is away: the others stay marked
		}
		err := pool.SpawnN(ctx, func(ctx context.Context) error {
			if err := a.show(ctx, k); err != nil {
				failed.Store(&err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := pool.WaitAll(ctx); err != nil {
		return err
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (a *Agent) publishView(ctx context.Context, k viewKey) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.PublishTimeout)
	defer cancel()
	key := []string{a.cfg.Host, k.id}
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
		key, value = []string{a.cfg.Host}, a.hostView()
	}
	if value == nil {
		return a.bus.Delete(ctx, k.bucket, key)
	}
	raw, err := rpc.JSON(value)
	if err != nil {
		return err
	}
	return a.bus.Put(ctx, k.bucket, key, raw)
}

// refreshViews marks everything that is ours, and what the bus still shows of us
// that is no more.
func (a *Agent) refreshViews(ctx context.Context) error {
	for _, i := range a.ledger.instancesNow() {
		a.views.mark(rpc.Instances, i.UUID)
	}
	for _, r := range a.ledger.migrations() {
		if r.Role == migration.RoleSource {
			a.views.mark(rpc.Migrations, r.Migration.UUID)
		}
	}
	a.views.mark(rpc.Hosts, "")
	ctx, cancel := context.WithTimeout(ctx, a.cfg.PublishTimeout)
	defer cancel()
	for _, b := range []rpc.Bucket{rpc.Instances, rpc.Migrations} {
		entries, err := a.bus.List(ctx, b, []string{a.cfg.Host, "*"})
		if err != nil {
			return err
		}
		for _, e := range entries {
			if len(e.Key) == 2 {
				a.views.mark(b, e.Key[1])
			}
		}
	}
	return nil
}

// beat rewrites the host's view every report_interval; on a change it is marked
// like any other entry.
func (a *Agent) beat(ctx context.Context) error {
	loop := green.NewFixedIntervalLoopingCall[struct{}](func(context.Context) error {
		a.views.mark(rpc.Hosts, "")
		return nil
	})
	if err := loop.Start(ctx, a.cfg.ReportInterval); err != nil {
		return err
	}
	_, err := loop.Wait(context.WithoutCancel(ctx))
	return err
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
// table: a host may have thousands. fn must not keep its argument.
func (l *ledger) eachOpen(fn func(*migration.Record)) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var r migration.Record
	for key := range l.open {
		r = l.records[key]
		fn(&r)
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
