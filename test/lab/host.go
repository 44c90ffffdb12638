package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Host is one hypervisor host of a lab.
type Host struct {
	Name    string     // the host name inside: h1, h2, …
	Address netip.Addr // on the management network; libvirtd listens there (TCP, no authentication)
	Bridge  string     // the integration bridge, joined to the data network: br-int0

	number  int
	netns   string
	anchor  *daemon   // keeps the host's mount and UTS namespaces alive
	keepers []*daemon // one for each start of libvirtd; adopts its guests
	libvirt int       // process id of libvirtd, 0 while stopped
}

// newHost returns host n, not yet started.
func newHost(n int) *Host {
	name := fmt.Sprintf("h%d", n)
	return &Host{
		Name:    name,
		Address: netip.AddrFrom4([4]byte{10, 77, 0, byte(10 + n)}),
		Bridge:  bridge,
		number:  n,
		netns:   prefix + name,
	}
}

// URI is what another host's libvirt dials for a peer-to-peer migration to this one.
func (h *Host) URI() string { return "qemu+tcp://" + h.Address.String() + "/system" }

// Socket is the path of libvirtd's unix socket as seen from outside the host. Inside it is /run/libvirt/libvirt-sock.
func (h *Host) Socket() string { return h.Outside("/run/libvirt/libvirt-sock") }

// Outside returns where a file of the host stands on the machine's own file system. It holds for what the host has of its
// own: /run and the libvirt folders of /etc, /var/lib, /var/log and /var/cache. All else is shared.
func (h *Host) Outside(path string) string { return filepath.Join(stateDir, h.Name, path) }

// Command prepares a program to run inside the host: in its network, with its /run, its libvirt and its host name. The
// process of the returned command is the program itself, so signals reach it; when ctx ends it is killed. name must be
// absolute or in PATH; the program starts in the root folder whatever Dir says.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(h.anchor.pid()), "--net", "--mount", "--uts", "--", name}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.WaitDelay = stopPatience
	return cmd
}

// Virsh runs virsh against the host's libvirtd and returns what it printed, trimmed.
func (h *Host) Virsh(ctx context.Context, args ...string) (string, error) {
	cmd := h.Command(ctx, "virsh", append([]string{"-q", "-c", "qemu:///system"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := run(cmd, "")
	return strings.TrimSpace(out), err
}

// AddTap makes a persistent tap in the integration bridge and brings it up, as an agent would before a guest arrives.
func (h *Host) AddTap(ctx context.Context, name string) error {
	return ip(ctx, h.netns, fmt.Sprintf("tuntap add dev %[1]s mode tap\nlink set %[1]s master %[2]s up\n", name, bridge))
}

// DeleteTap removes a tap.
func (h *Host) DeleteTap(ctx context.Context, name string) error {
	return ip(ctx, h.netns, "link del "+name)
}

// Links returns the names of all network links of the host.
func (h *Host) Links(ctx context.Context) ([]string, error) {
	out, err := run(h.Command(ctx, "ip", "-br", "link", "show"), "")
	if err != nil {
		return nil, err
	}
	var links []string
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(strings.Fields(line)[0], "@")
		links = append(links, name)
	}
	return links, nil
}

// CutGuests cuts the host's guests off the data network, or joins them again. The host keeps its own.
func (h *Host) CutGuests(ctx context.Context, cut bool) error {
	state := "up"
	if cut {
		state = "down"
	}
	return ip(ctx, switches, fmt.Sprintf("link set %s-data %s\n", h.Name, state))
}

// Isolate cuts the host off the management network (peers, NATS), or joins it again. Its guests keep their network.
// A host that is joined again asks anew for the addresses that it asked for in vain: the kernel gives a question up three
// seconds after it was first asked, and with it whoever has begun to connect since.
func (h *Host) Isolate(ctx context.Context, cut bool) error {
	if cut {
		return ip(ctx, switches, fmt.Sprintf("link set %s-mgmt down\n", h.Name))
	}
	if err := ip(ctx, switches, fmt.Sprintf("link set %s-mgmt up\n", h.Name)); err != nil {
		return err
	}
	return ip(ctx, h.netns, "neighbour flush dev "+mgmtLink+"\n")
}
