package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/test/lab"
)

const tap = "tapca000001"

// wantLab skips or fails the test where no lab can be had. COMPUTE_AGENT_LAB decides: unset or 0 skips, 1 skips where the
// lab can't run, required fails there.
func wantLab(t *testing.T) {
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
}

// startLab returns a lab of two hosts that is closed at the end of the test.
func startLab(t *testing.T) *lab.Lab {
	t.Helper()
	wantLab(t)
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

// waitFor waits until something is so.
func waitFor(t *testing.T, limit time.Duration, what string, so func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-deadline.C:
			t.Fatalf("not so after %s: %s", limit, what)
		case <-tick.C:
		}
	}
}

// waitState waits until virsh domstate says what is wanted.
func waitState(t *testing.T, h *lab.Host, domain, want string, limit time.Duration) {
	t.Helper()
	waitFor(t, limit, domain+" is "+want, func() bool { return virsh(t, h, "domstate", domain) == want })
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

func TestDirtyGuestIsAborted(t *testing.T) {
	l := startLab(t)
	h1, h2 := l.Host(1), l.Host(2)
	guest := lab.Domain{Name: "writer", Tap: tap, Address: l.GuestAddress(13), Options: []string{"ca.dirty=16"}}
	startGuest(t, l, h1, guest)

	// 16 MiB are written each second and 4 moved: this never converges.
	move := h1.Command(t.Context(), "virsh", "-q", "-c", "qemu:///system", "migrate", "--live", "--p2p",
		"--bandwidth", "4", guest.Name, h2.URI())
	var complaint strings.Builder
	move.Stderr = &complaint
	if err := move.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 30*time.Second, "the job moves memory", func() bool {
		return strings.Contains(virsh(t, h1, "domjobinfo", guest.Name), "Memory processed")
	})
	virsh(t, h1, "domjobabort", guest.Name)
	if err := move.Wait(); err == nil || !strings.Contains(complaint.String(), "cancel") {
		t.Errorf("virsh migrate ended with %v and %q, want it cancelled", err, complaint.String())
	}
	if err := lab.WaitPing(t.Context(), guest.Address.Addr(), 5*time.Second); err != nil {
		t.Error(err)
	}
	if got := virsh(t, h1, "domstate", guest.Name); got != "running" {
		t.Errorf("on h1 the guest is %q, want running", got)
	}
	if got := virsh(t, h2, "list", "--all", "--name"); got != "" {
		t.Errorf("h2 has %q, want nothing", got)
	}
}

// crashEnv makes the test binary play the process that dies with a lab running.
const crashEnv = "COMPUTE_AGENT_LAB_CRASH"

func TestMain(m *testing.M) {
	if os.Getenv(crashEnv) != "" {
		crash()
	}
	os.Exit(m.Run())
}

// crash starts a lab with NATS in it and dies as by SIGKILL.
func crash() {
	ctx := context.Background()
	l, err := lab.Start(ctx, lab.Config{LockWait: 5 * time.Minute})
	if err == nil {
		_, err = l.NATS(ctx, "")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

func TestStartSweepsWhatACrashLeft(t *testing.T) {
	wantLab(t)
	crashed := exec.CommandContext(t.Context(), os.Args[0])
	crashed.Env = append(os.Environ(), crashEnv+"=1")
	var complaint strings.Builder
	crashed.Stderr = &complaint
	if err := crashed.Run(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the crashing process ended with %v: %s", err, complaint.String())
	}
	left, err := lab.Remains(t.Context())
	if err != nil || len(left) < 5 {
		t.Fatalf("after a crash the machine has %v (%v), want a whole lab", left, err)
	}
	l := startLab(t)
	if err := l.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err = lab.Remains(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("after Close the machine still has %v (%v)", left, err)
	}
}
