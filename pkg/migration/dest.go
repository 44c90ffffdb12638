package migration

import (
	"context"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// busyRetrySeconds is when a source should ask again that found all slots taken
// (oVirt's agents come back after 10 s).
const busyRetrySeconds = 10

// keepEnded is how many ended arrivals are remembered: a late message about one of
// them must not begin it anew.
const keepEnded = 1024

// Dest receives the guests that come to this host. Its methods may be called from
// any goroutine and are idempotent by migration UUID and generation.
type Dest struct {
	cfg   Config
	ports DestPorts
	slots *slots
	queue green.KeyedQueue[string, virt.Event] // by migration: look whether the guest has come

	mu       sync.Mutex
	ctx      context.Context     //nolint:containedctx // of Start: the life of the claims' timers
	arrivals map[string]*arrival // by migration, ended ones included
	expected map[string]*arrival // by instance: prepared or being prepared, and not committed
	ended    []string            // oldest first
}

// NewDest makes a Dest; Start makes it listen.
func NewDest(cfg Config, ports DestPorts) *Dest {
	cfg = cfg.WithDefaults()
	return &Dest{
		cfg: cfg, ports: ports, slots: newSlots(cfg.InboundSlots),
		arrivals: map[string]*arrival{}, expected: map[string]*arrival{},
	}
}

// Start subscribes to the hypervisor's events and watches the claims until ctx
// ends. It returns at once; call it before Resume and before any request.
func (d *Dest) Start(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx != nil {
		return fault.New(fault.Conflict, "start", d.cfg.Host, "the destination role was started already")
	}
	d.ctx = ctx
	cancel := d.ports.Hypervisor.Subscribe(d.hear)
	green.SpawnN(ctx, func(ctx context.Context) error {
		defer cancel()
		return d.queue.Run(ctx, 0, d.seen)
	})
	return nil
}

// life is the context of Start; nil before it.
func (d *Dest) life() context.Context {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ctx
}

func (d *Dest) notStarted(method string) error {
	return fault.New(fault.Conflict, method, d.cfg.Host, "the destination role has not been started")
}

// hear notes that a guest that is expected may have come. After a new connection
// events may be missing: then all are looked at.
func (d *Dest) hear(e virt.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch e.Kind {
	case virt.EventConnected:
		for _, a := range d.expected {
			d.queue.Add(a.id, 0, e)
		}
	case virt.EventResumed, virt.EventSuspended, virt.EventStopped, virt.EventCrashed, virt.EventShutdown, virt.EventPMSuspended:
		if a := d.expected[e.Domain]; a != nil {
			d.queue.Add(a.id, 0, e)
		}
	case virt.EventStarted, virt.EventDefined, virt.EventUndefined, virt.EventRebooted, virt.EventIteration,
		virt.EventJobCompleted, virt.EventDisconnected: // none of them says who runs it
	}
}

// seen handles one event of an expected guest: the commit point.
func (d *Dest) seen(ctx context.Context, migration string, e virt.Event) error {
	a := d.find(migration)
	if a == nil {
		return nil
	}
	ctx = a.logged(ctx)
	if err := a.lock(ctx); err != nil {
		return nil // stopping
	}
	defer a.unlock()
	a.again(ctx, a.heard(ctx, e))
	return nil
}

func (d *Dest) find(migration string) *arrival {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.arrivals[migration]
}

// add makes an arrival known, or gives the one that is.
func (d *Dest) add(rec Record) (a *arrival, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a, known = d.arrivals[rec.Migration.UUID]; known {
		return a, true
	}
	a = newArrival(d, rec)
	d.arrivals[a.id] = a
	return a, false
}

// expect makes the guest's events go to an arrival; false if another one has them.
func (d *Dest) expect(a *arrival) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.expected[a.instance]; other != nil && other != a {
		return false
	}
	d.expected[a.instance] = a
	return true
}

// over takes an arrival out of the expected ones and forgets the oldest ended.
func (d *Dest) over(a *arrival) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.expected[a.instance] == a {
		delete(d.expected, a.instance)
	}
	d.arrivals[a.id] = a // it may have been forgotten while a rollback waited
	d.ended = append(d.ended, a.id)
	if len(d.ended) > keepEnded {
		delete(d.arrivals, d.ended[0])
		d.ended = d.ended[1:]
	}
}

// forget drops an arrival that was refused before anything was made or journaled.
func (d *Dest) forget(a *arrival) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.arrivals[a.id] == a {
		delete(d.arrivals, a.id)
	}
}

// SlotsLeft tells how many inbound slots are free, as [Source.SlotsLeft] does.
func (d *Dest) SlotsLeft() int { return d.slots.left() }

// Active tells how many guests are expected here.
func (d *Dest) Active() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.expected)
}

