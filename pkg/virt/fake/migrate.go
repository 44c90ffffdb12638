package fake

import (
	"context"
	"net/url"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// stage is how far a migration is; the picture is in the package's doc.
type stage int

const (
	stageSetup stage = iota
	stageDisks       // block migration: the disks first
	stagePreCopy
	stageSwitching  // the source's CPUs stand still, their state is on its way
	stageToPostCopy // the same, with memory to follow
	stagePostCopy
	stageMending   // a post-copy that broke gets a new connection
	stageFinishing // the guest runs on the destination
	stageOver
)

// migration is one guest leaving. Guarded by World.mu; wake alone works outside it.
type migration struct {
	// What a look at the job reads lies together.
	stage     stage
	busy      bool // wake is outside the lock
	dom       *domain
	*crossing // nil before the CPUs stop
	began     time.Time
	setup     time.Duration
	diskRate  float64 // bytes/s
	diskBytes uint64  // in all
	flowAt    time.Time
	flow      flow

	host        *Host
	req         virt.MigrateRequest
	target      target
	timer       *time.Timer
	due         time.Time
	maxDowntime time.Duration

	done chan struct{}
	err  error
}

// crossing is what there is to a migration from the moment on when the CPUs stop.
type crossing struct {
	suspended time.Time // when that was
	paused    bool      // they stood still before
	stats     virt.Job
	postBytes float64 // what post-copy has to move
	postMoved float64 // and has moved before flowAt
}

// target is the destination as the source sees it. begin, postCopy and finish are
// called without the world's lock and may wait; an error of kind unavailable means
// that nobody knows whether they were carried out. lostLocked is called when the
// guest can't arrive any more.
type target interface {
	begin(ctx context.Context, o offer, lostLocked func()) error
	postCopy(ctx context.Context, h handover) error
	mend(ctx context.Context, h handover) error
	quit(h handover) // waits, bounded, until the destination has given the guest up
	finish(ctx context.Context, h handover) error
	abortLocked()
}

// offer is a guest that wants to come.
type offer struct {
	Instance  string          `json:"instance"`
	Migration string          `json:"migration"`
	Source    string          `json:"source"`
	Def       virt.Definition `json:"definition"`
	Guest     Guest           `json:"guest"`
}

// handover is the CPUs' state, and the statistics so far.
type handover struct {
	Instance  string        `json:"instance"`
	Migration string        `json:"migration"`
	Uptime    time.Duration `json:"uptime"`
	Pressed   bool          `json:"pressed,omitempty"`
	Paused    bool          `json:"paused,omitempty"`
	Job       virt.Job      `json:"job"`
}

// Migrate moves a guest; see virttest.Mover. The job is the host's: it goes on
// when ctx ends, when the driver is closed and while the hypervisor is away.
func (d *Driver) Migrate(ctx context.Context, r virt.MigrateRequest) error {
	strike := d.host.faults.hit("Migrate", r.Instance)
	if err := strike.before(ctx, "Migrate", r.Instance); err != nil {
		return err
	}
	m, cut, err := d.leave(ctx, &r)
	if err == nil {
		err = d.await(ctx, m, cut)
	}
	return strike.after("Migrate", r.Instance, err)
}

// leave begins a job; cut is closed when the caller's connection is lost. It is apart for
// the stack on which Migrate waits: there are thousands of them.
//
//go:noinline
func (d *Driver) leave(ctx context.Context, r *virt.MigrateRequest) (m *migration, cut chan struct{}, err error) {
	if err := r.RefuseCompression("Migrate"); err != nil {
		return nil, nil, err
	}
	to, err := d.host.resolve(*r)
	if err != nil {
		return nil, nil, err
	}
	m, err = locked(ctx, d, "Migrate", r.Instance, func() (*migration, error) {
		cut = d.host.cut
		return d.host.leaveLocked(*r, to)
	})
	return m, cut, err
}

// await waits for the end of a job, of the caller, or of the connection.
func (d *Driver) await(ctx context.Context, m *migration, cut <-chan struct{}) error {
	id := m.req.Instance
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return fault.Wrap(context.Cause(ctx), "Migrate", id)
	case <-d.gone:
		return fault.New(fault.Unavailable, "Migrate", id, "the driver was closed; the job goes on")
	case <-cut:
		return fault.New(fault.Unavailable, "Migrate", id, "the connection to the hypervisor was lost; the job goes on")
	}
}

