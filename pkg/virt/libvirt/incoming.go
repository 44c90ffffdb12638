package libvirt

import (
	"context"
	"errors"
	"net/url"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// PrepareIncoming makes the instance's folder as Define would, and what the disks are
// copied into that come with the guest. What it makes is noted in the folder first. It never defines anything: the definition comes with the guest.
func (d *Driver) PrepareIncoming(ctx context.Context, in virt.Incoming) (virt.Inbound, error) {
	const op = "prepare_incoming"
	id := in.Spec.UUID
	if in.Migration == "" {
		return virt.Inbound{}, fault.New(fault.InvalidArgument, op, id, "the migration's UUID is missing")
	}
	to, err := d.inbound(ctx, op)
	if err != nil {
		return virt.Inbound{}, err
	}
	dom, err := d.Lookup(ctx, id)
	switch {
	case err == nil && dom.Owned && dom.Migration == in.Migration:
		return to, nil // asked again after the guest began to arrive
	case err == nil:
		return virt.Inbound{}, fault.Newf(fault.Conflict, op, id, "a domain with this UUID is here already: %s", dom.State).
			WithHint("look at it with virsh dumpxml %s; an agent's reconcile removes what is stale", id)
	case !errors.Is(err, fault.NotFound):
		return virt.Inbound{}, err
	}
	if err := d.claim(ctx, op, in); err != nil {
		return virt.Inbound{}, err
	}
	if err := d.makeFiles(ctx, op, in.Definition); err != nil {
		return virt.Inbound{}, err
	}
	return to, d.makeTargets(ctx, op, in.Definition)
}

// inbound says where guests are sent to this host.
func (d *Driver) inbound(ctx context.Context, op string) (virt.Inbound, error) {
	own, err := control(ctx, d, op, "", (*golibvirt.Libvirt).ConnectGetHostname)
	if err != nil {
		return virt.Inbound{}, err
	}
	host, in := d.cfg.InboundAddr, virt.Inbound{TLSName: own}
	if host == "" {
		host = own
	} else {
		in.MigrateURI = "tcp://" + bracketed(host)
	}
	uri, err := destinationURI(d.cfg.LiveMigrationURI, host)
	in.URI = uri
	return in, fault.Wrap(err, op, host)
}

// destinationURI fills the template; an IPv6 address gets its brackets.
func destinationURI(template, host string) (string, error) {
	if strings.Count(template, "%s") != 1 || strings.Count(template, "%") != 1 {
		return "", fault.Newf(fault.InvalidArgument, "", "live_migration_uri", "%q needs exactly one %%s", template)
	}
	uri := strings.Replace(template, "%s", bracketed(host), 1)
	if u, err := url.Parse(uri); err != nil || u.Scheme == "" || u.Host == "" {
		return "", fault.Newf(fault.InvalidArgument, "", "live_migration_uri", "%q is not a URI with a host", uri)
	}
	return uri, nil
}

func bracketed(host string) string {
	if strings.Contains(host, ":") && !strings.HasPrefix(host, "[") {
		return "[" + host + "]"
	}
	return host
}

/*
CancelIncoming removes what PrepareIncoming made for this migration.

	no domain                              the folder goes, if it was made for this migration
	paused, still arriving, this migration its half-arrived QEMU is ended first: the source
	                                       kills its own only after this side said it runs
	anything else                          conflict: it may be the guest
*/
func (d *Driver) CancelIncoming(ctx context.Context, id, migration string) error {
	const op = "cancel_incoming"
	if err := instance.CheckUUID(op, id); err != nil {
		return err
	}
	dom, err := d.Lookup(ctx, id)
	switch {
	case errors.Is(err, fault.NotFound):
	case err != nil:
		return fault.Wrap(err, op, id)
	case !arriving(dom, migration):
		return fault.Newf(fault.Conflict, op, id, "the domain is here and is %s (%s): it may be the guest", dom.State, dom.Reason).
			WithHint("compare its generation with the source's before anything is removed")
	default:
		if err := d.endArriving(ctx, op, id); err != nil {
			return err
		}
	}
	return d.unclaim(ctx, op, id, migration)
}

// arriving knows a domain that libvirt made for an incoming stream that has not
// ended.
func arriving(dom virt.Domain, migration string) bool {
	return dom.Owned && dom.Migration == migration && dom.State == virt.Paused &&
		(dom.Reason == virt.ReasonMigrating || dom.Reason == virt.ReasonStarting)
}

// endArriving looks once more, on the connection that destroys, because a guest
// may begin to run between two calls.
func (d *Driver) endArriving(ctx context.Context, op, id string) error {
	err := d.onDomainWithin(ctx, call{op: op, id: id, bound: d.cfg.DestroyTimeout}, func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
		state, reason, err := lv.DomainGetState(dom, 0)
		if err != nil {
			return err
		}
		s, why := stateOf(state, reason)
		if s != virt.Paused || (why != virt.ReasonMigrating && why != virt.ReasonStarting) {
			return refuse(s, "arriving")
		}
		return lv.DomainDestroyFlags(dom, golibvirt.DomainDestroyDefault)
	})
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	return err
}