// Check lists every reason against the guest's coming (check_can_live_migrate_destination).
// All inbound slots taken is busy, with details.retry_after_seconds.
func (d *Dest) Check(ctx context.Context, args api.PeerMigrateArgs) (api.CheckResult, error) {
	if err := args.Check(); err != nil {
		return api.CheckResult{}, err
	}
	var reasons []string
	if args.Source == d.cfg.Host {
		reasons = append(reasons, "the destination is the host on which the instance already is")
	}
	storage, plan, err := d.storage(ctx, args)
	if err != nil {
		return api.CheckResult{}, fault.Wrap(err, "check_can_live_migrate_destination", d.cfg.Host)
	}
	reasons = merge(reasons, plan.reasons(args.Instance.Spec, nil))
	reasons = merge(reasons, d.ports.Owner.CanClaim(ctx, args))
	_, err = d.ports.Hypervisor.Lookup(ctx, args.Instance.UUID)
	switch {
	case err == nil:
		reasons = append(reasons, "the destination's hypervisor already has a domain of this UUID")
	case fault.KindOf(err) != fault.NotFound:
		return api.CheckResult{}, fault.Wrap(err, "check_can_live_migrate_destination", d.cfg.Host)
	}
	def := d.record(args).definition()
	def.Copies, def.TLS, def.PostCopy, def.CPU, def.Compression = plan.Copies, args.TLS, args.PostCopy, args.CPU, args.Compression
	theirs, err := d.ports.Hypervisor.Check(ctx, def)
	if err != nil {
		return api.CheckResult{}, fault.Wrap(err, "check_can_live_migrate_destination", d.cfg.Host)
	}
	reasons = merge(reasons, theirs)
	wires, err := d.ports.Plugger.Check(ctx, args.Instance.UUID, d.record(args).ports())
	if err != nil {
		return api.CheckResult{}, fault.Wrap(err, "check_can_live_migrate_destination", d.cfg.Host)
	}
	reasons = merge(reasons, wires)
	if len(reasons) == 0 && d.slots.available() == 0 {
		return api.CheckResult{}, d.busy()
	}
	return api.CheckResult{Reasons: append([]string{}, reasons...), Storage: storage}, nil
}

func (d *Dest) busy() error {
	return fault.Newf(fault.Busy, op, d.cfg.Host, "all %d inbound migration slots are taken", d.cfg.InboundSlots).
		WithDetail("retry_after_seconds", busyRetrySeconds).
		WithHint("it will be tried again; more slots: migration.inbound_slots")
}

// storage says what this host has of the guest's disks, and what would become of them.
func (d *Dest) storage(ctx context.Context, args api.PeerMigrateArgs) (instance.StorageFacts, diskPlan, error) {
	ctx, cancel := within(ctx, d.cfg.HypervisorWait, "the hypervisor's answer")
	defer cancel()
	facts, err := d.ports.Hypervisor.Storage(ctx, d.record(args).definition())
	return facts, planDisks(args.Instance.Spec, args.Storage, facts), causeOf(ctx, err)
}

// record makes the destination's record of a request.
func (d *Dest) record(args api.PeerMigrateArgs) Record {
	now := time.Now()
	return Record{
		Role: RoleDest, Phase: PhaseClaim,
		Migration: instance.Migration{
			UUID: args.Migration, Generation: args.Generation, Instance: args.Instance.UUID,
			Source: args.Source, Dest: d.cfg.Host, Status: instance.MigrationPreparing, Phase: string(PhaseClaim),
			Mode: instance.ModePreCopy, StartedAt: now, UpdatedAt: now,
		},
		Instance:  args.Instance,
		Storage:   args.Storage,
		Copies:    pick(args.Storage.Disks, args.Copies),
		WasPaused: args.Instance.PowerState == instance.PowerPaused,
		UpdatedAt: now,
	}
}

// preparedOf says where the guest is to be sent.
func preparedOf(in virt.Inbound) api.PreparedResult {
	return api.PreparedResult{URI: in.URI, MigrateURI: in.MigrateURI, TLSName: in.TLSName}
}

// Prepare makes this host ready for the guest (pre_live_migration), or undoes what
// it made and says why not.
func (d *Dest) Prepare(ctx context.Context, args api.PeerMigrateArgs) (api.PreparedResult, error) {
	const method = "pre_live_migration"
	if err := args.Check(); err != nil {
		return api.PreparedResult{}, err
	}
	if d.life() == nil {
		return api.PreparedResult{}, d.notStarted(method)
	}
	if args.Source == d.cfg.Host {
		return api.PreparedResult{}, refusal(args.Instance.UUID, []string{"the destination is the host on which the instance already is"})
	}
	a, _ := d.add(d.record(args))
	ctx, cancel := within(a.logged(ctx), d.cfg.PrepareTimeout, method)
	defer cancel()
	if err := a.lock(ctx); err != nil {
		return api.PreparedResult{}, fault.Wrap(err, method, a.id)
	}
	defer a.unlock()
	rec := a.record()
	switch {
	case d.find(a.id) != a:
		return api.PreparedResult{}, d.busy() // refused while we waited for our turn
	case rec.Migration.Generation != args.Generation:
		return api.PreparedResult{}, fault.Newf(fault.Conflict, method, a.id, "it was announced with generation %d, not %d", rec.Migration.Generation, args.Generation)
	case a.failed != nil:
		return api.PreparedResult{}, a.failed
	case rec.Undoing || rec.Ended():
		return api.PreparedResult{}, fault.New(fault.Conflict, method, a.id, "this migration has ended here").WithHint("start a new one")
	case rec.Phase == PhaseAwait:
		return preparedOf(rec.Inbound), nil
	}
	if err := a.prepare(ctx); err != nil {
		return api.PreparedResult{}, fault.Wrap(err, method, a.id)
	}
	rec = a.record()
	return preparedOf(rec.Inbound), nil
}

