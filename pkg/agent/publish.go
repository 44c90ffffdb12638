package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/version"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
)

// outboxBatch is how many events are read from the outbox at once.
const outboxBatch = 256

// publishEvents empties the outbox in order: publish, then drop. While the bus is
// away events stay in the journal.
func (a *Agent) publishEvents(ctx context.Context) error {
	pause := a.cfg.RetryFirst
	for ctx.Err() == nil {
		n, err := a.publishBatch(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			logkit.From(ctx).Debug("events wait for the bus", logkit.Err(err))
			_ = green.Sleep(ctx, pause)
			pause = min(2*pause, a.cfg.RetryLimit)
		case err == nil && n == 0:
			pause = a.cfg.RetryFirst
			select {
			case <-a.ledger.wake:
			case <-ctx.Done():
			}
		}
	}
	return nil
}

func (a *Agent) publishBatch(ctx context.Context) (int, error) {
	var events []state.OutEvent
	var bad []error
	err := a.store.View(func(tx *state.Tx) error { events, bad = state.PendingEvents(tx, outboxBatch); return nil })
	if err != nil {
		return 0, err
	}
	if len(bad) > 0 {
		logkit.From(ctx).Error("events in the outbox can't be read", logkit.Err(errors.Join(bad...)))
	}
	var sent []uint64
	var failed error
	visible := a.ledger.visible.Load()
	for _, e := range events {
		if e.Sequence > visible {
			break // its wake is on the way
		}
		a.showNow(ctx, rpc.Instances, e.Instance)
		ectx, cancel := context.WithTimeout(ctx, a.cfg.PublishTimeout)
		failed = a.bus.Publish(ectx, rpc.Event{Host: a.cfg.Host, Kind: e.Kind, ID: e.ID, MsgID: e.MsgID, Body: e.Body})
		cancel()
		if failed != nil {
			break
		}
		sent = append(sent, e.Sequence)
	}
	if len(sent) > 0 {
		if err := a.store.Update(ctx, func(tx *state.Tx) error { return state.DropEvents(tx, sent) }); err != nil {
			return 0, err
		}
	}
	return len(sent), failed
}

// viewKey names one entry of a view.
type viewKey struct {
	bucket rpc.Bucket
	id     string
}

// viewSet collects the entries that differ from what the bus has. Marking one
// that is marked already costs nothing, so a busy entry is written as often as the
// bus takes it, with its newest value.
type viewSet struct {
	mu    sync.Mutex
	dirty map[viewKey]struct{}
	wake  chan struct{}
}

func newViewSet() *viewSet {
	return &viewSet{dirty: map[viewKey]struct{}{}, wake: make(chan struct{}, 1)}
}

func (v *viewSet) mark(b rpc.Bucket, id string) {
	v.mu.Lock()
	v.dirty[viewKey{b, id}] = struct{}{}
	v.mu.Unlock()
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

func (v *viewSet) take() []viewKey {
	v.mu.Lock()
	defer v.mu.Unlock()
	keys := make([]viewKey, 0, len(v.dirty))
	for k := range v.dirty {
		keys = append(keys, k)
	}
	clear(v.dirty)
	return keys
}

// takeOne unmarks one entry; false: it was not marked.
func (v *viewSet) takeOne(k viewKey) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, marked := v.dirty[k]
	delete(v.dirty, k)
	return marked
}

// showNow writes one entry of a view at once, if it changed: whoever hears the news
// then finds it in the view. What can't be written stays marked.
func (a *Agent) showNow(ctx context.Context, b rpc.Bucket, id string) {
	k := viewKey{b, id}
	if id != "" && a.views.takeOne(k) && a.publishView(ctx, k) != nil {
		a.views.mark(b, id)
	}
}

// progressBoard holds the newest progress of each running migration.
type progressBoard struct {
	views *viewSet
	mu    sync.Mutex
	by    map[string]instance.Migration
}

func (p *progressBoard) put(m instance.Migration) {
	p.mu.Lock()
	if p.by == nil {
		p.by = map[string]instance.Migration{}
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
	m := r.Migration
	p.mu.Lock()
	live, ok := p.by[m.UUID]
	p.mu.Unlock()
	if ok && !m.Status.Ended() {
		return live
	}
	return m
}

// publishViews writes what is marked, again and again, with a pause between
// rounds so that progress does not flood the bus.
func (a *Agent) publishViews(ctx context.Context) error {
	pause := a.cfg.RetryFirst
	for {
		select {
		case <-a.views.wake:
		case <-ctx.Done():
			return nil
		}
		var failed error
		for _, k := range a.views.take() {
			if failed == nil {
				failed = a.publishView(ctx, k)
			}
			if failed != nil {
				a.views.mark(k.bucket, k.id)
			}
		}
		if failed == nil {
			pause = a.cfg.RetryFirst
			if green.Sleep(ctx, a.cfg.ViewInterval) != nil {
				return nil
			}
			continue
		}
		logkit.From(ctx).Debug("views wait for the bus", logkit.Err(failed))
		if green.Sleep(ctx, pause) != nil {
			return nil
		}
		pause = min(2*pause, a.cfg.RetryLimit)
	}
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
	for _, i := range a.ledger.all() {
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
		Host: a.cfg.Host, Agent: version.Info().Version, APIVersion: api.Version, MachineID: a.cfg.MachineID,
		Enabled: !set.Disabled, DisabledReason: set.Reason, Driver: a.cfg.Driver, Hypervisor: "away",
		HypervisorType: facts.HypervisorType, HypervisorVersion: facts.HypervisorVersion, CPUModel: facts.CPUModel,
		Resources: a.resources(""), Problems: problems,
		StartedAt: a.started, ReportedAt: time.Now().UTC(), ReportIntervalMS: a.cfg.ReportInterval.Milliseconds(),
	}
	if connected {
		v.Hypervisor = "connected"
	}
	for _, r := range a.ledger.migrations() {
		switch {
		case r.Migration.Status == instance.MigrationError:
			v.Problems = append(v.Problems, "migration "+r.Migration.UUID+": its outcome is unknown; compute-agent migration resolve "+r.Migration.UUID)
		case r.Ended():
		case r.Role == migration.RoleSource:
			v.MigrationsOut++
		case r.Role == migration.RoleDest && !r.Committed:
			v.MigrationsIn++
		}
	}
	return v
}
