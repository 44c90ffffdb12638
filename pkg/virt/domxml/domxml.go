// Package domxml writes and edits the XML of domains. It is pure: strings in,
// strings out, no host is asked and no file is touched.
//
// XML of our own is made from libvirt's schema structs ([Build]). XML that came
// from libvirt is edited in place ([ForDestination]), so that what this package
// doesn't know survives.
//
// Domains of ours carry one metadata element in the namespace [Namespace]; a
// domain without it is foreign.
package domxml

import (
	"fmt"
	"path/filepath"
)

// Namespace is the URI of our metadata element. It names a format, not a page.
const Namespace = "https://compute-agent.dev/xmlns/instance/1"

// prefix is what the namespace is called inside a domain's XML.
const prefix = "ca"

// Defaults are the host's choices for what a spec leaves open.
type Defaults struct {
	InstancesPath string // the folder that holds one folder per instance; absolute, the same on every host
	VirtType      string // kvm or qemu (plain emulation); empty: qemu
	Arch          string // empty: x86_64
	Machine       string // empty: q35
	CPUModel      string // the model of a qemu guest without a CPU of its own; empty: qemu64
	Emulator      string // the QEMU binary; empty: libvirt's choice
}

func (d Defaults) withDefaults() Defaults {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&d.VirtType, "qemu")
	set(&d.Arch, "x86_64")
	set(&d.Machine, "q35")
	set(&d.CPUModel, "qemu64")
	return d
}

// Folder is where an instance's own files are.
func Folder(instancesPath, id string) string { return filepath.Join(instancesPath, id) }

// ConsolePath is the file that holds all the guest wrote to its console.
func ConsolePath(instancesPath, id string) string {
	return filepath.Join(Folder(instancesPath, id), "console.log")
}

// OverlayPath is the copy-on-write file of the disk with this index in the spec.
func OverlayPath(instancesPath, id string, index int) string {
	return filepath.Join(Folder(instancesPath, id), fmt.Sprintf("disk%d.qcow2", index))
}

// DomainName is the name a domain has in libvirt. It is made of the UUID,
// because libvirt wants names to be unique on a host and instances do not.
func DomainName(id string) string { return "instance-" + id }
