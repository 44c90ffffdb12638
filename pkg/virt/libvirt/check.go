package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// Check gives every reason why this host could not run the definition.
func (d *Driver) Check(ctx context.Context, def virt.Definition) ([]string, error) {
	const op = "check"
	s := def.Spec
	host, err := d.defaults(ctx)
	if err != nil {
		return nil, fault.Wrap(err, op, s.UUID)
	}
	caps, err := d.capabilities(ctx, op)
	if err != nil {
		return nil, err
	}
	machine := s.Machine
	if machine == "" {
		machine = host.Machine
	}
	r := &findings{list: []string{}}
	if slices.Contains(caps.machineTypes, machine) {
		if err := d.checkMachine(ctx, r, s, machine, host.VirtType); err != nil {
			return nil, fault.Wrap(err, op, s.UUID)
		}
		if err := d.compareCPU(ctx, r, def.CPU, machine, host.VirtType); err != nil {
			return nil, fault.Wrap(err, op, s.UUID)
		}
	} else {
		r.add("machine: %q is unknown to this host's QEMU", machine)
	}
	r.when(!slices.Contains(caps.domainTypes, host.VirtType), "virt_type: this host can't run %s guests", host.VirtType)
	r.readable("boot.kernel", s.Boot.Kernel)
	r.readable("boot.initrd", s.Boot.Initrd)
	if def.PostCopy {
		if err := d.checkPostCopy(ctx, r); err != nil {
			return nil, fault.Wrap(err, op, s.UUID)
		}
	}
	able, err := d.checkCompression(ctx, def.Compression)
	if err != nil {
		return nil, fault.Wrap(err, op, s.UUID)
	}
	r.list = append(r.list, able...)
	if def.TLS {
		if err := d.checkArriving(ctx, r); err != nil {
			return nil, fault.Wrap(err, op, s.UUID)
		}
	}
	return r.list, fault.Wrap(d.checkDisks(ctx, r, def), op, s.UUID)
}

func (d *Driver) checkDisks(ctx context.Context, r *findings, def virt.Definition) error {
	targets := domxml.Targets(def.Spec.Disks)
	for i, disk := range def.Spec.Disks {
		_, comes := copied(def, targets[i])
		if err := d.checkDisk(ctx, r, fmt.Sprintf("disks[%d]", i), disk, comes); err != nil {
			return err
		}
	}
	if def.Migration == "" {
		return nil
	}
	return d.checkIncoming(ctx, r, def)
}

// findings collects reasons.
type findings struct{ list []string }

func (r *findings) add(format string, args ...any) {
	r.list = append(r.list, fmt.Sprintf(format, args...))
}

func (r *findings) when(bad bool, format string, args ...any) {
	if bad {
		r.add(format, args...)
	}
}

// readable wants a file that this process can open; a path of "" is not asked for.
func (r *findings) readable(what, path string) {
	if path == "" {
		return
	}
	info, err := os.Stat(path)
	if err != nil {
		r.add("%s: %v", what, err)
		return
	}
	f, err := os.Open(path) //nolint:gosec // a path of a checked spec
	if err != nil {
		r.add("%s: %v", what, err)
		return
	}
	_ = f.Close()
	r.when(info.IsDir(), "%s: %s is a folder", what, path)
}

// checkDisk wants what a disk is made of; comes says that its content comes with the guest.
func (d *Driver) checkDisk(ctx context.Context, r *findings, at string, disk instance.Disk, comes bool) error {
	if !comes {
		r.readable(at+".source.file", d.local(disk.Source.File))
	}
	r.readable(at+".source.image", disk.Source.Image)
	if disk.Source.Image != "" || comes && disk.Source.File != "" {
		_, err := exec.LookPath(d.cfg.QemuImg)
		r.when(err != nil, "%s: %s, which makes disks, is not installed (package qemu-utils)", at, d.cfg.QemuImg)
	}
	if disk.Source.Volume == "" {
		return nil
	}
	pool, _ := splitVolume(disk.Source.Volume)
	_, err := control(ctx, d, "check", at, func(lv *golibvirt.Libvirt) (struct{}, error) {
		if comes {
			_, err := lv.StoragePoolLookupByName(pool)
			return struct{}{}, err
		}
		_, err := findVolume(lv, disk.Source.Volume)
		return struct{}{}, err
	})
	if !errors.Is(err, fault.NotFound) {
		return err
	}
	if comes {
		r.add("%s.source.volume: pool %s is not here", at, pool)
	} else {
		r.add("%s.source.volume: %s is not here", at, disk.Source.Volume)
	}
	return nil
}

// checkMachine asks libvirt what this machine type can do: CPU, firmware, vCPUs.
func (d *Driver) checkMachine(ctx context.Context, r *findings, s instance.Spec, machine, kind string) error {
	xml, err := control(ctx, d, "check", s.UUID, func(lv *golibvirt.Libvirt) (string, error) {
		return lv.ConnectGetDomainCapabilities(nil, nil, golibvirt.OptString{machine}, golibvirt.OptString{kind}, 0)
	})
	if isCode(err, golibvirt.ErrInvalidArg) {
		r.add("virt_type: libvirt refuses %s on machine %s: %v", kind, machine, err)
		return nil
	}
	if err != nil {
		return err
	}
	var caps libvirtxml.DomainCaps
	if err := caps.Unmarshal(xml); err != nil {
		return fault.WrapAs(fault.Internal, err, "check", "domain capabilities")
	}
	if caps.VCPU != nil {
		r.when(s.VCPUs > int(caps.VCPU.Max), "vcpus: machine %s has at most %d", machine, caps.VCPU.Max)
	}
	checkCPU(r, s.CPU, caps.CPU)
	r.when(s.Firmware == "efi" && !hasFirmware(caps.OS, "efi"), "firmware: this host has no efi firmware for machine %s (package ovmf)", machine)
	return nil
}

func checkCPU(r *findings, want instance.CPU, caps *libvirtxml.DomainCapsCPU) {
	if want.Mode == "" || caps == nil {
		return
	}
	for _, m := range caps.Modes {
		if m.Name != want.Mode {
			continue
		}
		r.when(m.Supported != "yes", "cpu.mode: %s is not possible here", want.Mode)
		if want.Mode != "custom" {
			return
		}
		known := slices.ContainsFunc(m.Models, func(c libvirtxml.DomainCapsCPUModel) bool { return c.Name == want.Model })
		r.when(!known, "cpu.model: %q is unknown to this host's QEMU", want.Model)
		return
	}
	r.add("cpu.mode: %s is unknown to this host's libvirt", want.Mode)
}

func hasFirmware(caps *libvirtxml.DomainCapsOS, name string) bool {
	if caps == nil {
		return false
	}
	return slices.ContainsFunc(caps.Enums, func(e libvirtxml.DomainCapsEnum) bool {
		return e.Name == "firmware" && slices.Contains(e.Values, name)
	})
}

// nearest gives path or its nearest folder above that exists.
func nearest(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}
