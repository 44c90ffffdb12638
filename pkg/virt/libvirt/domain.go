package libvirt

import (
	"context"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// lookup finds a domain by its UUID.
func lookup(lv *golibvirt.Libvirt, id string) (golibvirt.Domain, error) {
	u, err := uuid.Parse(id)
	if err != nil {
		return golibvirt.Domain{}, fault.New(fault.InvalidArgument, "", "", "not a UUID").Because(err)
	}
	return lv.DomainLookupByUUID(golibvirt.UUID(u))
}

// owned finds a domain and refuses a foreign one.
func owned(lv *golibvirt.Libvirt, id string) (golibvirt.Domain, error) {
	dom, err := lookup(lv, id)
	if err != nil {
		return dom, err
	}
	_, ours, err := metadata(lv, dom)
	if err == nil && !ours {
		err = errForeign()
	}
	return dom, err
}

// metadata reads our mark on a domain; ours is false for a foreign one.
func metadata(lv *golibvirt.Libvirt, dom golibvirt.Domain) (m domxml.Metadata, ours bool, err error) {
	xml, err := lv.DomainGetMetadata(dom, int32(golibvirt.DomainMetadataElement), golibvirt.OptString{domxml.Namespace}, golibvirt.DomainAffectCurrent)
	if isCode(err, golibvirt.ErrNoDomainMetadata) {
		return m, false, nil
	}
	if err != nil {
		return m, false, err
	}
	m, ok := domxml.ParseMetadata(xml)
	return m, ok && m.Instance == uuid.UUID(dom.UUID).String(), nil
}

func errForeign() error {
	return fault.New(fault.Conflict, "", "", "the domain is foreign: it carries no metadata of ours").
		WithHint("it was not made by this agent, which therefore never touches it; use virsh")
}

// onDomain carries out one short call on a domain of ours.
func (d *Driver) onDomain(ctx context.Context, op, id string, fn func(*golibvirt.Libvirt, golibvirt.Domain) error) error {
	return d.onDomainWithin(ctx, call{op: op, id: id, bound: d.cfg.CallTimeout}, fn)
}

func (d *Driver) onDomainWithin(ctx context.Context, c call, fn func(*golibvirt.Libvirt, golibvirt.Domain) error) error {
	_, err := bounded(ctx, d, c, func(lv *golibvirt.Libvirt) (struct{}, error) {
		dom, err := owned(lv, c.id)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, fn(lv, dom)
	})
	return err
}

// Lookup gives one domain.
func (d *Driver) Lookup(ctx context.Context, id string) (virt.Domain, error) {
	return control(ctx, d, "lookup", id, func(lv *golibvirt.Libvirt) (virt.Domain, error) { return describe(lv, id) })
}

// tries is how often a domain that changes under our eyes is read again.
const tries = 3

// describe reads a domain with several calls; when the answers are of different
// moments (a number without a process, or the reverse) it reads again.
func describe(lv *golibvirt.Libvirt, id string) (virt.Domain, error) {
	for try := 1; ; try++ {
		v, err := readDomain(lv, id)
		if err != nil {
			return virt.Domain{}, err
		}
		if gone(v.State) != v.Active() {
			return v, nil
		}
		if try == tries {
			if gone(v.State) {
				v.ID = -1
			}
			return v, nil
		}
	}
}

func readDomain(lv *golibvirt.Libvirt, id string) (virt.Domain, error) {
	dom, err := lookup(lv, id)
	if err != nil {
		return virt.Domain{}, err
	}
	xml, err := lv.DomainGetXMLDesc(dom, 0)
	if err != nil {
		return virt.Domain{}, err
	}
	info, err := domxml.Parse(xml)
	if err != nil {
		return virt.Domain{}, err
	}
	v := virt.Domain{
		UUID: id, Name: info.Name, ID: int(dom.ID), Owned: info.Owned,
		Generation: info.Metadata.Generation, Migration: info.Metadata.Migration,
		VCPUs: info.VCPUs, MemoryMiB: info.MemoryMiB,
	}
	state, reason, err := lv.DomainGetState(dom, 0)
	if err != nil {
		return virt.Domain{}, err
	}
	v.State, v.Reason = stateOf(state, reason)
	persistent, err := lv.DomainIsPersistent(dom)
	if err != nil {
		return virt.Domain{}, err
	}
	if v.Persistent = persistent != 0; !v.Persistent {
		return v, nil
	}
	saved, err := lv.DomainHasManagedSaveImage(dom, 0)
	v.Saved = saved != 0
	return v, err
}
