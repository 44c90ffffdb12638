package instance

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Spec is what a caller asks for: build_and_run_instance carries it and the
// agent keeps it, so that a guest can be rebuilt from its record.
type Spec struct {
	UUID      string            `json:"uuid"`
	Name      string            `json:"name,omitempty"` // default: the UUID
	VCPUs     int               `json:"vcpus"`
	MemoryMiB int               `json:"memory_mib"`
	CPU       CPU               `json:"cpu,omitzero"`
	Machine   string            `json:"machine,omitempty"`  // e.g. pc-q35-7.2; empty: the hypervisor's default q35
	Firmware  string            `json:"firmware,omitempty"` // bios (default) or efi
	Boot      Boot              `json:"boot,omitzero"`
	Disks     []Disk            `json:"disks,omitempty"`
	Ports     []Port            `json:"ports,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`
}

// CPU selects the guest's CPU. The empty mode is the driver's default.
type CPU struct {
	Mode  string `json:"mode,omitempty"`  // host-model, host-passthrough, custom or maximum
	Model string `json:"model,omitempty"` // for custom, e.g. qemu64
}

// Boot says what the guest starts: a kernel of the host's, or its disks when empty.
type Boot struct {
	Kernel  string `json:"kernel,omitempty"` // absolute path on the host
	Initrd  string `json:"initrd,omitempty"`
	Cmdline string `json:"cmdline,omitempty"`
}

// Disk is one block device of the guest.
type Disk struct {
	Source    DiskSource `json:"source"`
	Format    string     `json:"format,omitempty"` // raw or qcow2; an overlay on an image is always qcow2
	Bus       string     `json:"bus,omitempty"`    // virtio (default), scsi, sata
	SizeGiB   int        `json:"size_gib,omitempty"`
	BootIndex int        `json:"boot_index,omitempty"` // 1 boots first; 0: not bootable
	Shared    bool       `json:"shared,omitempty"`     // reachable from every host under the same path
	ReadOnly  bool       `json:"read_only,omitempty"`
}

// DiskSource names exactly one origin.
type DiskSource struct {
	File   string `json:"file,omitempty"`   // an existing file, used in place
	Image  string `json:"image,omitempty"`  // a base image; the agent makes a copy-on-write overlay
	Volume string `json:"volume,omitempty"` // POOL/VOLUME of the hypervisor's storage
}

// Binding is the way a port reaches the host's network.
type Binding string

// The bindings of design section 9.
const (
	BindingTap    Binding = "tap"    // a tap and nothing else
	BindingBridge Binding = "bridge" // a tap in an existing Linux bridge
	BindingOVS    Binding = "ovs"    // a tap in an Open vSwitch bridge
)

// Port is one network interface of the guest.
type Port struct {
	ID           string  `json:"id"`
	MAC          string  `json:"mac"`
	MTU          int     `json:"mtu,omitempty"` // 0: leave the device's default
	Binding      Binding `json:"binding"`
	Bridge       string  `json:"bridge,omitempty"`
	VLAN         int     `json:"vlan,omitempty"`
	WaitForEvent bool    `json:"wait_for_event,omitempty"` // wait for an external network-vif-plugged before the guest runs
}

// Device is the name of the port's tap: "tap" and the first 11 characters of the
// port id, so that the tools of nova and OVN find it (nova.md 4.2).
func (p Port) Device() string {
	id := p.ID
	if len(id) > 11 {
		id = id[:11]
	}
	return "tap" + id
}

