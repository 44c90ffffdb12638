package vif_test

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/vif"
)

// inNamespace marks the copy of the test that runs in a network namespace of its own.
const inNamespace = "VIF_TEST_IN_NAMESPACE"

// inFreshNamespace sees to it that a test runs in a network namespace of its own,
// so that no device of this machine is touched: the test binary starts itself again
// there, for this one test, where the answer is true. Without root it says so and skips.
func inFreshNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) == "1" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: the kernel's network needs root; run the tests as root to test pkg/vif for real")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("SKIPPED, NOT TESTED: this machine has no /dev/net/tun: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), inNamespace+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in its namespace: %v\n%s", err, out)
	}
	if testing.Verbose() {
		t.Logf("in its namespace:\n%s", out)
	}
	return false
}

// addBridge makes a bridge that is up.
func addBridge(t *testing.T, name string) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(br); err != nil {
		t.Fatal(err)
	}
	return br
}

func addVeth(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "p" + name}); err != nil {
		t.Fatal(err)
	}
}

// hold opens a tap as QEMU does; the carrier is there until the end of the test.
func hold(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	tap := &netlink.Tuntap{
		LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, NonPersist: true, Queues: 1,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
	}
	if err := netlink.LinkAdd(tap); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range tap.Fds {
			_ = f.Close() // the namespace goes anyway
		}
	})
}

func TestKernelPlugMakesTheFinalDevice(t *testing.T) {
	if !inFreshNamespace(t) {
		return
	}
	bridge := addBridge(t, "br-int0")
	m := vif.New(vif.Config{}, vif.Linux())
	ports := []instance.Port{one, two}
	for range 2 {
		if err := m.Plug(quiet(t), guest, ports); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Ready(quiet(t), guest, ports); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("tapdf8e1f1a-9f")
	if err != nil {
		t.Fatal(err)
	}
	a := link.Attrs()
	if link.Type() != "tuntap" && link.Type() != "tun" || a.HardwareAddr.String() != "fe:54:00:00:00:01" || a.MTU != 1450 ||
		a.MasterIndex != bridge.Attrs().Index || a.Flags&net.FlagUp == 0 || !strings.Contains(a.Alias, one.ID) {
		t.Errorf("the device is %s %+v", link.Type(), a)
	}
	start := time.Now()
	if err := m.Activate(quiet(t), guest, ports); err != nil {
		t.Fatal(err)
	}
	t.Logf("Activate of two good ports took %s", time.Since(start))

	// A guest holds it: there is a carrier, and still no IPv6 address of the host's.
	hold(t, one.Device())
	if got, err := vif.Linux().Look(quiet(t), one.Device()); err != nil || !got.Carrier {
		t.Errorf("Look() = %+v, %v, want a carrier", got, err)
	}
	for _, p := range ports {
		link, err := netlink.LinkByName(p.Device())
		if err != nil {
			t.Fatal(err)
		}
		if addrs, err := netlink.AddrList(link, netlink.FAMILY_V6); err != nil || len(addrs) != 0 {
			t.Errorf("%s has IPv6 addresses %v (%v)", p.Device(), addrs, err)
		}
		quietly := filepath.Join("/proc/sys/net/ipv6/conf", p.Device(), "disable_ipv6")
		if b, err := os.ReadFile(quietly); !errors.Is(err, os.ErrNotExist) && strings.TrimSpace(string(b)) != "1" {
			t.Errorf("%s = %q (%v), want 1", quietly, b, err)
		}
	}
	// Held or not, it goes.
	if err := m.Unplug(quiet(t), guest, ports); err != nil {
		t.Fatal(err)
	}
	if got := names(t, vif.Linux()); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestKernelMendsWhatDiffers(t *testing.T) {
	if !inFreshNamespace(t) {
		return
	}
	addBridge(t, "br-int0")
	addBridge(t, "br-ext")
	n := vif.Linux()
	m := vif.New(vif.Config{}, n)
	ports := []instance.Port{one}
	if err := m.Plug(quiet(t), guest, ports); err != nil {
		t.Fatal(err)
	}
	want, err := n.Look(quiet(t), one.Device())
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(one.Device())
	if err != nil {
		t.Fatal(err)
	}
	ext, err := netlink.LinkByName("br-ext")
	if err != nil {
		t.Fatal(err)
	}
	harm := map[string]func() error{
		"down":           func() error { return netlink.LinkSetDown(link) },
		"no bridge":      func() error { return netlink.LinkSetNoMaster(link) },
		"another bridge": func() error { return netlink.LinkSetMaster(link, ext) },
		"MTU":            func() error { return netlink.LinkSetMTU(link, 1300) },
		"MAC":            func() error { return netlink.LinkSetHardwareAddr(link, net.HardwareAddr{2, 0, 0, 0, 0, 9}) },
		"label":          func() error { return netlink.LinkSetAlias(link, "somebody was here") },
	}
	for name, do := range harm {
		for how, mend := range map[string]func() error{
			"plug":     func() error { return m.Plug(quiet(t), guest, ports) },
			"activate": func() error { return m.Activate(quiet(t), guest, ports) },
		} {
			if err := do(); err != nil {
				t.Fatal(err)
			}
			if err := mend(); err != nil {
				t.Errorf("%s after %s: %v", how, name, err)
			}
			if got, err := n.Look(quiet(t), one.Device()); err != nil || got != want {
				t.Errorf("%s after %s left %+v (%v), want %+v", how, name, got, err, want)
			}
		}
	}
	if now, err := netlink.LinkByName(one.Device()); err != nil || now.Attrs().Index != link.Attrs().Index {
		t.Errorf("it is another device now (%v)", err)
	}
}

func TestKernelRefusesWhatIsNotOurs(t *testing.T) {
	if !inFreshNamespace(t) {
		return
	}
	addBridge(t, "br-int0")
	addVeth(t, one.Device())
	addVeth(t, "br-veth")
	m := vif.New(vif.Config{MaxRetry: -1}, vif.Linux())
	expect := func(p instance.Port, kind fault.Kind, want, hint string) {
		t.Helper()
		err := m.Plug(quiet(t), guest, []instance.Port{p})
		if !errors.Is(err, kind) || !strings.Contains(err.Error(), want) || !strings.Contains(fault.HintOf(err), hint) {
			t.Errorf("Plug() = %v (hint %q), want %s naming %q, hint %q", err, fault.HintOf(err), kind, want, hint)
		}
	}
	expect(one, fault.Conflict, "is a veth", "ip -d link")
	lost, veth, big := three, three, two
	lost.Bridge, veth.Bridge, big.MTU = "br-itn0", "br-veth", 65535
	expect(lost, fault.PreconditionFailed, "no bridge br-itn0", "br-int0")
	expect(veth, fault.PreconditionFailed, "no bridge br-veth", "br-int0")
	expect(big, fault.InvalidArgument, "set its MTU", "")
	if got := names(t, vif.Linux()); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	// A tap that somebody made and holds is not taken.
	hold(t, two.Device())
	link, err := netlink.LinkByName(two.Device())
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	expect(two, fault.Conflict, "not ours and in use", "")
	big.ID, big.MTU = three.ID, 65522
	reasons, err := m.Check(quiet(t), guest, []instance.Port{one, two, lost, veth, big, three})
	if err != nil || len(reasons) != 5 {
		t.Errorf("Check() = %q, %v, want five reasons", reasons, err)
	}
	for i, want := range []string{"is a veth", "not ours and in use", "no bridge br-itn0", "br-veth is a veth", "mtu 65522"} {
		if i < len(reasons) && !strings.Contains(reasons[i], want) {
			t.Errorf("reason %d = %q, want it to name %q", i, reasons[i], want)
		}
	}
	most := three // what Check lets pass, the kernel takes
	most.MTU = 65521
	if err := m.Plug(quiet(t), guest, []instance.Port{most}); err != nil {
		t.Errorf("Plug() with the highest MTU = %v", err)
	}
	if err := m.Unplug(quiet(t), guest, []instance.Port{one, two, three}); err != nil {
		t.Errorf("Unplug() = %v", err)
	}
	for _, name := range []string{one.Device(), two.Device()} {
		if _, err := netlink.LinkByName(name); err != nil {
			t.Errorf("somebody else's %s: %v", name, err)
		}
	}
}

// A tap made beforehand that nobody holds is taken over; a later agent knows it.
func TestKernelTakesOverAndAdopts(t *testing.T) {
	if !inFreshNamespace(t) {
		return
	}
	addBridge(t, "br-int0")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = one.Device()
	if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP}); err != nil {
		t.Fatal(err)
	}
	if err := vif.New(vif.Config{}, vif.Linux()).Plug(quiet(t), guest, []instance.Port{one}); err != nil {
		t.Fatal(err)
	}
	later := vif.New(vif.Config{}, vif.Linux())
	if err := later.Adopt(quiet(t)); err != nil {
		t.Fatal(err)
	}
	if got := states(later, one, two); !slices.Equal(got, []instance.PortState{"plugged", "unplugged"}) {
		t.Errorf("states = %v", got)
	}
}