// Post tells whether this host owns the guest, after taking it when the facts say
// that it has arrived (post_live_migration_at_destination).
func (d *Dest) Post(ctx context.Context, args api.PeerRefArgs) (api.OwnedResult, error) {
	const method = "post_live_migration_at_destination"
	if err := args.Check(); err != nil {
		return api.OwnedResult{}, err
	}
	a := d.find(args.Migration)
	if a == nil { // nothing was promised here; what stands here may still help the source to judge
		dom, err := d.ports.Hypervisor.Lookup(ctx, args.Instance)
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return api.OwnedResult{}, fault.Wrap(err, method, args.Migration)
		}
		return api.OwnedResult{State: string(dom.State), Reason: string(dom.Reason)}, nil
	}
	ctx = a.logged(ctx)
	if err := a.lock(ctx); err != nil {
		return api.OwnedResult{}, fault.Wrap(err, method, a.id)
	}
	defer a.unlock()
	if args.Stopped {
		a.note(func(rec *Record) { rec.PausedByUs, rec.WasPaused = true, false }) // it ran when the source stopped it
	}
	dom, err := a.lookAndCommit(ctx, args.SourceEnded)
	a.again(ctx, err)
	if err != nil && !a.record().Committed {
		return api.OwnedResult{}, fault.Wrap(err, method, a.id)
	}
	dom, anew := a.since(ctx, dom)
	res := api.OwnedResult{Owned: a.record().Committed, State: string(dom.State), Reason: string(dom.Reason), Superseded: anew || a.destroyed(dom)}
	if res.Owned {
		if j, err := d.ports.Hypervisor.CompletedJob(ctx, a.instance); err == nil {
			res.DowntimeMS = j.Downtime.Milliseconds()
		}
	}
	return res, nil
}

// destroyed reports whether the guest is gone and its owner wanted that.
func (a *arrival) destroyed(dom virt.Domain) bool {
	sight := SightOf(dom, nil)
	return a.record().Superseded && (sight == SightOff || sight == SightAbsent)
}

// Supersede notes that the owner of a guest which this host owns is about to destroy its
// domain. Once that is gone, a source that still holds a part of its memory, for a post-copy
// that broke with that, needs it no more, whatever becomes of the guest next. It is in the
// journal when it returns.
func (d *Dest) Supersede(ctx context.Context, instanceID string) error {
	for _, a := range d.owned(instanceID) {
		if err := a.supersede(ctx); err != nil {
			return fault.Wrap(err, op, a.id)
		}
	}
	return nil
}

// owned gives the arrivals that brought a guest which this host took.
func (d *Dest) owned(instanceID string) (arrivals []*arrival) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range d.arrivals {
		if a.instance == instanceID && a.record().Committed {
			arrivals = append(arrivals, a)
		}
	}
	return arrivals
}

// Rollback undoes what Prepare made, and makes a later Prepare of the same
// migration a conflict (rollback_live_migration_at_destination). Conflict when the
// guest runs here. A Prepare that is under way is cut short.
func (d *Dest) Rollback(ctx context.Context, args api.PeerRefArgs) error {
	const method = "rollback_live_migration_at_destination"
	if err := args.Check(); err != nil {
		return err
	}
	if d.life() == nil {
		return d.notStarted(method)
	}
	a, _ := d.add(d.record(api.PeerMigrateArgs{
		Migration: args.Migration, Generation: args.Generation,
		Instance: instance.Instance{UUID: args.Instance},
	}))
	ctx = a.logged(ctx)
	a.cut(fault.New(fault.Cancelled, method, a.id, "the source takes the migration back"))
	if err := a.lock(ctx); err != nil {
		return fault.Wrap(err, method, a.id)
	}
	defer a.unlock()
	return fault.Wrap(a.rollback(ctx), method, a.id)
}

// Resume takes up a record of the journal after a restart: finishes what is
// committed, undoes what was being prepared, waits on for what was promised. It
// returns at once; call it for every record before any request is served, so that no
// message finds its migration unknown. Conflict before Start.
func (d *Dest) Resume(ctx context.Context, rec Record) error {
	life := d.life()
	if life == nil {
		return d.notStarted(op)
	}
	a, known := d.add(rec)
	if known {
		return nil
	}
	if err := a.lock(ctx); err != nil { // it is new: the turn is ours
		return fault.Wrap(err, op, a.id)
	}
	green.SpawnN(life, func(ctx context.Context) error { //nolint:contextcheck // its parent's life is another
		defer a.unlock()
		ctx = a.logged(ctx)
		a.again(ctx, a.resume(ctx))
		return nil
	})
	return nil
}
