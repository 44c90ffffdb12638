package migration

import (
	"context"
	"errors"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// errJobOver ends a worker whose call has not noticed that its job is over.
var errJobOver = errors.New("the migration job is over")

// worker sits in the hypervisor's blocking call. Its end is linked to the finish
// Event, and wakes the monitor.
type worker struct {
	thread *green.Thread[struct{}]
	finish green.Event[struct{}]
	said   error // the call's own error, a hint at most; written before finish is sent
}

// startWorker begins to move the guest.
func (r *run) startWorker(ctx context.Context, w *worker) {
	req := r.request()
	r.noteLimits(limits{req.BandwidthMiB, req.PostCopyMiB})
	r.spawnWorker(ctx, w, func(ctx context.Context) error { return r.s.ports.Hypervisor.Migrate(ctx, req) })
}

// spawnWorker lets a worker sit in a call.
func (r *run) spawnWorker(ctx context.Context, w *worker, call func(context.Context) error) {
	w.thread = green.Spawn(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
	w.thread.Link(func(t *green.Thread[struct{}]) {
		_, w.said = t.Wait(ctx)       // inside a link: at once
		_ = w.finish.Send(struct{}{}) // the only sender
		r.poke()
	})
}

// err gives the call's error once it has ended; nil before.
func (w *worker) err() error {
	if w == nil || !w.finish.Ready() {
		return nil
	}
	return w.said
}

// kill ends a worker whose call has not returned.
func (w *worker) kill() {
	if w != nil {
		w.thread.Kill(errJobOver)
	}
}

// succeeded reports whether the hypervisor's call said that it moved the guest.
func (w *worker) succeeded() bool { return w.finish.Ready() && w.err() == nil }

// request is what the hypervisor is asked for.
func (r *run) request() virt.MigrateRequest {
	c, rec := r.s.cfg, r.record()
	postCopy := r.canPostCopy()
	parallel, compression := c.streams(rec.Args.ParallelConnections, rec.Args.Compression, postCopy)
	return virt.MigrateRequest{
		Instance:     r.instance,
		Migration:    r.id,
		Generation:   rec.Migration.Generation,
		Inbound:      rec.Inbound,
		BandwidthMiB: r.limit(&rec, false),
		PostCopyMiB:  r.limit(&rec, true),
		Parallel:     parallel,
		PostCopy:     postCopy,
		AutoConverge: c.PermitAutoConv && !postCopy, // nova's rule (nova.md 2.5)
		Compression:  compression,
		Disks:        targetsOf(rec.Copies),
		Shared:       rec.Shared,
	}
}

// tlsParallel is how many connections share the work of encrypting (nova's and
// KubeVirt's experience: one is bound by one core).
const tlsParallel = 4

// parallel is this host's number of connections. Post-copy wants one stream.
func (c Config) parallel(postCopy bool) int {
	switch {
	case postCopy:
		return 0
	case c.NativeTLS:
		return or(c.Parallel, tlsParallel)
	}
	return c.Parallel
}

// streams chooses the connections and the compression of a job. What the request names is
// asked for as it stands, and refused if it can't be; this host's defaults give way to it,
// and the default compression to whatever else it does not go with.
func (c Config) streams(parallel int, compression string, postCopy bool) (int, string) {
	oneStream := compression != "" && compression != instance.CompressNone && !virt.CompressesStreams(compression)
	if parallel == 0 && !oneStream {
		parallel = c.parallel(postCopy)
	}
	switch compression {
	case instance.CompressNone:
		return parallel, ""
	case "":
		r := virt.MigrateRequest{Parallel: parallel, PostCopy: postCopy, Compression: c.Compression}
		if len(r.CompressionReasons()) > 0 {
			return parallel, ""
		}
		return parallel, c.Compression
	}
	return parallel, compression
}

// canPostCopy reports whether the job may switch to post-copy: permitted here or
// asked for, and the guest is not paused (nova drops the flag then too).
func (r *run) canPostCopy() bool {
	rec := r.record()
	return !rec.WasPaused && (r.s.cfg.PermitPostCopy || rec.Args.Policy == instance.PolicyPostCopyNow)
}

// perform moves the guest, or, after a restart, goes on watching the job that was
// left to the hypervisors. It ends with the outcome by the facts; nil means that the
// guest is the destination's.
func (r *run) perform(ctx context.Context) error {
	if r.resumed {
		r.holdSlot()
	} else if r.abortAsked() {
		return r.aborted()
	}
	r.joinBudget()
	m := r.newMonitor()
	r.monitor = m
	if !r.resumed {
		r.forgetJob()
		r.startWorker(ctx, &m.first)
		m.worker, m.call = &m.first, &m.first
	}
	r.s.watched.Add(1)
	defer r.leaveJob(m)
	for {
		if err := m.watch(ctx); err != nil {
			return err
		}
		if over, err := m.after(ctx); over || err != nil {
			return err
		}
	}
}

// leaveJob gives back what perform took.
func (r *run) leaveJob(m *monitor) {
	m.call.kill()
	r.s.watched.Add(-1)
	r.s.budget.leave(r)
	r.answerLate()
}

// after judges a job that is over as far as this host can see. over is false when it is
// to be watched on: a broken post-copy was taken up, or only the call is over. The error,
// if any, says why the guest is not the destination's. It is apart from perform for the
// stack on which that one waits.
//
//go:noinline
func (m *monitor) after(ctx context.Context) (over bool, err error) {
	if ctx.Err() != nil { // the agent stops, and with it the call: the job goes on
		return true, context.Cause(ctx)
	}
	r := m.r
	next, err := r.takeUp(ctx, &m.recovery, m.call)
	if err != nil {
		return true, err
	}
	if next != nil {
		m.call.kill()
		m.call, m.worker = next, next
		return false, nil
	}
	v, running, err := r.settle(ctx, m.call)
	switch {
	case err != nil:
		return true, err
	case running: // the call is over, its job is not: the hypervisor's connection was lost
		m.worker = nil
		return false, nil
	case v == VerdictCompleted:
		return true, nil
	default:
		return true, r.whyFailed(ctx, v, m.call)
	}
}

// joinBudget takes the job's share of the host's bandwidth. A limit that is asked for
// meanwhile is found at the first beat.
func (r *run) joinBudget() {
	if r.resumed {
		r.noteLimits(r.limitsFound())
	}
	rec := r.record()
	r.s.budget.join(r, ownLimit(&r.s.cfg, &rec, rec.PostCopy))
}

// answerLate tells whoever waits for force-complete that it came too late.
func (r *run) answerLate() {
	r.answerForce(ActNone, fault.New(fault.Conflict, "live_migration_force_complete", r.id, "the migration ended before anything was done"))
}

// forgetJob drops the statistics of a job before this one: of the guest's arrival.
func (r *run) forgetJob() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.job = nil
}

// holdSlot counts a migration that already runs.
func (r *run) holdSlot() {
	r.s.slots.seize()
	r.takeSlot()
}
