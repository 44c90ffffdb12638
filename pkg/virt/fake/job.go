package fake

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Job gives the statistics of this moment. Monitors ask for it thousands of times a
// second: it copies nothing on its way.
func (d *Driver) Job(ctx context.Context, id string) (j virt.Job, err error) {
	h := d.host
	if h.faults.active.Load() != 0 {
		err = d.faultyJob(ctx, id, &j)
		return j, err
	}
	if ctx.Err() != nil {
		return j, fault.Wrap(context.Cause(ctx), "Job", id)
	}
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	if err = d.awayLocked("Job"); err == nil {
		err = d.glanceLocked(id, &j)
	}
	return j, err
}

// faultyJob is Job while there are faults. Its copies stay off the stack of one without.
//
//go:noinline
func (d *Driver) faultyJob(ctx context.Context, id string, j *virt.Job) (err error) {
	*j, err = ask(ctx, d, "Job", id, func() (j virt.Job, err error) {
		err = d.glanceLocked(id, &j)
		return j, err
	})
	return err
}

// glanceLocked reads a guest's job.
func (d *Driver) glanceLocked(id string, j *virt.Job) error {
	dom, err := d.host.findLocked("Job", id)
	switch {
	case err != nil:
		return err
	case !dom.active():
		return conflict("Job", id, "the domain is not running")
	case dom.arriving != nil:
		j.Type = virt.JobUnbounded
	case dom.job != nil:
		dom.job.read(time.Now(), j)
	}
	return nil
}

// read gives the job as QEMU would report it.
func (m *migration) read(now time.Time, j *virt.Job) {
	switch m.stage {
	case stagePreCopy:
		f := m.flow
		f.pass(now.Sub(m.flowAt), m.dom.state == virt.Running)
		f.read(j)
	case stageToPostCopy, stagePostCopy:
		m.flow.read(j)
		moved := 0.0
		if m.stage == stagePostCopy {
			moved = m.sent(now)
		}
		j.Memory.Processed += uint64(moved + m.postMoved)
		j.Memory.Remaining = uint64(m.postBytes - moved)
		j.PostCopyReq = uint64(moved / pageSize / 16)
	case stageSwitching, stageFinishing:
		*j = m.stats
	case stageSetup, stageDisks, stageMending, stageOver:
	}
	j.Disk = m.disk(now)
	j.Type, j.Elapsed, j.Setup = virt.JobUnbounded, now.Sub(m.began), m.setup
}

// CompletedJob gives the last job that worked; a source keeps it until Undefine.
func (d *Driver) CompletedJob(ctx context.Context, id string) (virt.Job, error) {
	return ask(ctx, d, "CompletedJob", id, func() (virt.Job, error) {
		if j, known := d.host.completed[id]; known {
			return j, nil
		}
		return virt.Job{}, fault.New(fault.NotFound, "CompletedJob", id, "no completed job of this domain is known")
	})
}

// steer does something to a running job.
func (d *Driver) steer(ctx context.Context, method, id string, f func(*migration) error) error {
	return tell(ctx, d, method, id, func(dom *domain) error {
		if dom.job == nil {
			return conflict(method, id, "no migration of this guest runs")
		}
		return f(dom.job)
	})
}

// AbortJob ends the job while its guest still runs here.
func (d *Driver) AbortJob(ctx context.Context, id string) error {
	return d.steer(ctx, "AbortJob", id, func(m *migration) error {
		if m.stage >= stageSwitching {
			return conflict("AbortJob", id, "the guest is already leaving: too late to abort")
		}
		m.failLocked(time.Now(), fault.New(fault.Cancelled, "Migrate", id, "operation aborted: migration out job: canceled by client"))
		return nil
	})
}

// SetMaxDowntime changes the permitted downtime; a guest that fits it stops at once.
func (d *Driver) SetMaxDowntime(ctx context.Context, id string, limit time.Duration) error {
	return d.steer(ctx, "SetMaxDowntime", id, func(m *migration) error {
		if limit < 0 || limit > 2000*time.Second {
			return fault.Newf(fault.InvalidArgument, "SetMaxDowntime", id, "%v is not between 0 and 2000 s", limit)
		}
		m.maxDowntime = limit
		m.settleLocked(time.Now())
		m.lookLocked()
		return nil
	})
}

// SetBandwidth changes the limit, in MiB/s.
func (d *Driver) SetBandwidth(ctx context.Context, id string, limit uint64) error {
	return d.steer(ctx, "SetBandwidth", id, func(m *migration) error {
		switch m.stage {
		case stagePostCopy:
			m.haltLocked(time.Now())
			m.req.PostCopyMiB = limit
			m.rushLocked(time.Now())
			return nil
		case stageToPostCopy, stageMending: // it counts when memory moves
			m.req.PostCopyMiB = limit
			return nil
		case stageSetup, stageDisks, stagePreCopy, stageSwitching, stageFinishing, stageOver:
		}
		m.settleLocked(time.Now())
		m.req.BandwidthMiB = limit
		m.flow.bandwidth = m.host.cfg.bandwidth(limit)
		m.lookLocked()
		return nil
	})
}

// lookLocked has the pre-copy looked at when it is next due after a change.
func (m *migration) lookLocked() {
	if m.stage != stagePreCopy {
		return
	}
	if m.flow.fits(m.maxDowntime) {
		m.armLocked(0)
		return
	}
	m.armLocked(m.flow.left())
}

// StartPostCopy stops the guest here and lets it run there before its memory has come.
func (d *Driver) StartPostCopy(ctx context.Context, id string) error {
	return d.steer(ctx, "StartPostCopy", id, func(m *migration) error {
		switch {
		case !m.req.PostCopy:
			return conflict("StartPostCopy", id, "the migration was begun without post-copy")
		case m.stage <= stageDisks:
			return conflict("StartPostCopy", id, "the migration has not begun to copy")
		case m.stage != stagePreCopy:
			return conflict("StartPostCopy", id, "the guest is already leaving")
		}
		now := time.Now()
		m.settleLocked(now)
		m.suspendLocked(now, stageToPostCopy)
		return nil
	})
}
