package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/reconcile"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// machine is what is known of the host at the moment. mu guards all fields.
type machine struct {
	mu        sync.Mutex
	facts     virt.Host
	connected bool // and an inventory was taken since
	foreign   int
	problems  []string        // what waits for a person, renewed by each reconcile
	later     map[string]bool // instances that lookLater has promised a look
	seen      chan struct{}   // closed after the first inventory that succeeded
	once      sync.Once
}

func (m *machine) get() (virt.Host, bool, []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.facts, m.connected, append([]string(nil), m.problems...)
}

func (m *machine) foreignCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.foreign
}

func (m *machine) set(fn func(*machine)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn(m)
}

// onEvent is the driver's subscriber: it only notes which domain to look at. The
// queue keeps one entry a domain, so a storm of events costs one look.
func (a *Agent) onEvent(e virt.Event) {
	if e.Kind == virt.EventIteration || e.Kind == virt.EventJobCompleted {
		return
	}
	if e.Kind == virt.EventDisconnected {
		a.machine.set(func(m *machine) { m.connected = false })
		a.views.mark(rpc.Hosts, "")
	}
	a.lookAt(e)
}

// lookAt has a domain looked at. What an event has told of it is kept over a look that
// nobody told of.
func (a *Agent) lookAt(e virt.Event) {
	if e.Kind == "" {
		a.looks.Offer(e.Domain, 0, e)
		return
	}
	a.looks.Add(e.Domain, 0, e)
}

// look handles what onEvent noted; the empty domain stands for the hypervisor.
func (a *Agent) look(ctx context.Context, id string, e virt.Event) error {
	if id != "" {
		err := a.restate(ctx, id, e)
		if err != nil { // the journal takes nothing: what was seen must not be lost
			a.lookLater(id)
		}
		return err
	}
	if e.Kind == virt.EventConnected {
		return a.takeInventory(ctx)
	}
	logkit.From(ctx).Warn("the hypervisor is away; requests that need it answer unavailable")
	return nil
}

// names of instance events, by what the hypervisor said. A shutdown is told as what came
// of it, for whether it or the stop that follows at once is looked at is chance.
var eventNames = map[virt.EventKind]string{ //nolint:exhaustive // the others change no record
	virt.EventStarted: "started", virt.EventResumed: "resumed", virt.EventSuspended: "paused", virt.EventStopped: "stopped",
	virt.EventCrashed: "crashed", virt.EventPMSuspended: "suspended", virt.EventRebooted: "guest-rebooted",
}

// nameOf names a change by the event that made it be seen, or by what came of it
// when the newest event of the guest has another subject.
func nameOf(kind virt.EventKind, now instance.VMState) string {
	if name := eventNames[kind]; name != "" {
		return name
	}
	return eventNames[eventOf(now)]
}

// restate brings a record in line with its domain when no task holds it: the
// guest went off by itself, crashed, was paused by somebody else.
func (a *Agent) restate(ctx context.Context, id string, e virt.Event) error {
	inst, known := a.ledger.instance(id)
	if !known || a.lanes.noteMissed(e) || inst.TaskState != instance.TaskNone {
		return nil
	}
	power, seen := a.power(ctx, id)
	if !seen { // while the hypervisor is away, the inventory after its return looks
		if _, connected, _ := a.machine.get(); connected {
			a.lookLater(id)
		}
		return nil
	}
	if power == instance.PowerPending && a.lost(inst) {
		return a.markMissing(ctx, reconcile.Repair{Instance: id, Reason: missing(inst)})
	}
	want := instance.VMStateOf(power, inst.VMState)
	if want == inst.VMState && power == inst.PowerState {
		return nil
	}
	return a.follow(ctx, id, e, power)
}

// rewire plugs the ports of a guest that lives here. No task of the instance begins
// meanwhile: one that ended it would have its ports made again behind its back. While
// one runs it is tried again later, for that may end without a look at the ports.
func (a *Agent) rewire(ctx context.Context, id string) error {
	release, ok := a.lanes.pin(id)
	if !ok {
		a.lookLater(id)
		return nil
	}
	defer release()
	inst, known := a.ledger.instance(id)
	if !known || inst.TaskState != instance.TaskNone || slices.ContainsFunc(a.ledger.migrationsOf(id), waits) {
		return nil
	}
	if err := a.net.Plug(ctx, id, portsOf(inst)); err != nil {
		return err
	}
	return a.net.Activate(ctx, id, portsOf(inst))
}