var (
	nameShape   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]{0,254}$`)
	bridgeShape = regexp.MustCompile(`^[^\s/]{1,15}$`)
	sourceShape = regexp.MustCompile(`^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$`)
)

// Check refuses a spec that no host could build and names every reason at once
// (kind invalid_argument, details.reasons). It knows nothing of a particular
// host: room, bridges and machine types are the agent's own checks.
func (s Spec) Check() error {
	var bad reasons
	if err := CheckUUID("spec.uuid", s.UUID); err != nil {
		bad.add("uuid: %q is not a UUID in lower-case canonical form", s.UUID)
	}
	if s.Name != "" && !nameShape.MatchString(s.Name) {
		bad.add("name: %q: use letters, digits and _.:- (255 at most), starting with a letter or digit", s.Name)
	}
	bad.require(s.VCPUs >= 1 && s.VCPUs <= 4096, "vcpus: %d is not between 1 and 4096", s.VCPUs)
	bad.require(s.MemoryMiB >= 16 && s.MemoryMiB <= 64<<20, "memory_mib: %d is not between 16 and 67108864", s.MemoryMiB)
	bad.require(oneOf(s.CPU.Mode, "", "host-model", "host-passthrough", "custom", "maximum"), "cpu.mode: %q is unknown", s.CPU.Mode)
	bad.require((s.CPU.Mode == "custom") == (s.CPU.Model != ""), "cpu: mode custom and a model go together")
	bad.require(oneOf(s.Firmware, "", "bios", "efi"), "firmware: %q: use bios or efi", s.Firmware)
	s.Boot.check(&bad)
	for i, d := range s.Disks {
		d.check(&bad, fmt.Sprintf("disks[%d]", i))
	}
	checkPorts(&bad, s.Ports)
	return bad.err(s.UUID)
}

func (b Boot) check(bad *reasons) {
	bad.require(b.Kernel == "" || strings.HasPrefix(b.Kernel, "/"), "boot.kernel: %q is not an absolute path", b.Kernel)
	bad.require(b.Initrd == "" || strings.HasPrefix(b.Initrd, "/"), "boot.initrd: %q is not an absolute path", b.Initrd)
	bad.require(b.Kernel != "" || (b.Initrd == "" && b.Cmdline == ""), "boot: initrd and cmdline need a kernel")
}

func (d Disk) check(bad *reasons, at string) {
	n := 0
	for _, s := range []string{d.Source.File, d.Source.Image, d.Source.Volume} {
		if s != "" {
			n++
		}
	}
	bad.require(n == 1, "%s.source: name exactly one of file, image and volume", at)
	bad.require(d.Source.File == "" || strings.HasPrefix(d.Source.File, "/"), "%s.source.file: %q is not an absolute path", at, d.Source.File)
	bad.require(d.Source.Image == "" || strings.HasPrefix(d.Source.Image, "/"), "%s.source.image: %q is not an absolute path", at, d.Source.Image)
	bad.require(d.Source.Volume == "" || sourceShape.MatchString(d.Source.Volume), "%s.source.volume: %q: write POOL/VOLUME", at, d.Source.Volume)
	bad.require(oneOf(d.Format, "", "raw", "qcow2"), "%s.format: %q: use raw or qcow2", at, d.Format)
	bad.require(oneOf(d.Bus, "", "virtio", "scsi", "sata"), "%s.bus: %q: use virtio, scsi or sata", at, d.Bus)
	bad.require(d.SizeGiB >= 0, "%s.size_gib: %d is negative", at, d.SizeGiB)
	bad.require(d.BootIndex >= 0, "%s.boot_index: %d is negative", at, d.BootIndex)
}

// Check refuses a port that can't be plugged anywhere (kind invalid_argument).
func (p Port) Check() error {
	var bad reasons
	p.check(&bad, "port")
	return bad.err(p.ID)
}

func (p Port) check(bad *reasons, at string) {
	if err := CheckUUID(at+".id", p.ID); err != nil {
		bad.add("%s.id: %q is not a UUID in lower-case canonical form", at, p.ID)
	}
	mac, err := net.ParseMAC(p.MAC)
	bad.require(err == nil && len(mac) == 6, "%s.mac: %q is not a MAC address", at, p.MAC)
	if err == nil && len(mac) == 6 {
		bad.require(mac[0]&1 == 0, "%s.mac: %q is a multicast address", at, p.MAC)
	}
	bad.require(p.MTU == 0 || (p.MTU >= 68 && p.MTU <= 65535), "%s.mtu: %d is not between 68 and 65535", at, p.MTU)
	bad.require(p.VLAN >= 0 && p.VLAN <= 4094, "%s.vlan: %d is not between 0 and 4094", at, p.VLAN)
	switch p.Binding {
	case BindingTap:
		bad.require(p.Bridge == "", "%s.bridge: binding tap has no bridge", at)
	case BindingBridge, BindingOVS:
		bad.require(bridgeShape.MatchString(p.Bridge), "%s.bridge: %q: name a bridge (1 to 15 characters)", at, p.Bridge)
	default:
		bad.add("%s.binding: %q: use tap, bridge or ovs", at, p.Binding)
	}
}

func checkPorts(bad *reasons, ports []Port) {
	ids, macs, devices := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i, p := range ports {
		at := fmt.Sprintf("ports[%d]", i)
		p.check(bad, at)
		mac := strings.ToLower(p.MAC)
		bad.require(!ids[p.ID], "%s.id: %q is there twice", at, p.ID)
		bad.require(!macs[mac], "%s.mac: %q is there twice", at, p.MAC)
		bad.require(ids[p.ID] || !devices[p.Device()], "%s.id: %q has the same device name as another port", at, p.ID)
		ids[p.ID], macs[mac], devices[p.Device()] = true, true, true
	}
}

// reasons collects everything that is wrong, so that a caller mends it in one go.
type reasons []string

func (r *reasons) add(format string, args ...any) { *r = append(*r, fmt.Sprintf(format, args...)) }

func (r *reasons) require(ok bool, format string, args ...any) {
	if !ok {
		r.add(format, args...)
	}
}

func (r *reasons) err(subject string) error {
	if len(*r) == 0 {
		return nil
	}
	return fault.New(fault.InvalidArgument, "spec", subject, strings.Join(*r, "; ")).WithDetail("reasons", []string(*r))
}

func oneOf(s string, allowed ...string) bool {
	return slices.Contains(allowed, s)
}
