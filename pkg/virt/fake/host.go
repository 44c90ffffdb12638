package fake

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Host is one hypervisor host with its guests. It outlives the drivers opened on it.
type Host struct {
	world  *World
	cfg    Config
	faults Faults
	link   *listener
	lines  lines
	store  store

	// Guarded by World.mu.
	domains   map[string]*domain
	claims    map[string]claim // what PrepareIncoming made, by instance
	completed map[string]virt.Job
	counts    map[string]*Effects
	touched   map[string]struct{} // instances with changes that are not written down; nothing without Config.Dir
	drivers   []*Driver
	nextID    int
	connected bool
	cut       chan struct{} // closed by Disconnect
	twins     bool          // see Twins
}

// claim is a guest that is expected here.
type claim struct {
	Migration string `json:"migration"`
}

// NewHost adds a host to a world. It takes up what Config.Dir holds, guests that
// ran go on, and opens Config.Listen.
func NewHost(w *World, cfg Config) (*Host, error) {
	if cfg.Name == "" {
		return nil, fault.New(fault.InvalidArgument, "new_host", "", "a fake host needs a name")
	}
	h := &Host{
		world: w, cfg: cfg.withDefaults(), store: store{dir: cfg.Dir, host: cfg.Name}, connected: true, cut: make(chan struct{}), nextID: 1,
		domains: map[string]*domain{}, claims: map[string]claim{}, completed: map[string]virt.Job{}, counts: map[string]*Effects{},
		touched: map[string]struct{}{},
	}
	if err := h.load(); err != nil {
		return nil, err
	}
	if cfg.Listen != "" {
		l, err := listen(w.ctx, h, cfg.Listen)
		if err != nil {
			return nil, err
		}
		h.link = l
	}
	if err := w.add(h); err != nil {
		return nil, h.unlink(err)
	}
	return h, nil
}

func (h *Host) unlink(err error) error {
	if h.link != nil {
		_ = h.link.close()
	}
	return err
}

// Close stops listening for guests of other processes. Guests stay as they are;
// what is on its way over the link fails.
func (h *Host) Close() error {
	h.world.mu.Lock()
	err := h.store.close()
	h.world.mu.Unlock()
	if h.link == nil {
		return err
	}
	return errors.Join(err, h.link.close())
}

// Open gives a driver for this host: a connection to its hypervisor.
func (h *Host) Open() *Driver {
	d := &Driver{host: h, gone: make(chan struct{})}
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	h.drivers = append(h.drivers, d)
	return d
}

// Name is the host name.
func (h *Host) Name() string { return h.cfg.Name }

// Faults is where trouble for this host's drivers and migrations is made.
func (h *Host) Faults() *Faults { return &h.faults }

// Disconnect takes the hypervisor away: calls, also those that wait, answer
// unavailable, events are lost. Guests and migrations go on.
func (h *Host) Disconnect() {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	if !h.connected {
		return
	}
	h.broadcastLocked(virt.Event{Kind: virt.EventDisconnected})
	h.connected = false
	close(h.cut)
}

// Reconnect ends Disconnect.
func (h *Host) Reconnect() {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	if h.connected {
		return
	}
	h.connected, h.cut = true, make(chan struct{})
	h.broadcastLocked(virt.Event{Kind: virt.EventConnected})
}

// AddForeign starts a domain that is not ours and gives its UUID.
func (h *Host) AddForeign(name string) string {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	spec := instance.Spec{UUID: uuid.NewString(), Name: name, VCPUs: 1, MemoryMiB: 64}
	d := &domain{def: virt.Definition{Spec: spec}, foreign: true, persistent: true, id: -1, state: virt.Shutoff}
	h.domains[spec.UUID] = d
	h.bootLocked(d)
	return spec.UUID
}

// Crash ends a guest as the death of its QEMU does: stopped(failed), off by crashed.
func (h *Host) Crash(id string) error {
	return h.guest("crash", id, func(d *domain) {
		h.stopLocked(d, virt.ReasonCrashed, virt.ReasonFailed)
	})
}