// follow writes down how the hypervisor has an instance that no task holds.
func (a *Agent) follow(ctx context.Context, id string, e virt.Event, power instance.PowerState) error {
	return a.ledger.commit(ctx, func(c *change) error {
		now, known := c.instance(id)
		if !known || now.TaskState != instance.TaskNone {
			return nil
		}
		now.PowerState = power
		if now.VMState != instance.VMError && now.VMState != instance.VMBuilding {
			now.VMState = instance.VMStateOf(power, now.VMState)
		}
		if err := c.putInstance(now); err != nil {
			return err
		}
		return c.instanceEvent(now, nameOf(e.Kind, instance.VMStateOf(power, now.VMState)), string(e.Reason), "")
	})
}

// takeInventory reconciles after a new connection, again until it is done: without an
// inventory the host has no room for anybody. A connection that is lost meanwhile is
// followed by a new one.
func (a *Agent) takeInventory(ctx context.Context) error {
	select {
	case <-a.taken: // before, what a task of an earlier run left half done looks like a defect
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	retry := green.Retry{
		Max: -1, First: a.cfg.RetryFirst, Limit: a.cfg.RetryLimit,
		OnRetry: func(try int, err error, _ time.Duration) {
			if try == 1 {
				logkit.From(ctx).Warn("no inventory yet, trying again", logkit.Err(err))
			}
		},
	}
	_, err := green.RetryCall(ctx, retry, func(ctx context.Context) (struct{}, error) { return struct{}{}, a.reconcile(ctx) })
	return err
}

// reconcile takes an inventory and repairs the differences, instances side by
// side; one sick instance never stops the others. It never deletes anything.
func (a *Agent) reconcile(ctx context.Context) error {
	facts, err := a.hv.Host(ctx)
	if err != nil {
		return err
	}
	domains, err := a.hv.List(ctx)
	if err != nil {
		return err
	}
	repairs := reconcile.Diff(a.ledger.all(), domains, a.heldIDs())
	var problems []string
	if aside := a.store.SetAside(); aside != "" {
		problems = append(problems, "the journal was damaged and is set aside as "+aside+"; what was accepted and not done is not known any more")
	}
	foreign := 0
	for _, d := range domains {
		if !d.Owned {
			foreign++
		}
	}
	for _, r := range repairs {
		if r.Action == reconcile.Quarantine || r.Action == reconcile.Missing {
			problems = append(problems, fmt.Sprintf("instance %s: %s", r.Instance, r.Reason))
		}
	}
	a.machine.set(func(m *machine) { m.facts, m.foreign, m.problems, m.connected = facts, foreign, problems, true })
	pool := green.NewPool(a.cfg.RepairWorkers)
	for _, r := range repairs {
		if err := pool.SpawnN(ctx, func(ctx context.Context) error { a.repair(ctx, r); return nil }); err != nil {
			return err
		}
	}
	if err := pool.WaitAll(ctx); err != nil {
		return err
	}
	a.machine.once.Do(func() { close(a.machine.seen) })
	a.views.mark(rpc.Hosts, "")
	a.showNow(ctx, rpc.Hosts, "")
	signal(a.reviewSoon)
	logkit.From(ctx).Info("inventory taken", logkit.Key("instances").Of(len(repairs)),
		logkit.Key("foreign").Of(foreign), logkit.Key("problems").Of(len(problems)))
	return nil
}

// heldIDs names the instances that a task, a migration or a claim holds.
func (a *Agent) heldIDs() map[string]bool {
	held := a.lanes.busy()
	for _, r := range a.ledger.openMigrations() {
		held[r.Migration.Instance] = true
	}
	return held
}

// repair applies one verdict; its failure is the instance's alone.
func (a *Agent) repair(ctx context.Context, r reconcile.Repair) {
	ctx = logkit.With(ctx, logkit.Instance.Of(r.Instance))
	log := logkit.From(ctx)
	var err error
	switch r.Action {
	case reconcile.Keep:
	case reconcile.Skip:
		a.lookLater(r.Instance)
		return
	case reconcile.Quarantine:
		log.Warn("left alone until a person decides", logkit.Key("reason").Of(r.Reason))
		return
	case reconcile.Restate:
		log.Info("the record follows the hypervisor", logkit.Key("reason").Of(r.Reason))
		err = a.restate(ctx, r.Instance, virt.Event{Kind: eventOf(r.VMState), Domain: r.Instance, Reason: reconciled})
	case reconcile.Missing:
		log.Warn("the instance has no domain", logkit.Key("reason").Of(r.Reason))
		err = a.markMissing(ctx, r)
	}
	if r.Active && err == nil {
		err = a.rewire(ctx, r.Instance)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Error("the instance was not repaired yet", logkit.Err(err))
		a.lookLater(r.Instance)
	}
}

// reconciled is the reason of a look that an inventory asked for.
const reconciled = virt.Reason("reconciled")

// lookLater has an instance looked at again, and its ports, that an inventory left to the
// task or the migration that held it: they may end without a look at the guest. An
// instance that was promised a look gets no second one.
func (a *Agent) lookLater(id string) {
	promised := false
	a.machine.set(func(m *machine) {
		if m.later == nil {
			m.later = map[string]bool{}
		}
		promised, m.later[id] = m.later[id], true
	})
	if promised {
		return
	}
	a.spawnAfter(a.cfg.RetryLimit, func(ctx context.Context) {
		a.machine.set(func(m *machine) { delete(m.later, id) })
		a.lookAgain(ctx, id)
	})
}

// lookAgain keeps what lookLater has promised.
func (a *Agent) lookAgain(ctx context.Context, id string) {
	a.lookAt(virt.Event{Domain: id, Reason: reconciled})
	d, err := a.hv.Lookup(ctx, id)
	if inst, known := a.ledger.instance(id); err == nil && known && d.Active() && d.Generation == inst.Generation {
		err = a.rewire(ctx, id)
	}
	if err != nil && !isGone(err) && ctx.Err() == nil { // while the hypervisor is away, the inventory after its return looks
		logkit.From(ctx).Warn("an instance could not be looked at again", logkit.Instance.Of(id), logkit.Err(err))
	}
}

func eventOf(s instance.VMState) virt.EventKind {
	switch s {
	case instance.VMActive:
		return virt.EventStarted
	case instance.VMPaused:
		return virt.EventSuspended
	case instance.VMSuspended:
		return virt.EventPMSuspended
	case instance.VMStopped, instance.VMBuilding, instance.VMError, instance.VMDeleted:
		return virt.EventStopped
	}
	return virt.EventStopped
}

// lost reports whether an instance that has no domain should have one: it is no build,
// and no migration is taking it along.
func (a *Agent) lost(inst instance.Instance) bool {
	switch inst.VMState {
	case instance.VMBuilding, instance.VMError, instance.VMDeleted:
		return false
	case instance.VMActive, instance.VMPaused, instance.VMSuspended, instance.VMStopped:
	}
	return !a.heldIDs()[inst.UUID]
}

func missing(inst instance.Instance) string {
	return fmt.Sprintf("the hypervisor has no domain of this %s instance", inst.VMState)
}

func (a *Agent) markMissing(ctx context.Context, r reconcile.Repair) error {
	return a.ledger.commit(ctx, func(c *change) error {
		inst, known := c.instance(r.Instance)
		if !known || inst.TaskState != instance.TaskNone {
			return nil
		}
		inst.VMState, inst.PowerState = instance.VMError, instance.PowerPending
		inst.Fault = fault.New(fault.NotFound, "reconcile", inst.UUID, r.Reason).
			WithHint("start it to make it anew from its record, or delete it")
		if err := c.putInstance(inst); err != nil {
			return err
		}
		return c.instanceEvent(inst, "lost", r.Reason, "")
	})
}
