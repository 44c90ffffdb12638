package vif

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Linux is the kernel's network of this process's namespace, by netlink; it
// needs CAP_NET_ADMIN and /dev/net/tun. A call looks at its context between
// its steps, each of which the kernel answers at once.
func Linux() Network { return kernel{} }

type kernel struct{}

// Make implements [Network].
func (kernel) Make(ctx context.Context, want Tap) (made bool, err error) {
	mac, err := net.ParseMAC(want.MAC)
	if err != nil {
		return false, fault.Newf(fault.InvalidArgument, "plug", want.Port, "%q is not a MAC address", want.MAC)
	}
	master, err := bridge(ctx, want)
	if err != nil {
		return false, err
	}
	link, err := find(ctx, want.Name)
	switch {
	case errors.Is(err, fault.NotFound):
		if link, err = create(ctx, want); err != nil {
			return false, err
		}
		made = true
	case err != nil:
		return false, err
	default:
		if reason := taken(want, describe(ctx, link)); reason != "" {
			return false, takenError("plug", want.Port, reason)
		}
	}
	if err = mend(ctx, link, want, mac, master); err != nil && made {
		// Nobody has seen it yet; one that can't be removed is the caller's to undo.
		made = netlink.LinkDel(link) != nil
	}
	return made, err
}

// create makes a persistent tap that belongs to nobody's process yet.
func create(ctx context.Context, want Tap) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = want.Name
	tap := &netlink.Tuntap{
		LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_TUN_EXCL | netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		for _, errno := range []syscall.Errno{syscall.EPERM, syscall.EINVAL} { // the library keeps only the text of some
			if !errors.Is(err, errno) && strings.HasSuffix(err.Error(), errno.Error()) {
				err = errors.Join(err, errno)
			}
		}
		return nil, kernelError(err, "make the tap", want.Name)
	}
	return find(ctx, want.Name)
}

// mend brings a tap to what it shall be, step by step; what is so already is left alone. The
// label comes first, so that a half-made tap is known as ours, and the link goes up last and silent.
func mend(ctx context.Context, link netlink.Link, want Tap, mac net.HardwareAddr, master netlink.Link) error {
	have := describe(ctx, link)
	steps := []struct {
		name string
		due  bool
		do   func() error
	}{
		{"label it", have.Port != want.Port || have.Instance != want.Instance, func() error {
			return netlink.LinkSetAlias(link, label(want.Port, want.Instance))
		}},
		{"set its MAC address", have.MAC != want.MAC, func() error { return netlink.LinkSetHardwareAddr(link, mac) }},
		{"set its MTU", want.MTU != 0 && have.MTU != want.MTU, func() error { return netlink.LinkSetMTU(link, want.MTU) }},
		{"silence it", !have.Up, func() error { return silence(ctx, link) }},
		{"put it into bridge " + want.Bridge, master != nil && have.Bridge != want.Bridge, func() error {
			return netlink.LinkSetMaster(link, master)
		}},
		{"set its link up", !have.Up, func() error { return netlink.LinkSetUp(link) }},
	}
	for _, s := range steps {
		if !s.due {
			continue
		}
		if ctx.Err() != nil {
			return fault.Wrap(context.Cause(ctx), s.name, want.Name)
		}
		if err := s.do(); err != nil {
			return kernelError(err, s.name, want.Name)
		}
	}
	return nil
}

// addrGenNone is IN6_ADDR_GEN_MODE_NONE: no link-local address, and so no router solicitation either.
const addrGenNone = 1

// silence keeps the host itself off the guest's network: no IPv6 autoconfiguration on the tap. It is
// best effort, as a host may run without IPv6 or with /proc/sys read-only; either of the two ways suffices.
func silence(ctx context.Context, link netlink.Link) error {
	byNetlink := netlink.LinkSetIP6AddrGenMode(link, addrGenNone)
	conf := filepath.Join("/proc/sys/net/ipv6/conf", link.Attrs().Name)
	if _, err := os.Stat(conf); errors.Is(err, os.ErrNotExist) {
		return nil // no IPv6 here
	}
	bySysctl := os.WriteFile(filepath.Join(conf, "disable_ipv6"), []byte("1"), 0) // exists already
	if byNetlink != nil && bySysctl != nil {
		logkit.From(ctx).Warn("IPv6 autoconfiguration of a tap can't be switched off: the host may speak on the guest's network",
			logkit.Err(errors.Join(byNetlink, bySysctl)))
	}
	return nil
}

