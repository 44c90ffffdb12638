package domxml

import (
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// Targets gives the device name of every disk of a spec (vda, sda, …), in the
// spec's order. Disks on scsi and sata share the letters of sd.
func Targets(list []instance.Disk) []string {
	next := map[string]int{}
	out := make([]string, len(list))
	for i, d := range list {
		p := "sd"
		if busOf(d) == "virtio" {
			p = "vd"
		}
		out[i] = p + letters(next[p])
		next[p]++
	}
	return out
}

// letters counts a … z, aa, ab, … as Linux does.
func letters(n int) string {
	s := ""
	for n >= 0 {
		s = string(rune('a'+n%26)) + s
		n = n/26 - 1
	}
	return s
}

func busOf(d instance.Disk) string {
	if d.Bus == "" {
		return "virtio"
	}
	return d.Bus
}

func disks(s instance.Spec, host Defaults) []libvirtxml.DomainDisk {
	targets := Targets(s.Disks)
	out := make([]libvirtxml.DomainDisk, len(s.Disks))
	for i, d := range s.Disks {
		out[i] = libvirtxml.DomainDisk{
			Device: "disk",
			Driver: driver(d),
			Source: source(s.UUID, i, d, host),
			Target: &libvirtxml.DomainDiskTarget{Dev: targets[i], Bus: busOf(d)},
			Boot:   bootOrder(s, d),
		}
		if d.ReadOnly {
			out[i].ReadOnly = &libvirtxml.DomainDiskReadOnly{}
		}
	}
	return out
}

// Format is how a disk's file is written: raw or qcow2. An overlay is always qcow2.
func Format(d instance.Disk) string {
	switch {
	case d.Source.Image != "":
		return "qcow2"
	case d.Format == "":
		return "raw"
	}
	return d.Format
}

// driver names the format. A disk that other hosts reach too is opened without
// the host's page cache: libvirt refuses to migrate it otherwise, because the
// destination could read stale pages.
func driver(d instance.Disk) *libvirtxml.DomainDiskDriver {
	dr := &libvirtxml.DomainDiskDriver{Name: "qemu", Type: Format(d), Discard: "unmap"}
	if d.Shared && !d.ReadOnly {
		dr.Cache = "none"
	}
	return dr
}

func source(id string, index int, d instance.Disk, host Defaults) *libvirtxml.DomainDiskSource {
	switch {
	case d.Source.Image != "":
		return fileSource(OverlayPath(host.InstancesPath, id, index))
	case d.Source.Volume != "":
		pool, volume, _ := strings.Cut(d.Source.Volume, "/")
		return &libvirtxml.DomainDiskSource{Volume: &libvirtxml.DomainDiskSourceVolume{Pool: pool, Volume: volume}}
	default:
		return fileSource(d.Source.File)
	}
}

func fileSource(path string) *libvirtxml.DomainDiskSource {
	return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
}

// bootOrder is left out for a guest that starts a kernel of the host's.
func bootOrder(s instance.Spec, d instance.Disk) *libvirtxml.DomainDeviceBoot {
	if d.BootIndex <= 0 || s.Boot.Kernel != "" {
		return nil
	}
	return &libvirtxml.DomainDeviceBoot{Order: uint(d.BootIndex)}
}

// interfaces takes taps that the agent made: libvirt neither creates nor removes
// them (managed='no'). The MTU element is there only if the port has one, since
// one that appears in mid-migration is refused by QEMU (nova.md 1.4).
func interfaces(ports []instance.Port) []libvirtxml.DomainInterface {
	out := make([]libvirtxml.DomainInterface, len(ports))
	for i, p := range ports {
		out[i] = Interface(p)
	}
	return out
}

// Interface is the element of one port.
func Interface(p instance.Port) libvirtxml.DomainInterface {
	nic := libvirtxml.DomainInterface{
		MAC:    &libvirtxml.DomainInterfaceMAC{Address: strings.ToLower(p.MAC)},
		Source: &libvirtxml.DomainInterfaceSource{Ethernet: &libvirtxml.DomainInterfaceSourceEthernet{}},
		Target: &libvirtxml.DomainInterfaceTarget{Dev: p.Device(), Managed: "no"},
		Model:  &libvirtxml.DomainInterfaceModel{Type: "virtio"},
	}
	if p.MTU > 0 {
		nic.MTU = &libvirtxml.DomainInterfaceMTU{Size: uint(p.MTU)}
	}
	return nic
}

// controllers leaves USB out, adds what scsi disks need, and enough PCIe ports
// that interfaces can be attached while the guest runs.
func controllers(s instance.Spec) []libvirtxml.DomainController {
	out := []libvirtxml.DomainController{{Type: "usb", Index: new(uint(0)), Model: "none"}}
	scsi, pci := false, 3 // channel, rng, balloon
	for _, d := range s.Disks {
		scsi = scsi || d.Bus == "scsi"
		if busOf(d) == "virtio" {
			pci++
		}
	}
	if scsi {
		out = append(out, libvirtxml.DomainController{Type: "scsi", Index: new(uint(0)), Model: "virtio-scsi"})
		pci++
	}
	if !hasPCIe(s.Machine) {
		return out
	}
	out = append(out, libvirtxml.DomainController{Type: "pci", Index: new(uint(0)), Model: "pcie-root"})
	for range pci + len(s.Ports) + sparePorts {
		out = append(out, libvirtxml.DomainController{Type: "pci", Model: "pcie-root-port"})
	}
	return out
}

// hasPCIe knows the machine types with PCI Express; others have plain PCI, where
// every slot of the root bus takes a device.
func hasPCIe(machine string) bool { return machine == "" || strings.Contains(machine, "q35") }

// serial is a pty for people, with all that passes kept in the console log.
func serial(id string, host Defaults) libvirtxml.DomainSerial {
	return libvirtxml.DomainSerial{
		Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
		Log:    &libvirtxml.DomainChardevLog{File: ConsolePath(host.InstancesPath, id), Append: "on"},
		Target: &libvirtxml.DomainSerialTarget{Port: new(uint(0))},
	}
}

func agentChannel() libvirtxml.DomainChannel {
	return libvirtxml.DomainChannel{
		Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{}},
		Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: "org.qemu.guest_agent.0"}},
	}
}
