package lab_test

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/test/lab"
)

const tap = "tapca000001"

// startLab returns a lab that is closed, and proven gone, at the end of the test. COMPUTE_AGENT_LAB decides: unset or 0
// skips, 1 skips where the lab can't run, required fails there.
func startLab(t *testing.T) *lab.Lab {
	t.Helper()
	wish := os.Getenv("COMPUTE_AGENT_LAB")
	if wish != "1" && wish != "required" {
		t.Skip("LAB SKIPPED: real hypervisor hosts were not asked for; COMPUTE_AGENT_LAB=1 (or required) runs this")
	}
	if err := lab.Available(); err != nil {
		if wish == "required" {
			t.Fatalf("the lab is required: %v", err)
		}
		t.Skipf("LAB SKIPPED: %v", err)
	}
	began := time.Now()
	l, err := lab.Start(t.Context(), lab.Config{LockWait: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("two hosts up in %s", time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		began := time.Now()
		if err := l.Close(ctx); err != nil {
			t.Error(err)
		}
		t.Logf("closed in %s", time.Since(began).Round(time.Millisecond))
	})
	return l
}

// virsh runs a virsh command that must work.
func virsh(t *testing.T, h *lab.Host, args ...string) string {
	t.Helper()
	out, err := h.Virsh(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// startGuest defines and starts a guest on a host, with its tap on every host, and waits until it answers.
func startGuest(t *testing.T, l *lab.Lab, h *lab.Host, d lab.Domain) {
	t.Helper()
	for _, host := range l.Hosts() {
		if err := host.AddTap(t.Context(), d.Tap); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := l.Dir("xml")
	if err != nil {
		t.Fatal(err)
	}
	file := dir + "/" + d.Name + ".xml"
	if err := os.WriteFile(file, []byte(d.XML(l.Guest())), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	virsh(t, h, "define", file)
	virsh(t, h, "start", d.Name)
	if err := lab.WaitPing(t.Context(), d.Address.Addr(), time.Minute); err != nil {
		console, _ := os.ReadFile(h.Outside(d.ConsolePath()))
		t.Fatalf("%v; console:\n%s", err, console)
	}
	t.Logf("guest answers %s after its start", time.Since(began).Round(time.Millisecond))
}

// whilePinged pings an address while work is done, and a moment before and after it.
func whilePinged(t *testing.T, address netip.Addr, work func()) lab.PingReport {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type result struct {
		report lab.PingReport
		err    error
	}
	done := make(chan result, 1)
	go func() {
		p := lab.Pinger{Target: address}
		report, err := p.Run(ctx)
		done <- result{report, err}
	}()
	work()
	if err := lab.WaitPing(t.Context(), address, 10*time.Second); err != nil {
		t.Error(err)
	}
	cancel()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.report
}

// waitState waits until virsh domstate says what is wanted.
func waitState(t *testing.T, h *lab.Host, domain, want string, limit time.Duration) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		state := virsh(t, h, "domstate", domain)
		if state == want {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("%s is %q after %s, want %q", domain, state, limit, want)
		case <-tick.C:
		}
	}
}

func TestGuestMovesBetweenHosts(t *testing.T) {
	l := startLab(t)
	h1, h2 := l.Host(1), l.Host(2)
	guest := lab.Domain{Name: "mover", Tap: tap, Address: l.GuestAddress(10)}
	startGuest(t, l, h1, guest)

	var took time.Duration
	report := whilePinged(t, guest.Address.Addr(), func() {
		began := time.Now()
		virsh(t, h1, "migrate", "--live", "--p2p", "--persistent", "--undefinesource", guest.Name, h2.URI())
		took = time.Since(began)
	})
	gap := report.LongestGap(time.Time{}, time.Time{})
	t.Logf("virsh migrate took %s; longest gap between replies %s (%d sent, %d replies)",
		took.Round(time.Millisecond), gap.Length().Round(time.Millisecond), report.Sent, len(report.Replies))
	if gap.Length() > 5*time.Second {
		t.Errorf("the guest was silent for %s, so it was not moved alive", gap.Length())
	}
	if got := virsh(t, h2, "list", "--name"); got != guest.Name {
		t.Errorf("h2 runs %q, want %q", got, guest.Name)
	}
	if got := virsh(t, h1, "list", "--all", "--name"); got != "" {
		t.Errorf("h1 still has %q, want nothing", got)
	}

	began := time.Now()
	virsh(t, h2, "shutdown", "--mode", "acpi", guest.Name)
	waitState(t, h2, guest.Name, "shut off", 30*time.Second)
	t.Logf("the power button turned the guest off in %s", time.Since(began).Round(time.Millisecond))
	if reason := virsh(t, h2, "domstate", "--reason", guest.Name); !strings.Contains(reason, "shutdown") {
		t.Errorf("state is %q, want the guest's own shutdown as the reason", reason)
	}
}

func TestHostKeepsGuestsWithoutItsLibvirt(t *testing.T) {
	l := startLab(t)
	h1 := l.Host(1)
	guest := lab.Domain{Name: "stayer", Tap: tap, Address: l.GuestAddress(11), Options: []string{"ca.deaf=1", "ca.dirty=4"}}
	startGuest(t, l, h1, guest)

	if err := h1.StopLibvirt(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if _, err := h1.Virsh(t.Context(), "list"); err == nil {
		t.Error("virsh works although libvirtd was killed")
	}
	if err := lab.WaitPing(t.Context(), guest.Address.Addr(), 5*time.Second); err != nil {
		t.Error(err)
	}
	if err := h1.StartLibvirt(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if got := virsh(t, h1, "domstate", guest.Name); got != "running" {
		t.Errorf("after libvirtd came back the guest is %q, want running", got)
	}
	virsh(t, h1, "destroy", guest.Name)
	waitState(t, h1, guest.Name, "shut off", 10*time.Second)
	if err := h1.DeleteTap(t.Context(), guest.Tap); err != nil {
		t.Error(err)
	}
	links, err := h1.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(links, guest.Tap) {
		t.Errorf("links of h1 are %v, want no %s", links, guest.Tap)
	}
}

func TestHostsReachNATS(t *testing.T) {
	l := startLab(t)
	server, err := l.NATS(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(server.URL, "nats://")
	host, port, _ := strings.Cut(address, ":")
	greet := "busybox nc -w 2 " + host + " " + port + " </dev/null"
	for _, h := range l.Hosts() {
		out, err := h.Command(t.Context(), "sh", "-c", greet).CombinedOutput()
		if err != nil || !strings.Contains(string(out), `"jetstream":true`) {
			t.Errorf("%s hears %q from NATS (%v), want a greeting with JetStream", h.Name, out, err)
		}
	}
	if err := l.Host(1).Isolate(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if out, err := l.Host(1).Command(t.Context(), "sh", "-c", greet).CombinedOutput(); err == nil && len(out) > 0 {
		t.Errorf("an isolated host still hears %q from NATS", out)
	}
	server.Stop()
	if err := server.Start(t.Context()); err != nil {
		t.Errorf("NATS does not start again: %v", err)
	}
}

func TestCommandIsTheProgram(t *testing.T) {
	l := startLab(t)
	for _, h := range l.Hosts() {
		out, err := h.Command(t.Context(), "uname", "-n").Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != h.Name {
			t.Errorf("uname -n inside %s = %q, %v", h.Name, got, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := l.Host(1).Command(ctx, "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = cmd.Wait()
	if err := cmd.Process.Signal(os.Interrupt); err == nil {
		t.Error("the program outlived its context")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	l := startLab(t)
	startGuest(t, l, l.Host(1), lab.Domain{Name: "left", Tap: tap, Address: l.GuestAddress(12)})
	if _, err := l.NATS(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Start(t.Context(), lab.Config{}); err == nil || !strings.Contains(err.Error(), "another lab") {
		t.Errorf("a second lab beside this one: error %v, want one that names the other lab", err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	left, err := lab.Remains(t.Context())
	if err != nil || len(left) > 0 {
		t.Errorf("after Close the machine still has %v (%v)", left, err)
	}
}