// resolve finds the destination that an Inbound names.
func (h *Host) resolve(r virt.MigrateRequest) (target, error) {
	u, err := url.Parse(r.Inbound.URI)
	if err != nil {
		return nil, fault.WrapAs(fault.InvalidArgument, err, "Migrate", r.Inbound.URI)
	}
	name := u.Path
	if len(name) > 0 {
		name = name[1:]
	}
	if name == h.cfg.Name {
		return nil, conflict("Migrate", r.Instance, "the guest would be sent to the host it is on")
	}
	switch u.Scheme {
	case schemeWorld:
		dest := h.world.Host(name)
		if dest == nil {
			return nil, fault.New(fault.Unavailable, "Migrate", name, "no such host in this world")
		}
		return &neighbour{dest: dest}, nil
	case schemeTCP:
		return &stranger{address: u.Host, host: h, guest: passage{r.Instance, r.Migration}}, nil
	}
	return nil, fault.Newf(fault.InvalidArgument, "Migrate", r.Inbound.URI, "the fake driver can't send a guest to %q", u.Scheme)
}

// leaveLocked begins a migration.
func (h *Host) leaveLocked(r virt.MigrateRequest, to target) (*migration, error) {
	d, err := h.findLocked("Migrate", r.Instance)
	switch {
	case err != nil:
		return nil, err
	case d.foreign:
		return nil, foreign("Migrate", r.Instance)
	case d.job != nil:
		return nil, conflict("Migrate", r.Instance, "another migration of this guest runs")
	}
	if err := d.steady("Migrate", r.Instance); err != nil {
		return nil, err
	}
	if !d.live {
		return nil, conflict("Migrate", r.Instance, "the outcome of an earlier migration is not known")
	}
	m := &migration{
		host: h, dom: d, req: r, target: to, began: time.Now(), maxDowntime: h.cfg.MaxDowntime, done: make(chan struct{}),
	}
	m.diskBytes = m.diskTotal()
	d.job = m
	m.armLocked(h.cfg.Setup)
	return m, nil
}

// armLocked has wake called after d.
func (m *migration) armLocked(d time.Duration) {
	m.due = time.Now().Add(d)
	if m.timer == nil {
		m.timer = time.AfterFunc(d, m.wake)
		return
	}
	m.timer.Reset(d)
}

// wake does what is due: first what needs the other host, without the lock, then
// the move to the next stage.
func (m *migration) wake() {
	mu := &m.host.world.mu
	mu.Lock()
	at := m.stage
	if m.busy || at == stageOver || time.Now().Before(m.due) {
		mu.Unlock()
		return
	}
	m.busy = true
	if at == stageSwitching {
		m.stats.Elapsed, m.stats.Downtime = time.Since(m.began), time.Since(m.suspended)
	}
	o, hand := m.offerLocked(), m.handoverLocked()
	mu.Unlock()

	err := m.outside(at, o, hand)

	mu.Lock()
	defer mu.Unlock()
	m.busy = false
	if m.stage == stageOver {
		return
	}
	if m.stage == at {
		m.insideLocked(at, err, time.Now())
	} else { // it was moved on meanwhile, by StartPostCopy: that goes its own way
		m.armLocked(time.Until(m.due))
	}
	_ = m.host.changedLocked(m.req.Instance) // kept for the next call
}

// outside is the part of a stage that may wait.
func (m *migration) outside(at stage, o offer, hand handover) error {
	h, id := m.host, o.Instance
	ctx := context.WithoutCancel(h.world.ctx)
	strike := func(point string, then func() error) error {
		a := h.faults.hit(point, id)
		if err := a.before(ctx, "Migrate", id); err != nil {
			return err
		}
		return a.after("Migrate", id, then())
	}
	switch at {
	case stageSetup:
		return strike(PointBegin, func() error { return m.target.begin(ctx, o, m.lostLocked) })
	case stagePreCopy:
		return strike(PointPreCopy, func() error { return nil })
	case stageToPostCopy:
		return m.target.postCopy(ctx, hand)
	case stageMending:
		return strike(PointPostCopy, func() error { return m.target.mend(ctx, hand) })
	case stageSwitching:
		return strike(PointFinish, func() error { return m.target.finish(ctx, hand) })
	case stagePostCopy:
		err := strike(PointPostCopy, func() error { return m.target.finish(ctx, hand) })
		if err != nil { // it breaks here: the destination knows before anybody hears of it
			m.target.quit(hand)
		}
		return err
	case stageDisks, stageFinishing, stageOver:
	}
	return nil
}

// offerLocked is what the destination is told; the definition of the present run
// goes, with the new owner's generation.
func (m *migration) offerLocked() offer {
	def := m.dom.running
	def.Generation, def.Migration = m.req.Generation, m.req.Migration
	return offer{Instance: m.req.Instance, Migration: m.req.Migration, Source: m.host.cfg.Name, Def: def, Guest: m.dom.brain.Guest}
}

// handoverLocked is nothing before the CPUs stop.
func (m *migration) handoverLocked() (h handover) {
	if m.crossing == nil {
		return h
	}
	b := m.dom.brain
	return handover{
		Instance: m.req.Instance, Migration: m.req.Migration, Uptime: b.Uptime, Pressed: b.Pressed, Paused: m.paused, Job: m.stats,
	}
}

