package libvirt

import (
	"context"
	"errors"
	"math"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// jobOf reads job statistics by their names (libvirt-domain.h, VIR_DOMAIN_JOB_*).
// The dirty rate comes in pages per second and leaves in bytes.
func jobOf(kind virt.JobType, params []golibvirt.TypedParam) virt.Job {
	f := fieldsOf(params)
	ms := func(name string) time.Duration {
		return time.Duration(min(f.number(name), math.MaxInt64/uint64(time.Millisecond))) * time.Millisecond
	}
	amount := func(what string) instance.Amount {
		return instance.Amount{Total: f.number(what + "_total"), Processed: f.number(what + "_processed"), Remaining: f.number(what + "_remaining")}
	}
	page := f.number("memory_page_size")
	if page == 0 {
		page = 4096
	}
	if kind == virt.JobCompleted && f.has("success") && f.number("success") == 0 {
		kind = virt.JobFailed
	}
	return virt.Job{
		Type:        kind,
		Elapsed:     ms("time_elapsed"),
		Downtime:    ms("downtime"),
		Setup:       ms("setup_time"),
		Memory:      amount("memory"),
		Disk:        amount("disk"),
		Bandwidth:   f.number("memory_bps"),
		DirtyRate:   f.number("memory_dirty_rate") * page,
		Iteration:   f.number("memory_iteration"),
		Throttle:    int(min(f.number("auto_converge_throttle"), 100)),
		PostCopyReq: f.number("memory_postcopy_requests"),
		Compressed: virt.Compressed{
			Pages: f.number("compression_pages"), Bytes: f.number("compression_bytes"),
			Misses: f.number("compression_cache_misses"), Cache: f.number("compression_cache"),
		},
		Error: f.text("errmsg"),
	}
}

type stats struct {
	kind   int32
	params []golibvirt.TypedParam
}

func (d *Driver) jobStats(ctx context.Context, op, id string, flags golibvirt.DomainGetJobStatsFlags) (stats, error) {
	return control(ctx, d, op, id, func(lv *golibvirt.Libvirt) (stats, error) {
		dom, err := lookup(lv, id)
		if err != nil {
			return stats{}, err
		}
		kind, params, err := lv.DomainGetJobStats(dom, flags)
		return stats{kind, params}, err
	})
}

// Job gives the running job.
func (d *Driver) Job(ctx context.Context, id string) (virt.Job, error) {
	s, err := d.jobStats(ctx, "job", id, 0)
	switch {
	case err == nil:
		return jobOf(virt.JobType(s.kind), s.params), nil
	case noRAMInfo(err):
		return virt.Job{}, nil
	case errors.Is(err, fault.Conflict):
		// libvirt also refuses while a guest arrives: its statistics are the source's.
		if dom, derr := d.Lookup(ctx, id); derr == nil && dom.Active() {
			return virt.Job{}, nil
		}
	}
	return virt.Job{}, err
}

// noRAMInfo knows the error of a migration that has begun but has no figures yet
// (nova.md 2.1).
func noRAMInfo(err error) bool {
	return isCode(err, golibvirt.ErrInternalError) && strings.Contains(err.Error(), "no RAM info was set")
}

// CompletedJob gives the statistics of the last completed job and keeps them for
// the next reader.
func (d *Driver) CompletedJob(ctx context.Context, id string) (virt.Job, error) {
	const op = "completed_job"
	s, err := d.jobStats(ctx, op, id, golibvirt.DomainJobStatsCompleted|golibvirt.DomainJobStatsKeepCompleted)
	if isCode(err, golibvirt.ErrInvalidArg) { // libvirt before 6.0 can't keep them
		s, err = d.jobStats(ctx, op, id, golibvirt.DomainJobStatsCompleted)
	}
	if err != nil {
		return virt.Job{}, err
	}
	if virt.JobType(s.kind) == virt.JobNone {
		return virt.Job{}, fault.New(fault.NotFound, op, id, "no job of this domain has completed since libvirt or the domain started")
	}
	return jobOf(virt.JobType(s.kind), s.params), nil
}

// AbortJob ends the running job; libvirt refuses without one and in post-copy.
func (d *Driver) AbortJob(ctx context.Context, id string) error {
	return d.onDomain(ctx, "abort_job", id, func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
		return lv.DomainAbortJob(dom)
	})
}

// maxDowntime is the longest that QEMU takes.
const maxDowntime = 2000 * time.Second

// SetMaxDowntime sets how long the guest may stand still at the switch-over, in
// whole milliseconds; conflict without a migration.
func (d *Driver) SetMaxDowntime(ctx context.Context, id string, downtime time.Duration) error {
	const op = "set_max_downtime"
	if downtime < time.Millisecond || downtime > maxDowntime {
		return fault.Newf(fault.InvalidArgument, op, id, "%s is not between 1ms and %s", downtime, maxDowntime)
	}
	if err := d.needsJob(ctx, op, id); err != nil {
		return err
	}
	return d.onDomain(ctx, op, id, func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
		return lv.DomainMigrateSetMaxDowntime(dom, uint64(downtime/time.Millisecond), 0) //nolint:gosec // positive
	})
}

// noLimit is libvirt's own default bandwidth in MiB/s (QEMU_DOMAIN_MIG_BANDWIDTH_MAX).
const noLimit = math.MaxInt64 / (1 << 20)

// SetBandwidth sets the bandwidth in MiB/s, 0 for no limit; conflict without a
// migration. In post-copy it is QEMU's max-postcopy-bandwidth, of what is sent ahead: the
// other one has no effect any more.
func (d *Driver) SetBandwidth(ctx context.Context, id string, mib uint64) error {
	const op = "set_bandwidth"
	if err := d.needsJob(ctx, op, id); err != nil {
		return err
	}
	return d.onDomain(ctx, op, id, func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
		state, reason, err := lv.DomainGetState(dom, 0)
		if err != nil {
			return err
		}
		if s, why := stateOf(state, reason); s == virt.Paused && why == virt.ReasonPostCopy {
			return lv.DomainMigrateSetMaxSpeed(dom, min(mib, noLimit), uint32(golibvirt.DomainMigrateMaxSpeedPostcopy))
		}
		if mib == 0 || mib > noLimit {
			mib = noLimit
		}
		return lv.DomainMigrateSetMaxSpeed(dom, mib, 0)
	})
}

// StartPostCopy switches a running migration that allows it.
func (d *Driver) StartPostCopy(ctx context.Context, id string) error {
	return d.onDomain(ctx, "start_post_copy", id, func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
		return lv.DomainMigrateStartPostCopy(dom, 0)
	})
}

// needsJob makes steering without a job a conflict: libvirt would keep the value
// for the next migration.
func (d *Driver) needsJob(ctx context.Context, op, id string) error {
	j, err := d.Job(ctx, id)
	if err != nil {
		return fault.Wrap(err, op, id)
	}
	if j.Type == virt.JobNone {
		return fault.New(fault.Conflict, op, id, "no migration of this domain is running")
	}
	return nil
}