// Panic is the crash of a guest's kernel where its process is kept: it stands still.
func (h *Host) Panic(id string) error {
	return h.guest("panic", id, func(d *domain) {
		d.brain.freeze(time.Now())
		d.state, d.reason = virt.Crashed, virt.ReasonUnknown
		h.tellLocked(virt.EventCrashed, id, virt.ReasonUnknown)
	})
}

// KillQEMU is the death of the process of a domain, whatever it does at that moment:
// run, stand still, arrive or leave.
func (h *Host) KillQEMU(id string) error {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	d := h.domains[id]
	if d == nil || !d.active() {
		return notFound("kill", id)
	}
	h.stopLocked(d, virt.ReasonCrashed, virt.ReasonFailed)
	return h.changedLocked(id)
}

// Look is what a person at the machine sees of a domain: no fault strikes, and no
// connection is needed.
func (h *Host) Look(id string) (virt.Domain, bool) {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	d := h.domains[id]
	if d == nil {
		return virt.Domain{}, false
	}
	return d.view(), true
}

// Split reports whether a part of a guest's memory is here and another part elsewhere: its
// post-copy runs, or broke. Of a guest that is paused its state does not tell.
func (h *Host) Split(id string) bool {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	d := h.domains[id]
	if d == nil {
		return false
	}
	return d.reason == virt.ReasonPostCopy || d.reason == virt.ReasonPostCopyFailed ||
		d.arriving != nil && d.arriving.postCopy || d.job != nil && (d.job.stage == stagePostCopy || d.job.stage == stageMending)
}

// Twins makes a source that does not hear whether its guest has arrived let it go on, as
// libvirt 9.0 does (seen in the lab): it may run on both hosts then. Off at first: it
// stands still.
func (h *Host) Twins(on bool) {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	h.twins = on
}

// GuestShutdown is the guest going off by its own will.
func (h *Host) GuestShutdown(id string) error {
	return h.guest("guest_shutdown", id, func(d *domain) { h.powerOffLocked(d) })
}

// GuestReboot is the guest resetting itself: the same process, booting again.
func (h *Host) GuestReboot(id string) error {
	return h.guest("guest_reboot", id, func(d *domain) {
		d.brain.Uptime, d.brain.Since, d.console = 0, time.Now(), 0
		d.brain.Pressed = false // the new kernel knows of no button
		if d.button != nil {
			d.button.Stop()
		}
		h.tellLocked(virt.EventRebooted, id, "")
	})
}

// guest does something to a running guest from its inside.
func (h *Host) guest(op, id string, f func(*domain)) error {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	d := h.domains[id]
	if d == nil {
		return notFound(op, id)
	}
	if d.state != virt.Running {
		return conflict(op, id, "the guest does not run: it is "+string(d.state))
	}
	f(d)
	return h.changedLocked(id)
}

// Expected gives the migrations whose guests have a place here and have not come, by
// instance.
func (h *Host) Expected() map[string]string {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	out := make(map[string]string, len(h.claims))
	for id, c := range h.claims {
		out[id] = c.Migration
	}
	return out
}

// Effects counts what really happened to one instance on one host; what was
// already so is not counted.
type Effects struct {
	Defines, Undefines          int
	Starts, Stops               int // a stop by whatever cause; a restore is a start, a departure no stop
	Shutdowns, Pauses, Unpauses int // a shutdown counts when the guest was asked
	Saves, Restores             int
	Prepares, Arrivals          int // an arrival counts when the guest's CPUs began to run here (or would, were it not paused)
	Departures, FailedMoves     int // of a guest that left, or meant to
}

// Counts gives the effects on one instance since the host began; with Config.Dir,
// since its folder was empty.
func (h *Host) Counts(id string) Effects {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	if c := h.counts[id]; c != nil {
		return *c
	}
	return Effects{}
}

// countLocked gives an instance's counters, to change them.
func (h *Host) countLocked(id string) *Effects {
	h.touchLocked(id)
	c := h.counts[id]
	if c == nil {
		c = &Effects{}
		h.counts[id] = c
	}
	return c
}

// Driver is a connection to a fake host; it implements virttest.Driver.
type Driver struct {
	host   *Host
	gone   chan struct{} // closed by Close
	closed atomic.Bool
	subs   []*subscription // guarded by World.mu
}

