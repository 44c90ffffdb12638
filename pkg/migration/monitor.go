package migration

import (
	"context"
	"errors"
	"hash/fnv"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// abortAgain is when an abort that had no effect is repeated.
const abortAgain = 5 * time.Second

/*
monitor watches one job, a beat each Config.MonitorInterval and at once when the
finish Event is sent or the hypervisor tells of the guest:

	          job not seen yet           job runs                       job over
	beat ──▶  wait ──────────────▶  progress, decide, act ──────────▶  LoopDone
	             └── nothing for SettleTimeout ──────────────────────────▲
	                                    └── nothing for HypervisorWait ──┘ (the call hangs)

Whether the guest arrived is not its business: settle asks for the facts.
*/
type monitor struct {
	r      *run
	first  worker  // of the job that was begun here; each beat looks at it
	worker *worker // nil: the job is the hypervisor's alone
	call   *worker // the last one, also when it came back without its job; nil: none was begun here
	policy Policy
	begun  time.Time
	clock  time.Duration // of the job, when the monitor began: what passed before a restart

	asks    *bound    // of a look
	snap    Snapshot  // of the last look
	shown   uint64    // the sum of the progress told last
	shownAt time.Time // when; zero: never

	adopts      bool // the job of an earlier run of the agent: its clock is read at the first look
	canPostCopy bool
	refused     bool // post-copy was, once
	across      bool // the guest was last seen in post-copy
	torn        bool // post-copy is broken
	seen        bool // the job was seen running

	doubted   time.Time // since when the guest runs here although post-copy was begun
	quiet     time.Time // since when no job is seen
	failedAt  time.Time // when the event told that the job failed
	recovery  recovery  // of a post-copy whose connection broke
	keptAt    time.Time // when the timeline was last journaled
	limitedAt time.Time // when the hypervisor last refused a limit
	abortedAt time.Time // when the job was last aborted
}

func (r *run) newMonitor() *monitor {
	now := time.Now()
	return &monitor{r: r, adopts: r.resumed, policy: r.policy(), begun: now, quiet: now, keptAt: now, canPostCopy: r.canPostCopy()}
}

// policy is what this migration decides by: the request's words before the host's.
func (r *run) policy() Policy {
	c, rec := r.s.cfg, r.record()
	dataGB := DataGB(rec.Instance.Spec.MemoryMiB, capacities(rec.Copies))
	timeout := time.Duration(rec.Args.CompletionTimeoutSeconds) * time.Second
	if timeout == 0 && c.CompletionTimeout > 0 {
		timeout = CompletionTimeout(c.CompletionTimeout, dataGB)
	}
	p := Policy{Name: or(rec.Args.Policy, c.Policy), OnStall: c.OnStall, Timeout: timeout, Adaptive: c.Adaptive}
	if p.Name == instance.PolicyNova {
		p.Schedule = DowntimeSchedule(c.Downtime, dataGB)
	}
	return p
}

// watch beats until the job is over as far as this host can see. When ctx ends it
// returns its cause and the job goes on. Jobs that are taken up again, all at the same
// moment after a restart, are looked at spread over one interval.
func (m *monitor) watch(ctx context.Context) error {
	every := m.r.s.cfg.MonitorInterval
	first := time.Duration(0)
	if m.worker == nil {
		first = spread(m.r.id, every)
	}
	m.quiet, m.failedAt, m.asks = time.Now(), time.Time{}, newBound(ctx, m.r.s.cfg.HypervisorWait, theAnswer)
	_, err := m.r.beats.Run(ctx, every, green.InitialDelay(first), green.PacedBy(m.r.s.metronome))
	return causeOf(ctx, err)
}

// spread gives each migration a moment of its own within an interval.
func spread(id string, every time.Duration) time.Duration {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never an error
	return time.Duration(float64(every) * float64(h.Sum32()) / (1 << 32))
}

func (m *monitor) done() error { return green.LoopDone(struct{}{}) }

// beat is one look at the job.
func (m *monitor) beat(ctx context.Context) error {
	if m.worker != nil && m.worker.finish.Ready() || m.told() {
		return m.done()
	}
	running, err := m.look()
	now := time.Now()
	switch {
	case m.worker != nil && m.worker.finish.Ready(): // while we asked
		return m.done()
	case err != nil: // the hypervisor is away: its job goes on without us
		logkit.From(ctx).Debug("the job can't be looked at", logkit.Err(err))
		m.quiet = now
	case running:
		m.seen, m.quiet = true, now
		m.observe(ctx, now)
		if m.givenUp() {
			return m.done()
		}
	case m.over():
		return m.done()
	}
	return nil
}

// look reads the job.
func (m *monitor) look() (running bool, err error) {
	m.asks = m.asks.again()
	defer m.asks.end()
	return m.r.askForJob(m.asks, &m.snap.Job)
}

// told reports whether the hypervisor has told that the job is over. After a failure
// the call's own error is waited for a little: it says why.
func (m *monitor) told() bool {
	j := m.r.completedJob()
	switch {
	case j == nil:
		return false
	case j.Type == JobCompleted || m.worker == nil:
		return true
	case m.failedAt.IsZero():
		m.failedAt = time.Now()
	}
	return time.Since(m.failedAt) > m.r.s.cfg.WorkerGrace
}

// over judges a guest that has no job. Without a call that would end, it is over at
// the second look; a call that hangs is given up when its job has not been seen for
// long.
func (m *monitor) over() bool {
	c, quiet := m.r.s.cfg, time.Since(m.quiet)
	switch {
	case m.worker == nil:
		return quiet >= c.MonitorInterval
	case m.seen || m.r.abortAsked():
		return quiet > c.HypervisorWait
	default:
		return quiet > c.SettleTimeout
	}
}

// observe publishes a running job's progress and does what its policy wants.
func (m *monitor) observe(ctx context.Context, now time.Time) {
	s := &m.snap
	if m.adopts {
		m.adopts, m.clock = false, max(0, s.Job.Elapsed-now.Sub(m.begun))
	}
	s.Elapsed = now.Sub(m.begun) + m.clock
	s.Track = s.Track.observe(&s.Job, s.Elapsed, m.policy.Adaptive.StallMargin)
	at, forced := m.r.standing()
	if at.postCopy {
		m.doubt(ctx)
		at, forced = m.r.standing()
	}
	if !m.r.limited() {
		m.throttle(ctx)
	}
	s.CanPostCopy, s.PostCopy, s.Paused, s.Force = m.canPostCopy && !m.refused, at.postCopy, at.paused, forced
	m.publish(s, now)
	if at.aborted && !at.postCopy {
		m.abort(ctx)
		return
	}
	d := m.policy.decide(s)
	m.r.remember(s, &d)
	m.keep(ctx, now)
	if d.Action != ActNone || forced {
		m.act(ctx, d)
	}
}

// publish keeps the snapshot as the record's progress, and tells of it when something
// but the clock has changed and the last time is long enough ago.
func (m *monitor) publish(s *Snapshot, now time.Time) {
	p := progressOf(s)
	sum := sumOf(&p)
	tell := sum != m.shown && now.Sub(m.shownAt) >= m.r.s.progressEvery()
	if tell {
		m.shown, m.shownAt = sum, now
	}
	m.r.progress(p, tell)
}

// sumOf stands for all of a progress but its clock. Two that differ may have the same
// sum, once in a blue moon; then one of them is told a beat later.
func sumOf(p *instance.Progress) (sum uint64) {
	for _, n := range [...]uint64{
		p.Memory.Total, p.Memory.Processed, p.Memory.Remaining, p.Disk.Processed, p.Disk.Remaining, p.Bandwidth, p.DirtyRate,
		p.Iteration, uint64(p.PermittedDowntimeMS), uint64(p.ImpliedDowntimeMS), //nolint:gosec // only told apart
	} {
		sum = (sum ^ n) * 1099511628211 // FNV's prime
	}
	return sum
}

// progressOf renders a snapshot. The percentage counts disks; 100 is for the end.
func progressOf(s *Snapshot) instance.Progress {
	j := &s.Job
	now := Progress(j.Memory.Remaining+j.Disk.Remaining, j.Memory.Total+j.Disk.Total)
	return instance.Progress{
		Memory: j.Memory, Disk: j.Disk, Bandwidth: j.Bandwidth, DirtyRate: j.DirtyRate, Iteration: j.Iteration,
		PermittedDowntimeMS: s.Permitted.Milliseconds(), ImpliedDowntimeMS: s.Implied().Milliseconds(),
		Percent: max(0, min(now, 99)), ElapsedMS: max(j.Elapsed, s.Elapsed).Milliseconds(),
	}
}

// abort ends the job: once, and again if that had no effect.
func (m *monitor) abort(ctx context.Context) {
	if !m.abortedAt.IsZero() && time.Since(m.abortedAt) < abortAgain {
		return
	}
	if err := m.r.abortJob(ctx); err != nil { // the next beat tries again
		logkit.From(ctx).Warn("the job could not be aborted yet", logkit.Err(err))
		return
	}
	m.abortedAt = time.Now()
}

// act does what the policy decided. An error is told and not fatal: the job goes on.
func (m *monitor) act(ctx context.Context, d Decision) {
	var err error
	switch d.Action {
	case ActNone:
	case ActSetDowntime:
		m.snap.Permitted, m.snap.RaisedAt = d.Downtime, time.Since(m.begun)+m.clock // also when it fails: not again at each beat
		err = m.bounded(ctx, func(ctx context.Context) error {
			return m.r.s.ports.Hypervisor.SetMaxDowntime(ctx, m.r.instance, d.Downtime)
		})
	case ActPostCopy:
		err = m.postCopy(ctx)
	case ActPause:
		err = m.pause(ctx)
	case ActAbort:
		if err = m.r.abort(ctx, "by policy: "+d.Reason); err == nil {
			m.abort(ctx)
		}
	}
	m.tell(ctx, d, err)
	if m.r.forceAsked() != nil && (d.Action != ActPostCopy || err == nil) { // a refused post-copy is followed by a pause
		m.r.answerForce(d.Action, err)
	}
}

// tell logs what the policy did to the guest, and what it could not do.
func (m *monitor) tell(ctx context.Context, d Decision, err error) {
	log := logkit.From(ctx)
	switch {
	case err != nil:
		log.Warn("the policy's wish failed: "+string(d.Action), logkit.Err(err))
	case d.Action != ActNone && d.Action != ActSetDowntime:
		log.Info("the policy steps in: " + string(d.Action) + ": " + d.Reason)
	}
}

func (m *monitor) bounded(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := within(ctx, m.r.s.cfg.HypervisorWait, "the hypervisor's answer")
	defer cancel()
	return causeOf(ctx, do(ctx))
}

// postCopy opens the one-way door. The record says so first: the destination's first
// event may come before the call returns (nova.md 1.7). When it is refused the door
// stayed shut, and the next decision is made without it.
func (m *monitor) postCopy(ctx context.Context) error {
	set := func(on bool, mode instance.MigrationMode) error {
		return m.r.save(ctx, func(rec *Record) { rec.PostCopy, rec.Migration.Mode = on, mode })
	}
	if err := set(true, instance.ModePostCopy); err != nil {
		return err
	}
	err := m.bounded(ctx, func(ctx context.Context) error {
		return m.r.s.ports.Hypervisor.StartPostCopy(ctx, m.r.instance)
	})
	if err == nil {
		return nil
	}
	m.refused = true
	if fault.KindOf(err) != fault.Conflict { // it may have begun: doubt finds out
		return err
	}
	m.r.poke()
	if back := set(false, instance.ModePreCopy); back != nil {
		return back
	}
	m.r.forgetLimits(ctx)
	return err
}

// doubt takes the mark of post-copy back when the guest still runs here WorkerGrace
// later: the request was lost on its way, with an error or with the agent that made it.
// With the mark nothing would ever end a migration that can't end by itself.
func (m *monitor) doubt(ctx context.Context) {
	d, err := m.r.look(ctx)
	switch sight := SightOf(d, err); {
	case sight == SightLost:
		m.across = false
		m.tear(ctx)
	case sight == SightPostCopy: // it goes well
		m.doubted, m.torn, m.recovery = time.Time{}, false, recovery{}
		if !m.across {
			m.across = true
			m.r.forgetLimits(ctx)
		}
	case sight != SightRunning:
		m.doubted = time.Time{}
	case m.doubted.IsZero():
		m.doubted = time.Now()
	case time.Since(m.doubted) > m.r.s.cfg.WorkerGrace:
		logkit.From(ctx).Warn("post-copy has not begun: the guest still runs here")
		m.doubted = time.Time{}
		err := m.r.save(ctx, func(rec *Record) { rec.PostCopy, rec.Migration.Mode = false, instance.ModePreCopy })
		if err != nil {
			logkit.From(ctx).Warn("the mode of the migration was not journaled", logkit.Err(err))
		}
		m.r.forgetLimits(ctx)
	}
}

// pause stops the guest, so that what remains can only get less. One that was paused when it
// was to leave has nothing left to stop, unless somebody has let it go on since then: then it
// is a guest like any other, and goes on at the end.
func (m *monitor) pause(ctx context.Context) error {
	if m.r.record().WasPaused {
		if d, err := m.r.look(ctx); err != nil || d.State != virt.Running {
			return err
		}
	}
	set := func(on bool, mode instance.MigrationMode) error {
		return m.r.save(ctx, func(rec *Record) {
			rec.PausedByUs, rec.Migration.Mode = on, mode
			rec.WasPaused = false
		})
	}
	if err := set(true, instance.ModePaused); err != nil {
		return err
	}
	err := m.bounded(ctx, func(ctx context.Context) error { return m.r.s.ports.Hypervisor.Pause(ctx, m.r.instance) })
	if err != nil && fault.KindOf(err) == fault.Conflict {
		return errors.Join(err, set(false, instance.ModePreCopy))
	}
	return err
}