// Without the capability the error says what is missing, and nothing is tried again.
func TestKernelWithoutCapability(t *testing.T) {
	if !inFreshNamespace(t) {
		return
	}
	addBridge(t, "br-int0")
	// The thread gives up root for itself alone; locked, it ends with this test.
	runtime.LockOSThread()
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
		t.Fatal(errno)
	}
	err := vif.New(vif.Config{}, vif.Linux()).Plug(quiet(t), guest, []instance.Port{one})
	if !errors.Is(err, fault.Unauthorized) || !strings.Contains(fault.HintOf(err), "CAP_NET_ADMIN") || !strings.Contains(err.Error(), "try 1 ") {
		t.Errorf("Plug() = %v, want unauthorized at once, with the capability in the hint %q", err, fault.HintOf(err))
	}
}

func TestKernelSequences(t *testing.T) {
	if !inFreshNamespace(t) {
		return
	}
	addBridge(t, "br-int0")
	n := vif.Linux()
	m := vif.New(vif.Config{}, n)
	all := []instance.Port{one, two, three}
	random := rand.New(rand.NewPCG(1, 2))
	want := map[string]bool{}
	for step := range 40 {
		p := all[random.IntN(len(all))]
		do, plug := m.Unplug, random.IntN(2) == 0
		if plug {
			do = m.Plug
		}
		if err := do(quiet(t), guest, []instance.Port{p}); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		want[p.Device()] = plug
		var expect []string
		for _, p := range all {
			if want[p.Device()] {
				expect = append(expect, p.Device())
			}
		}
		if got := names(t, n); !slices.Equal(got, expect) {
			t.Fatalf("step %d: devices = %v, want %v", step, got, expect)
		}
	}
	if err := m.Unplug(quiet(t), guest, all); err != nil {
		t.Fatal(err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "tap") {
			t.Errorf("left: %s", l.Attrs().Name)
		}
	}
}