// Close ends the connection: subscriptions end, calls answer unavailable.
func (d *Driver) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	close(d.gone)
	w := d.host.world
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range d.subs {
		s.cancel()
	}
	d.subs = nil
	d.host.drivers = slices.DeleteFunc(d.host.drivers, func(o *Driver) bool { return o == d })
	return nil
}

// FakeHost gives the host behind the driver, for tests that make trouble.
func (d *Driver) FakeHost() *Host { return d.host }

// Subscribe delivers events to fn; see virttest.Host.
func (d *Driver) Subscribe(fn func(virt.Event)) (cancel func()) {
	s := &subscription{fn: fn}
	w := d.host.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if d.closed.Load() {
		return func() {}
	}
	if d.host.connected {
		s.push(w.ctx, virt.Event{Kind: virt.EventConnected, At: time.Now()})
	}
	d.subs = append(d.subs, s)
	return func() {
		s.cancel()
		w.mu.Lock()
		defer w.mu.Unlock()
		d.subs = slices.DeleteFunc(d.subs, func(o *subscription) bool { return o == s })
	}
}

// Host describes the machine.
func (d *Driver) Host(ctx context.Context) (virt.Host, error) {
	return ask(ctx, d, "Host", "", func() (virt.Host, error) {
		c := d.host.cfg
		return virt.Host{
			Hostname: c.Name, MachineID: uuid.NewSHA1(uuid.NameSpaceDNS, []byte("fake."+c.Name)).String(), Driver: "fake",
			HypervisorType: "fake", HypervisorVersion: "1.0.0", Arch: "x86_64", VCPUs: c.VCPUs, MemoryMiB: c.MemoryMiB,
			DiskGiB: c.DiskGiB, DiskFreeGiB: c.DiskGiB, CPUModel: "fake", MachineTypes: c.MachineTypes, DomainTypes: []string{"fake"},
		}, nil
	})
}

// ask carries out a call: faults and the connection first, then f under the
// world's lock.
func ask[T any](ctx context.Context, d *Driver, method, id string, f func() (T, error)) (T, error) {
	var zero T
	strike := d.host.faults.hit(method, id)
	if err := strike.before(ctx, method, id); err != nil {
		return zero, err
	}
	v, err := locked(ctx, d, method, id, f)
	if err = strike.after(method, id, err); err != nil {
		return zero, err
	}
	return v, nil
}

// locked is ask without the faults.
func locked[T any](ctx context.Context, d *Driver, method, id string, f func() (T, error)) (T, error) {
	var zero T
	if ctx.Err() != nil {
		return zero, fault.Wrap(context.Cause(ctx), method, id)
	}
	w := d.host.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := d.awayLocked(method); err != nil {
		return zero, err
	}
	return f()
}

// tell is ask for a call that changes one of our domains.
func tell(ctx context.Context, d *Driver, method, id string, f func(*domain) error) error {
	_, err := ask(ctx, d, method, id, func() (struct{}, error) {
		dom, err := d.host.findLocked(method, id)
		if err != nil {
			return struct{}{}, err
		}
		if dom.foreign {
			return struct{}{}, foreign(method, id)
		}
		if err := f(dom); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, d.host.changedLocked(id)
	})
	return err
}

func (d *Driver) awayLocked(method string) error {
	switch {
	case d.closed.Load():
		return fault.New(fault.Unavailable, method, d.host.cfg.Name, "the driver was closed")
	case !d.host.connected:
		return fault.New(fault.Unavailable, method, d.host.cfg.Name, "the hypervisor is away").
			WithHint("it comes back by itself; look at the hypervisor's service when it does not")
	}
	return nil
}

func (h *Host) findLocked(method, id string) (*domain, error) {
	if d := h.domains[id]; d != nil {
		return d, nil
	}
	return nil, notFound(method, id)
}

func notFound(op, id string) error {
	return fault.New(fault.NotFound, op, id, "no such domain on this hypervisor")
}

func conflict(op, id, why string) error { return fault.New(fault.Conflict, op, id, why) }

func foreign(op, id string) error {
	return conflict(op, id, "the domain is not managed by compute-agent and is never touched")
}
