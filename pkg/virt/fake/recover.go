package fake

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// ResumePostCopy goes on with a post-copy whose stream broke, from where it stopped.
func (d *Driver) ResumePostCopy(ctx context.Context, r virt.MigrateRequest) error {
	const method = "ResumePostCopy"
	strike := d.host.faults.hit(method, r.Instance)
	if err := strike.before(ctx, method, r.Instance); err != nil {
		return err
	}
	to, err := d.host.resolve(r)
	if err != nil {
		return err
	}
	var cut chan struct{}
	m, err := locked(ctx, d, method, r.Instance, func() (*migration, error) {
		cut = d.host.cut
		return d.host.mendLocked(r, to)
	})
	if err == nil {
		err = d.await(ctx, m, cut)
	}
	return strike.after(method, r.Instance, err)
}

// mendLocked begins a job again that broke in post-copy.
func (h *Host) mendLocked(r virt.MigrateRequest, to target) (*migration, error) {
	const method = "ResumePostCopy"
	d, err := h.findLocked(method, r.Instance)
	switch {
	case err != nil:
		return nil, err
	case d.job != nil:
		return nil, conflict(method, r.Instance, "a migration of this guest runs")
	case d.torn == nil || d.torn.req.Migration != r.Migration:
		return nil, conflict(method, r.Instance, "there is no broken post-copy to take up: the guest is "+string(d.state))
	}
	old := d.torn
	m := &migration{
		host: h, dom: d, req: old.req, target: to, began: old.began, setup: old.setup, diskRate: old.diskRate,
		diskBytes: old.diskBytes, flow: old.flow,
		crossing: &crossing{suspended: old.suspended, stats: old.stats, postBytes: old.postBytes, postMoved: old.postMoved},
		stage:    stageMending, done: make(chan struct{}),
	}
	d.job = m
	m.armLocked(h.cfg.Setup)
	return m, nil
}

// tearLocked notes how far a post-copy came that broke.
func (m *migration) tearLocked(now time.Time) {
	if m.stage == stagePostCopy {
		m.haltLocked(now)
	}
	m.dom.torn = m
}

// sent is what post-copy has moved since flowAt.
func (m *migration) sent(now time.Time) float64 {
	return min(m.postBytes, m.postRate()*now.Sub(m.flowAt).Seconds())
}

// haltLocked counts what post-copy has moved.
func (m *migration) haltLocked(now time.Time) {
	moved := m.sent(now)
	m.postBytes, m.postMoved, m.flowAt = m.postBytes-moved, m.postMoved+moved, now
}

// postRate is bytes/s of post-copy.
func (m *migration) postRate() float64 { return m.host.cfg.bandwidth(m.req.PostCopyMiB) }

// mendedLocked is the destination's answer to a connection that is made anew.
func (m *migration) mendedLocked(now time.Time, err error) {
	if err != nil {
		m.breakLocked(now, err)
		return
	}
	d := m.dom
	d.torn, d.state, d.reason = nil, virt.Paused, virt.ReasonPostCopy
	m.host.tellLocked(virt.EventSuspended, m.req.Instance, virt.ReasonPostCopy)
	m.rushLocked(now)
}

// rushLocked begins to send what post-copy has left to send.
func (m *migration) rushLocked(now time.Time) {
	m.stage, m.flowAt = stagePostCopy, now
	took := seconds(m.postBytes / m.postRate())
	m.stats = m.completedStats(now.Add(took), m.stats.Downtime)
	m.armLocked(took)
}

// mendArrivalLocked lets a guest go on here whose post-copy broke.
func (h *Host) mendArrivalLocked(o handover) error {
	d := h.domains[o.Instance]
	if d == nil || d.running.Migration != o.Migration || d.state != virt.Paused || d.reason != virt.ReasonPostCopyFailed {
		return fault.New(fault.Internal, "ResumePostCopy", o.Instance, "the destination has no guest whose post-copy broke")
	}
	d.arriving = &arrival{migration: o.Migration, postCopy: true, lostLocked: func() {}}
	h.claims[o.Instance] = claim{Migration: o.Migration}
	h.resumeLocked(d, time.Now(), virt.ReasonPostCopy)
	return h.changedLocked(o.Instance)
}

func (n *neighbour) mend(_ context.Context, h handover) error {
	mu := &n.dest.world.mu
	mu.Lock()
	defer mu.Unlock()
	n.instance, n.migration = h.Instance, h.Migration
	return n.dest.mendArrivalLocked(h)
}

func (n *neighbour) quit(handover) {} // abortLocked does it, at the same instant

func (s *stranger) mend(ctx context.Context, h handover) error {
	return s.open(ctx, message{Mend: &h}, func() {})
}
