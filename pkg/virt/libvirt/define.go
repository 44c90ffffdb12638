package libvirt

import (
	"context"
	"errors"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// Define makes the instance's files and defines the domain, or defines it anew.
func (d *Driver) Define(ctx context.Context, def virt.Definition) error {
	const op = "define"
	id := def.Spec.UUID
	host, err := d.defaults(ctx)
	if err != nil {
		return fault.Wrap(err, op, id)
	}
	xml, err := domxml.Build(def, host)
	if err != nil {
		return fault.Wrap(err, op, id)
	}
	if err := d.notForeign(ctx, op, id); err != nil {
		return err
	}
	if err := d.makeFiles(ctx, op, def); err != nil {
		return err
	}
	_, err = control(ctx, d, op, id, func(lv *golibvirt.Libvirt) (golibvirt.Domain, error) {
		return lv.DomainDefineXMLFlags(xml, golibvirt.DomainDefineValidate)
	})
	return err
}

// notForeign refuses an id that a foreign domain has.
func (d *Driver) notForeign(ctx context.Context, op, id string) error {
	err := d.onDomain(ctx, op, id, func(*golibvirt.Libvirt, golibvirt.Domain) error { return nil })
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// undefineFlags removes with the definition what libvirt keeps for it.
const undefineFlags = golibvirt.DomainUndefineManagedSave | golibvirt.DomainUndefineNvram |
	golibvirt.DomainUndefineSnapshotsMetadata | golibvirt.DomainUndefineCheckpointsMetadata

// Undefine removes the definition of a domain that is off and, with files, the
// instance's folder. A domain that is gone may still have its folder here.
func (d *Driver) Undefine(ctx context.Context, id string, files bool) error {
	const op = "undefine"
	err := d.power(ctx, call{op: op, id: id, bound: d.cfg.CallTimeout},
		func(s virt.State) (bool, error) {
			if !off(s) {
				return false, refuse(s, "off") // libvirt would make it a transient domain
			}
			return false, nil
		},
		func(lv *golibvirt.Libvirt, dom golibvirt.Domain) error {
			return lv.DomainUndefineFlags(dom, undefineFlags)
		})
	if err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	if !files {
		return nil
	}
	return d.removeFiles(ctx, op, id)
}

// defaults are the host's choices for domxml, with the kind of virtualisation
// found out once.
func (d *Driver) defaults(ctx context.Context) (domxml.Defaults, error) {
	kind, err := d.kind(ctx)
	return domxml.Defaults{InstancesPath: d.cfg.InstancesPath, VirtType: kind, Machine: d.cfg.Machine, CPUModel: d.cfg.CPUModel}, err
}

func (d *Driver) kind(ctx context.Context) (string, error) {
	if d.cfg.VirtType != "auto" {
		return d.cfg.VirtType, nil
	}
	d.mu.Lock()
	known := d.virtType
	d.mu.Unlock()
	if known != "" {
		return known, nil
	}
	h, err := d.capabilities(ctx, "virt_type")
	if err != nil {
		return "", err
	}
	found := "qemu"
	for _, t := range h.domainTypes {
		if t == "kvm" {
			found = t
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.virtType = found
	return found, nil
}
