package libvirt

import (
	"context"
	"errors"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// inventory is what a handful of calls tell of all domains at once.
type inventory struct {
	domains           []golibvirt.Domain
	persistent, saved map[golibvirt.UUID]bool
	figures           map[golibvirt.UUID]fields
}

// List gives every domain of the host, foreign ones included: four calls for all
// of them and one for the metadata of each. None of them waits for a domain that a
// job holds. A domain that disappears meanwhile is left out.
func (d *Driver) List(ctx context.Context) ([]virt.Domain, error) {
	const op = "list"
	all, err := control(ctx, d, op, "", readInventory)
	if err != nil {
		return nil, err
	}
	out := make([]virt.Domain, 0, len(all.domains))
	for _, dom := range all.domains {
		v, err := d.entry(ctx, all, dom)
		switch {
		case err == nil:
			out = append(out, v)
		case !errors.Is(err, fault.NotFound):
			return nil, fault.Wrap(err, op, "")
		}
	}
	return out, nil
}

func readInventory(lv *golibvirt.Libvirt) (inv inventory, err error) {
	list := func(flags golibvirt.ConnectListAllDomainsFlags) ([]golibvirt.Domain, error) {
		doms, _, err := lv.ConnectListAllDomains(1, flags)
		return doms, err
	}
	const every = golibvirt.ConnectListDomainsActive | golibvirt.ConnectListDomainsInactive
	if inv.domains, err = list(every); err != nil {
		return inv, err
	}
	persistent, err := list(every | golibvirt.ConnectListDomainsPersistent)
	if err != nil {
		return inv, err
	}
	saved, err := list(every | golibvirt.ConnectListDomainsManagedsave)
	if err != nil {
		return inv, err
	}
	inv.persistent, inv.saved = set(persistent), set(saved)
	records, err := lv.ConnectGetAllDomainStats(nil, uint32(golibvirt.DomainStatsState|golibvirt.DomainStatsBalloon|golibvirt.DomainStatsVCPU),
		uint32(golibvirt.ConnectGetAllDomainsStatsNowait))
	inv.figures = make(map[golibvirt.UUID]fields, len(records))
	for _, r := range records {
		inv.figures[r.Dom.UUID] = fieldsOf(r.Params)
	}
	return inv, err
}

func set(doms []golibvirt.Domain) map[golibvirt.UUID]bool {
	out := make(map[golibvirt.UUID]bool, len(doms))
	for _, d := range doms {
		out[d.UUID] = true
	}
	return out
}

// entry puts together what is known of one domain. Where the answers are of
// different moments the domain is looked up alone.
func (d *Driver) entry(ctx context.Context, all inventory, dom golibvirt.Domain) (virt.Domain, error) {
	id := uuid.UUID(dom.UUID).String()
	f, ok := all.figures[dom.UUID]
	v := virt.Domain{
		UUID: id, Name: dom.Name, ID: int(dom.ID), Persistent: all.persistent[dom.UUID], Saved: all.saved[dom.UUID],
		VCPUs: int(f.number("vcpu.maximum")), MemoryMiB: int(f.number("balloon.maximum") >> 10), //nolint:gosec // sizes of a guest
	}
	v.State, v.Reason = stateOf(int32(f.number("state.state")), int32(f.number("state.reason"))) //nolint:gosec // small numbers
	if !ok || v.VCPUs == 0 || v.MemoryMiB == 0 || v.Active() == gone(v.State) {
		return d.Lookup(ctx, id)
	}
	type mark struct {
		domxml.Metadata
		ours bool
	}
	m, err := control(ctx, d, "list", id, func(lv *golibvirt.Libvirt) (m mark, err error) {
		m.Metadata, m.ours, err = metadata(lv, dom)
		return m, err
	})
	if err != nil || !m.ours {
		return v, err
	}
	v.Owned, v.Generation, v.Migration = true, m.Generation, m.Migration
	if m.Name != "" {
		v.Name = m.Name
	}
	return v, nil
}

// gone knows the states of a domain without a process.
func gone(s virt.State) bool { return s == virt.Shutoff || s == virt.NoState }
