package libvirt

import (
	"context"
	"errors"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// ResumePostCopy takes up a post-copy whose connection broke (libvirt 8.5,
// VIR_MIGRATE_POSTCOPY_RESUME): the destination's libvirtd prepares its QEMU for a new
// connection, and this host's QEMU sends on what is missing. It blocks as Migrate does.
func (d *Driver) ResumePostCopy(ctx context.Context, r virt.MigrateRequest) error {
	const op = "resume_post_copy"
	r.PostCopy, r.Parallel, r.Compression = true, 0, "" // post-copy sends pages as they are
	if err := checkMigrate(r); err != nil {
		return err
	}
	release, err := d.turn(ctx, r.Instance, d.split)
	if err != nil {
		return err
	}
	p := performPlan{
		id: r.Instance, uri: r.Inbound.URI, params: migrateParams(r),
		flags: golibvirt.MigrateLive | golibvirt.MigratePeer2peer | golibvirt.MigratePersistDest | golibvirt.MigrateUndefineSource |
			golibvirt.MigratePostcopy | golibvirt.MigratePostcopyResume,
	}
	if err := d.encrypt(ctx, r, &p); err != nil {
		release()
		return err
	}
	return d.carryOut(ctx, op, p, release)
}

// split wants a domain whose memory is in two places. libvirt calls a post-copy broken
// when it has lost its own connection too; then QEMU, which has not noticed, is told to
// let go of its stream, or it could not be given a new one.
func (d *Driver) split(ctx context.Context, id string) error {
	const op = "resume_post_copy"
	dom, err := d.Lookup(ctx, id)
	if err != nil {
		return err
	}
	if !dom.Owned || dom.State != virt.Paused || dom.Reason != virt.ReasonPostCopyFailed {
		return fault.Newf(fault.Conflict, op, id, "the domain is %s (%s): there is no broken post-copy to take up", dom.State, dom.Reason)
	}
	err = d.onDomain(ctx, op, id, func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
		return lv.DomainAbortJobFlags(dom, uint32(golibvirt.DomainAbortJobPostcopy))
	})
	if errors.Is(err, fault.Unavailable) {
		return err
	}
	return nil // it has let go already
}
