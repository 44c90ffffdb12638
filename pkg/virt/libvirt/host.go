package libvirt

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// capabilities is what is read of libvirt's capabilities document.
type capabilities struct {
	uuid, arch, cpuModel      string
	qemuUser                  string // the number of the user as which QEMU runs
	machineTypes, domainTypes []string
}

func (d *Driver) capabilities(ctx context.Context, op string) (capabilities, error) {
	xml, err := control(ctx, d, op, "", (*golibvirt.Libvirt).ConnectGetCapabilities)
	if err != nil {
		return capabilities{}, err
	}
	return parseCapabilities(op, xml)
}

func parseCapabilities(op, xml string) (capabilities, error) {
	var caps libvirtxml.Caps
	if err := caps.Unmarshal(xml); err != nil {
		return capabilities{}, fault.WrapAs(fault.Internal, err, op, "capabilities")
	}
	out := capabilities{uuid: caps.Host.UUID, qemuUser: qemuUser(caps)}
	if caps.Host.CPU != nil {
		out.arch, out.cpuModel = caps.Host.CPU.Arch, caps.Host.CPU.Model
	}
	for _, g := range caps.Guests {
		if g.OSType != "hvm" || g.Arch.Name != out.arch {
			continue
		}
		for _, m := range g.Arch.Machines {
			out.machineTypes = append(out.machineTypes, m.Name)
		}
		for _, t := range g.Arch.Domains {
			out.domainTypes = append(out.domainTypes, t.Type)
		}
	}
	sort.Strings(out.machineTypes)
	sort.Strings(out.domainTypes)
	out.machineTypes = slices.Compact(out.machineTypes)
	return out, nil
}

// qemuUser is the number of the user as which QEMU runs, "" if libvirt does not say.
func qemuUser(caps libvirtxml.Caps) string {
	for _, m := range caps.Host.SecModel {
		if m.Name != "dac" {
			continue
		}
		for _, l := range m.Labels {
			if user, _, ok := strings.Cut(strings.TrimPrefix(l.Value, "+"), ":"); ok {
				return user
			}
		}
	}
	return ""
}

// Host describes the machine: libvirt's capabilities and versions, the node and
// the room where instances live.
func (d *Driver) Host(ctx context.Context) (virt.Host, error) {
	const op = "host"
	caps, err := d.capabilities(ctx, op)
	if err != nil {
		return virt.Host{}, err
	}
	h := virt.Host{
		MachineID: caps.uuid, Driver: "libvirt", HypervisorType: "QEMU", Arch: caps.arch, CPUModel: caps.cpuModel,
		MachineTypes: caps.machineTypes, DomainTypes: caps.domainTypes,
	}
	node, err := control(ctx, d, op, "", readNode)
	if err != nil {
		return virt.Host{}, err
	}
	h.Hostname, h.VCPUs, h.MemoryMiB = node.hostname, int(node.cpus), int(node.memoryKiB>>10)
	h.LibraryVersion, h.HypervisorVersion = version(node.library), version(node.hypervisor)
	h.DiskGiB, h.DiskFreeGiB, err = room(d.cfg.LocalInstancesPath)
	return h, fault.Wrap(err, op, d.cfg.LocalInstancesPath)
}

type node struct {
	hostname            string
	cpus                int32
	memoryKiB           uint64
	library, hypervisor uint64
}

func readNode(lv *golibvirt.Libvirt) (n node, err error) {
	if n.hostname, err = lv.ConnectGetHostname(); err != nil {
		return n, err
	}
	if _, n.memoryKiB, n.cpus, _, _, _, _, _, err = lv.NodeGetInfo(); err != nil {
		return n, err
	}
	if n.library, err = lv.ConnectGetLibVersion(); err != nil {
		return n, err
	}
	n.hypervisor, err = lv.ConnectGetVersion()
	return n, err
}

// version reads libvirt's packed form: major*1,000,000 + minor*1,000 + release.
func version(v uint64) string {
	return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1_000%1_000, v%1_000)
}

// room gives the size and the free space, in GiB, of the file system where path
// is or, before it is made, its nearest folder that exists.
func room(path string) (total, free int, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(nearest(path), &st); err != nil {
		return 0, 0, err
	}
	gib := func(blocks uint64) int { return int(blocks * uint64(st.Bsize) >> 30) } //nolint:gosec // a block size is positive
	return gib(st.Blocks), gib(st.Bavail), nil
}
