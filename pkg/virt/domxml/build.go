package domxml

import (
	"libvirt.org/go/libvirtxml"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// sparePorts is how many PCIe slots stay free for interfaces attached later.
const sparePorts = 4

// Build writes the XML of a domain of ours. The spec must have passed its own
// Check; what a host lacks is not looked for here.
func Build(d virt.Definition, host Defaults) (string, error) {
	host = host.withDefaults()
	meta, err := metadataOf(d).XML()
	if err != nil {
		return "", fault.Wrap(err, "build_domain_xml", d.Spec.UUID)
	}
	s := d.Spec
	dom := libvirtxml.Domain{
		Type:       host.VirtType,
		Name:       DomainName(s.UUID),
		UUID:       s.UUID,
		Title:      title(s),
		Metadata:   &libvirtxml.DomainMetadata{XML: meta},
		Memory:     &libvirtxml.DomainMemory{Value: uint(s.MemoryMiB), Unit: "MiB"},
		VCPU:       &libvirtxml.DomainVCPU{Placement: "static", Value: uint(s.VCPUs)},
		OS:         system(s, host),
		CPU:        cpu(s.CPU, host),
		Features:   &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}, APIC: &libvirtxml.DomainFeatureAPIC{}},
		Clock:      &libvirtxml.DomainClock{Offset: "utc"},
		OnPoweroff: "destroy", OnReboot: "restart", OnCrash: "destroy",
		Devices: devices(s, host),
	}
	xml, err := dom.Marshal()
	if err != nil {
		return "", fault.Wrap(err, "build_domain_xml", s.UUID)
	}
	return xml, nil
}

func metadataOf(d virt.Definition) Metadata {
	return Metadata{Instance: d.Spec.UUID, Name: d.Spec.Name, Generation: d.Generation, Migration: d.Migration}
}

// title is what `virsh list --title` shows.
func title(s instance.Spec) string {
	if s.Name != "" {
		return s.Name
	}
	return s.UUID
}

func system(s instance.Spec, host Defaults) *libvirtxml.DomainOS {
	machine := s.Machine
	if machine == "" {
		machine = host.Machine
	}
	os := &libvirtxml.DomainOS{
		Type:   &libvirtxml.DomainOSType{Arch: host.Arch, Machine: machine, Type: "hvm"},
		Kernel: s.Boot.Kernel, Initrd: s.Boot.Initrd, Cmdline: s.Boot.Cmdline,
	}
	if s.Firmware == "efi" {
		os.Firmware = "efi"
	}
	return os
}

// cpu follows the spec; without a wish kvm guests get host-model, which can be
// moved to a like host, and emulated ones a plain model.
func cpu(c instance.CPU, host Defaults) *libvirtxml.DomainCPU {
	mode, model := c.Mode, c.Model
	if mode == "" && host.VirtType == "kvm" {
		mode = "host-model"
	}
	if mode == "" {
		mode, model = "custom", host.CPUModel
	}
	switch mode {
	case "custom":
		check := "none" // emulation has every feature it knows, the host's CPU does not matter
		if host.VirtType == "kvm" {
			check = "partial"
		}
		return &libvirtxml.DomainCPU{Mode: mode, Match: "exact", Check: check, Model: &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: model}}
	case "host-passthrough":
		return &libvirtxml.DomainCPU{Mode: mode, Check: "none", Migratable: "on"}
	case "host-model":
		return &libvirtxml.DomainCPU{Mode: mode, Check: "partial"}
	default: // maximum
		return &libvirtxml.DomainCPU{Mode: mode, Check: "none"}
	}
}

func devices(s instance.Spec, host Defaults) *libvirtxml.DomainDeviceList {
	list := &libvirtxml.DomainDeviceList{
		Emulator:    host.Emulator,
		Disks:       disks(s, host),
		Interfaces:  interfaces(s.Ports),
		Controllers: controllers(s),
		Serials:     []libvirtxml.DomainSerial{serial(s.UUID, host)},
		Channels:    []libvirtxml.DomainChannel{agentChannel()},
		RNGs: []libvirtxml.DomainRNG{{
			Model:   "virtio",
			Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
		}},
		MemBalloon: &libvirtxml.DomainMemBalloon{Model: "virtio", Stats: &libvirtxml.DomainMemBalloonStats{Period: 10}},
	}
	return list
}
