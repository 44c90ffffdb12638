package libvirt

import (
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// Migrate performs a peer-to-peer live migration and blocks until libvirt's job
// is over. It has a connection of its own; when ctx ends it answers at once and
// the call goes on, as the job does. libvirt's own client checks what goes into
// this call; go-libvirt doesn't, so it is done here.
func (d *Driver) Migrate(ctx context.Context, r virt.MigrateRequest) error {
	const op = "migrate"
	if err := checkMigrate(r); err != nil {
		return err
	}
	if err := d.refuseSelf(ctx, r); err != nil {
		return err
	}
	plan, err := d.plan(ctx, r)
	if err != nil {
		return err
	}
	release, err := d.turn(ctx, r.Instance, d.noJob)
	if err != nil {
		return err
	}
	return d.carryOut(ctx, op, plan, release)
}

// carryOut sends a plan and waits for its end, or for ctx: then the call goes on.
func (d *Driver) carryOut(ctx context.Context, op string, plan performPlan, release func()) error {
	perform := green.Spawn(context.WithoutCancel(ctx), func(ctx context.Context) (struct{}, error) {
		defer release()
		return struct{}{}, d.perform(ctx, plan)
	})
	_, err := perform.Wait(ctx)
	return fromLibvirt(givenUp(ctx, err), op, plan.id)
}

func errTwice(id string) error {
	return fault.New(fault.Conflict, "migrate", id, "a migration of this domain is already running")
}

// noJob refuses a domain that has a job.
func (d *Driver) noJob(ctx context.Context, id string) error {
	if j, err := d.Job(ctx, id); err != nil || j.Type == virt.JobNone {
		return err
	}
	return errTwice(id)
}

// turn gives one of the places for performs, and refuses a second one for a guest:
// libvirt would let it wait half a minute for the first, and then fail.
func (d *Driver) turn(ctx context.Context, id string, idle func(context.Context, string) error) (release func(), err error) {
	const op = "migrate"
	d.mu.Lock()
	_, busy := d.moving[id]
	d.moving[id] = struct{}{}
	d.mu.Unlock()
	if busy {
		return nil, errTwice(id)
	}
	still := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.moving, id)
	}
	if err := idle(ctx, id); err != nil {
		still()
		return nil, err
	}
	select {
	case d.performs <- struct{}{}:
		return func() { <-d.performs; still() }, nil
	case <-ctx.Done():
		still()
		return nil, fromLibvirt(context.Cause(ctx), op, id)
	}
}

// checkMigrate refuses what libvirt or QEMU can't combine.
func checkMigrate(r virt.MigrateRequest) error {
	const op = "migrate"
	switch {
	case r.Inbound.URI == "":
		return fault.New(fault.InvalidArgument, op, r.Instance, "the destination's URI is missing")
	case r.Migration == "" || r.Generation == 0:
		return fault.New(fault.InvalidArgument, op, r.Instance, "a migration needs its UUID and the destination's generation")
	case r.PostCopy && r.Parallel > 0:
		return fault.New(fault.InvalidArgument, op, r.Instance, "post-copy and parallel connections don't go together").
			WithHint("QEMU before 10.1 can't do both; leave one out")
	case r.Parallel < 0 || r.Parallel > 255:
		return fault.Newf(fault.InvalidArgument, op, r.Instance, "%d parallel connections: use 0 to 255", r.Parallel)
	case r.BandwidthMiB > noLimit:
		return fault.Newf(fault.InvalidArgument, op, r.Instance, "a bandwidth of %d MiB/s is more than libvirt can count", r.BandwidthMiB)
	}
	return r.RefuseCompression(op)
}

// refuseSelf refuses a destination that is this host: libvirt's client would do so,
// the daemon would wait for itself.
func (d *Driver) refuseSelf(ctx context.Context, r virt.MigrateRequest) error {
	const op = "migrate"
	u, err := url.Parse(r.Inbound.URI)
	if err != nil {
		return fault.WrapAs(fault.InvalidArgument, err, op, r.Instance)
	}
	own, err := control(ctx, d, op, r.Instance, (*golibvirt.Libvirt).ConnectGetHostname)
	if err != nil {
		return err
	}
	if isSelf(u.Hostname(), own, d.cfg.InboundAddr) {
		return fault.Newf(fault.InvalidArgument, op, r.Instance, "%s is this host", r.Inbound.URI).
			WithHint("name another host; see compute-agent host list")
	}
	return nil
}

// isSelf knows the names of this host: its own, long or short, its inbound
// address and every loopback.
func isSelf(host, own, inbound string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	short, _, _ := strings.Cut(strings.ToLower(own), ".")
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback() || ip.IsUnspecified() || ip.Equal(net.ParseIP(inbound))
	}
	return slices.Contains([]string{"", "localhost", strings.ToLower(own), short}, host) || (inbound != "" && host == strings.ToLower(inbound))
}

// performPlan is one perform, ready to be sent.
type performPlan struct {
	id     string
	uri    string
	flags  golibvirt.DomainMigrateFlags
	params []golibvirt.TypedParam
}