// bridge finds the bridge of a wish; nil without one.
func bridge(ctx context.Context, want Tap) (netlink.Link, error) {
	if want.Bridge == "" {
		return nil, nil //nolint:nilnil // no bridge was wished for
	}
	link, err := find(ctx, want.Bridge)
	if err == nil && link.Type() == "bridge" {
		return link, nil
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return nil, err
	}
	names, err := kernel{}.Bridges(ctx)
	if err != nil {
		return nil, err
	}
	return nil, noBridge("plug", want.Port, want.Bridge, names)
}

// Remove implements [Network].
func (kernel) Remove(ctx context.Context, name, port string) error {
	link, err := find(ctx, name)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if reason := taken(Tap{Name: name, Port: port}, describe(ctx, link)); reason != "" {
		return takenError("unplug", port, reason)
	}
	err = kernelError(netlink.LinkDel(link), "remove the tap", name)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// Look implements [Network].
func (kernel) Look(ctx context.Context, name string) (Tap, error) {
	link, err := find(ctx, name)
	if err != nil {
		return Tap{}, err
	}
	return describe(ctx, link), nil
}

// Taps implements [Network].
func (kernel) Taps(ctx context.Context) ([]Tap, error) {
	links, err := list(ctx)
	if err != nil {
		return nil, err
	}
	var out []Tap
	for _, l := range links {
		if port, _ := readLabel(l.Attrs().Alias); port != "" {
			if t := describe(ctx, l); t.Kind == kindTap {
				out = append(out, t)
			}
		}
	}
	slices.SortFunc(out, func(a, b Tap) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Bridges implements [Network].
func (kernel) Bridges(ctx context.Context) ([]string, error) {
	links, err := list(ctx)
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, l := range links {
		if l.Type() == "bridge" {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func find(ctx context.Context, name string) (netlink.Link, error) {
	if ctx.Err() != nil {
		return nil, fault.Wrap(context.Cause(ctx), "look", name)
	}
	link, err := netlink.LinkByName(name)
	return link, kernelError(err, "look", name)
}

// list gives all links; a dump that others' changes interrupted is asked for again.
func list(ctx context.Context) ([]netlink.Link, error) {
	for try := 0; ; try++ {
		if ctx.Err() != nil {
			return nil, fault.Wrap(context.Cause(ctx), "list devices", "")
		}
		links, err := netlink.LinkList()
		if err == nil || !errors.Is(err, netlink.ErrDumpInterrupted) || try == maxDumps {
			return links, kernelError(err, "list devices", "")
		}
	}
}

const maxDumps = 10

// describe says what a link is. A bridge that can't be named any more is none.
func describe(ctx context.Context, link netlink.Link) Tap {
	a := link.Attrs()
	t := Tap{
		Name: a.Name, MAC: a.HardwareAddr.String(), MTU: a.MTU, Kind: link.Type(),
		Up: a.Flags&net.FlagUp != 0, Carrier: a.RawFlags&syscall.IFF_RUNNING != 0,
	}
	t.Port, t.Instance = readLabel(a.Alias)
	if tap, is := link.(*netlink.Tuntap); is && tap.Mode == netlink.TUNTAP_MODE_TAP {
		t.Kind = kindTap
	}
	if a.MasterIndex != 0 && ctx.Err() == nil {
		if master, err := netlink.LinkByIndex(a.MasterIndex); err == nil {
			t.Bridge = master.Attrs().Name
		}
	}
	return t
}

// kernelError gives an error of the kernel its kind. Of nil: nil.
func kernelError(err error, op, name string) error {
	var gone netlink.LinkNotFoundError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &gone), errors.Is(err, syscall.ENODEV):
		return fault.New(fault.NotFound, op, name, "there is no such device")
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return fault.New(fault.Unauthorized, op, name, "the kernel does not allow it").Because(err).
			WithHint("the agent needs the capability CAP_NET_ADMIN and read-write access to /dev/net/tun; its systemd unit gives both")
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ERANGE):
		return fault.New(fault.InvalidArgument, op, name, "the kernel refuses the value").Because(err)
	default:
		return fault.WrapAs(fault.Unavailable, err, op, name)
	}
}
