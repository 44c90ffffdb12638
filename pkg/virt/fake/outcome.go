package fake

import (
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// handedLocked is the destination's answer to a handover.
func (m *migration) handedLocked(at stage, now time.Time, err error) {
	switch {
	case err != nil && at == stagePostCopy:
		m.breakLocked(now, err)
	case fault.KindOf(err) == fault.Unavailable:
		m.unknownLocked(err)
	case err != nil:
		m.failLocked(now, err)
	case at == stageToPostCopy:
		m.dom.live = false
		m.stats.Downtime = now.Sub(m.suspended)
		m.rushLocked(now)
	default:
		m.dom.live = false
		m.stage = stageFinishing
		m.armLocked(m.host.cfg.Finish)
	}
}

// departLocked is the source's end of a migration that worked.
func (m *migration) departLocked() {
	h, id, d := m.host, m.req.Instance, m.dom
	job := m.stats
	d.id, d.state, d.reason, d.live = -1, virt.Shutoff, virt.ReasonMigrated, false
	delete(h.domains, id)
	h.completed[id] = job
	h.countLocked(id).Departures++
	m.endLocked(nil)
	h.tellLocked(virt.EventStopped, id, virt.ReasonMigrated)
	h.tellLocked(virt.EventUndefined, id, "")
	h.emitLocked(virt.Event{Kind: virt.EventJobCompleted, Domain: id, Job: &job})
}

// failLocked ends a migration before its commit point: the guest goes on here.
func (m *migration) failLocked(now time.Time, err error) {
	d, stopped := m.dom, m.stage >= stageSwitching
	m.endLocked(err)
	m.target.abortLocked()
	if stopped && !m.paused {
		m.host.cancelLocked(d, now)
	}
}

// unknownLocked ends a migration of which nobody knows whether it worked: the
// source stands still, or makes a twin; see [Host.Twins].
func (m *migration) unknownLocked(err error) {
	m.dom.live = m.host.twins
	m.endLocked(err)
	m.target.abortLocked() // takes nothing from a destination that has resumed
	if m.host.twins && !m.paused {
		m.host.cancelLocked(m.dom, time.Now())
	}
}

// cancelLocked lets a guest go on that stood at its switch-over; libvirt's reasons.
func (h *Host) cancelLocked(d *domain, now time.Time) {
	h.resumeLocked(d, now, virt.ReasonMigrated)
	d.reason = virt.ReasonCanceled
}

// breakLocked is a stream that breaks in post-copy: the memory is in two places.
func (m *migration) breakLocked(now time.Time, err error) {
	m.tearLocked(now)
	m.dom.state, m.dom.reason = virt.Paused, virt.ReasonPostCopyFailed
	m.host.tellLocked(virt.EventSuspended, m.req.Instance, virt.ReasonPostCopyFailed)
	m.endLocked(err)
	m.target.abortLocked()
}

// sourceDiedLocked ends the migration of a guest that went off meanwhile.
func (m *migration) sourceDiedLocked() {
	m.endLocked(fault.New(fault.Internal, "Migrate", m.req.Instance, "operation failed: domain is not running"))
	m.target.abortLocked()
}

// endLocked lets go of the caller; err is what Migrate answers.
func (m *migration) endLocked(err error) {
	if err != nil {
		m.host.countLocked(m.req.Instance).FailedMoves++
	}
	m.stage, m.err, m.dom.job = stageOver, err, nil
	m.timer.Stop()
	close(m.done)
}