// plan reads the domain's XML and makes flags and parameters of it. The live XML
// goes to the destination's guest, the inactive one becomes its definition.
func (d *Driver) plan(ctx context.Context, r virt.MigrateRequest) (performPlan, error) {
	const op = "migrate"
	type both struct{ live, kept string }
	xml, err := control(ctx, d, op, r.Instance, func(lv *golibvirt.Libvirt) (x both, err error) {
		dom, err := owned(lv, r.Instance)
		if err != nil {
			return x, err
		}
		if x.live, err = lv.DomainGetXMLDesc(dom, golibvirt.DomainXMLSecure|golibvirt.DomainXMLMigratable); err != nil {
			return x, err
		}
		x.kept, err = lv.DomainGetXMLDesc(dom, golibvirt.DomainXMLSecure|golibvirt.DomainXMLMigratable|golibvirt.DomainXMLInactive)
		return x, err
	})
	if err != nil {
		return performPlan{}, err
	}
	to := domxml.Destination{Generation: r.Generation, Migration: r.Migration}
	live, err := domxml.ForDestination(xml.live, to)
	if err != nil {
		return performPlan{}, fault.Wrap(err, op, r.Instance)
	}
	kept, err := domxml.ForDestination(xml.kept, to)
	if err != nil {
		return performPlan{}, fault.Wrap(err, op, r.Instance)
	}
	info, err := domxml.Parse(xml.live)
	if err != nil {
		return performPlan{}, fault.Wrap(err, op, r.Instance)
	}
	flags, err := migrateFlags(r, info.Disks, domxml.Folder(d.cfg.InstancesPath, r.Instance))
	if err != nil {
		return performPlan{}, err
	}
	if provenSafe(r, info.Disks) {
		flags |= golibvirt.MigrateUnsafe
	}
	p := performPlan{id: r.Instance, uri: r.Inbound.URI, flags: flags, params: migrateParams(r)}
	p.params = append(p.params, paramString("destination_xml", live), paramString("persistent_xml", kept))
	return p, d.encrypt(ctx, r, &p)
}

// migrateFlags: libvirt keeps the job without us (peer to peer), the destination
// keeps the definition and the source forgets it. Without a disk list libvirt would
// copy every disk (nova.md 1.4), so no list means no flag.
func migrateFlags(r virt.MigrateRequest, disks []domxml.DiskInfo, folder string) (golibvirt.DomainMigrateFlags, error) {
	flags := golibvirt.MigrateLive | golibvirt.MigratePeer2peer | golibvirt.MigratePersistDest | golibvirt.MigrateUndefineSource
	if r.PostCopy {
		flags |= golibvirt.MigratePostcopy
	}
	if r.AutoConverge {
		flags |= golibvirt.MigrateAutoConverge
	}
	if r.Parallel > 0 {
		flags |= golibvirt.MigrateParallel
	}
	if r.Compression != "" {
		flags |= golibvirt.MigrateCompressed
	}
	if len(r.Disks) == 0 {
		return flags, nil
	}
	how, err := copyFlag(r, disks, folder)
	return flags | how, err
}

// copyFlag chooses between the two ways of copying disks, which exclude each other: the
// top layers alone, for overlays in the instance's folder, whose bases are on both hosts
// (a disk without a base is its own top layer); or everything, when a disk has a base
// that the agent knows nothing of.
func copyFlag(r virt.MigrateRequest, disks []domxml.DiskInfo, folder string) (golibvirt.DomainMigrateFlags, error) {
	own, foreign := false, false
	for _, target := range r.Disks {
		i := slices.IndexFunc(disks, func(k domxml.DiskInfo) bool { return k.Target == target })
		if i < 0 {
			return 0, fault.Newf(fault.InvalidArgument, "migrate", r.Instance, "the domain has no disk %q", target)
		}
		ours := strings.HasPrefix(disks[i].Source, folder+"/")
		own = own || disks[i].Backed && ours
		foreign = foreign || disks[i].Backed && !ours
	}
	if own && !foreign {
		return golibvirt.MigrateNonSharedInc, nil
	}
	return golibvirt.MigrateNonSharedDisk, nil
}

// migrateParams makes the parameters by libvirt's types (VIR_MIGRATE_PARAM_*).
func migrateParams(r virt.MigrateRequest) []golibvirt.TypedParam {
	params := []golibvirt.TypedParam{paramUllong("bandwidth", r.BandwidthMiB)}
	if r.PostCopy && r.PostCopyMiB > 0 {
		params = append(params, paramUllong("bandwidth.postcopy", r.PostCopyMiB))
	}
	if r.Inbound.MigrateURI != "" {
		params = append(params, paramString("migrate_uri", r.Inbound.MigrateURI))
	}
	if r.Parallel > 0 {
		params = append(params, paramInt("parallel.connections", int32(r.Parallel))) //nolint:gosec // 255 at most
	}
	if r.Compression != "" {
		params = append(params, paramString("compression", r.Compression))
	}
	for _, target := range r.Disks {
		params = append(params, paramString("migrate_disks", target))
	}
	return params
}

// perform sends the plan on a connection of its own.
func (d *Driver) perform(ctx context.Context, p performPlan) error {
	if d.ctx.Err() != nil {
		return errClosed
	}
	l, err := dialLink(ctx, d.cfg, nil)
	if err != nil {
		return err
	}
	defer d.forget(l)
	if !d.remember(l) {
		return errClosed
	}
	if err := l.take(ctx); err != nil {
		return err
	}
	_, err = run(ctx, l, d.cfg.MigrateTimeout, func(lv *golibvirt.Libvirt) ([]byte, error) {
		dom, err := lookup(lv, p.id)
		if err != nil {
			return nil, err
		}
		return lv.DomainMigratePerform3Params(dom, golibvirt.OptString{p.uri}, p.params, nil, p.flags)
	})
	if errors.Is(err, errGone) && d.ctx.Err() != nil {
		return errClosed
	}
	return err
}

// remember lets Close end the connection; false: the driver is closed already.
func (d *Driver) remember(l *link) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		return false
	}
	d.extra[l] = struct{}{}
	return true
}

func (d *Driver) forget(l *link) {
	d.mu.Lock()
	delete(d.extra, l)
	d.mu.Unlock()
	l.close()
}