// lostLocked is called when the incoming domain goes before its time.
func (m *migration) lostLocked() {
	if m.stage < stageSwitching {
		m.failLocked(time.Now(), fault.New(fault.Internal, "Migrate", m.req.Instance, "operation failed: the destination's end of the job went away"))
		_ = m.host.changedLocked(m.req.Instance) // kept for the next call
	}
}

// insideLocked moves on from a stage whose time has come.
func (m *migration) insideLocked(at stage, err error, now time.Time) {
	switch at {
	case stageSetup:
		if err != nil {
			m.failLocked(now, err)
			return
		}
		m.disksLocked(now)
	case stageDisks:
		m.preCopyLocked(now)
	case stagePreCopy:
		m.iterateLocked(now, err)
	case stageSwitching, stageToPostCopy, stagePostCopy:
		m.handedLocked(at, now, err)
	case stageMending:
		m.mendedLocked(now, err)
	case stageFinishing:
		m.departLocked()
	case stageOver:
	}
}

func (m *migration) preCopyLocked(now time.Time) {
	m.stage = stagePreCopy
	memory := unsigned(int64(m.dom.running.Spec.MemoryMiB)) * mib
	limit := m.req.BandwidthMiB
	m.flow = newFlow(memory, m.dom.brain.Guest, m.host.cfg.bandwidth(limit))
	m.flow.autoConverge = m.req.AutoConverge
	m.flowAt = now
	m.iterationLocked()
}

// bandwidth is bytes/s under a limit in MiB/s; 0 is no limit.
func (c Config) bandwidth(limit uint64) float64 {
	if limit == 0 || limit > c.BandwidthMiB {
		limit = c.BandwidthMiB
	}
	return float64(limit) * mib
}

func (m *migration) iterationLocked() {
	m.host.emitLocked(virt.Event{Kind: virt.EventIteration, Domain: m.req.Instance, Iteration: m.flow.iteration})
	m.armLocked(m.flow.left())
}

// settleLocked brings the flow up to now; to be called before anything that it
// depends on changes.
func (m *migration) settleLocked(now time.Time) {
	if m.stage == stagePreCopy {
		m.flow = m.flow.advance(now.Sub(m.flowAt), m.dom.state == virt.Running)
		m.flowAt = now
	}
}

// iterateLocked ends an iteration and begins the next, or stops the guest.
func (m *migration) iterateLocked(now time.Time, err error) {
	m.settleLocked(now)
	if err != nil {
		m.failLocked(now, err)
		return
	}
	if m.flow.left() <= 0 {
		m.flow = m.flow.next()
		if !m.flow.fits(m.maxDowntime) {
			m.iterationLocked()
			return
		}
	}
	if m.flow.fits(m.maxDowntime) {
		m.suspendLocked(now, stageSwitching)
		return
	}
	m.armLocked(m.flow.left())
}

// suspendLocked stops the CPUs for the switch-over.
func (m *migration) suspendLocked(now time.Time, to stage) {
	d, id := m.dom, m.req.Instance
	m.crossing = &crossing{suspended: now, paused: d.state == virt.Paused}
	d.brain.freeze(now)
	left := seconds(m.flow.pending()/m.flow.bandwidth) + m.host.cfg.SwitchOver
	state, event := virt.ReasonMigrating, virt.ReasonMigrated
	m.stage = to
	if to == stageToPostCopy {
		state, event = virt.ReasonPostCopy, virt.ReasonPostCopy
		m.postBytes = m.flow.pending()
		left = m.host.cfg.SwitchOver
	} else {
		m.flow = m.flow.drained()
	}
	if !m.paused {
		d.state, d.reason = virt.Paused, state
		m.host.tellLocked(virt.EventSuspended, id, event)
	}
	m.stats = m.completedStats(now.Add(left), left)
	m.armLocked(left)
}

// completedStats is the job as it will have ended.
func (m *migration) completedStats(end time.Time, downtime time.Duration) virt.Job {
	j := m.flow.job()
	j.Type, j.Elapsed, j.Setup, j.Downtime = virt.JobCompleted, end.Sub(m.began), m.setup, downtime
	j.Memory.Processed += uint64(m.postBytes + m.postMoved)
	j.Memory.Remaining = 0
	j.Disk = m.disk(end)
	j.PostCopyReq = uint64(m.postBytes / pageSize / 16) // some pages are asked for ahead of their turn
	return j
}

// CheckLeaving knows what a compression can't be combined with; else a fake host sends
// every guest.
func (d *Driver) CheckLeaving(ctx context.Context, r virt.MigrateRequest) (virt.Leaving, error) {
	return ask(ctx, d, "CheckLeaving", r.Instance, func() (virt.Leaving, error) {
		return virt.Leaving{Reasons: append([]string{}, r.CompressionReasons()...)}, nil
	})
}
