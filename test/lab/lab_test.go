package lab_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/test/lab"
)

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
	// This question waits until libvirtd is connected with QEMU again. A destroy before that ends the guest too, but sometimes
	// answers that the domain isn't running.
	if got := virsh(t, h1, "qemu-monitor-command", guest.Name, "--hmp", "info status"); !strings.Contains(got, "running") {
		t.Errorf("QEMU of the guest says %q, want running", got)
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
	if err := l.Host(1).Isolate(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if out, err := l.Host(1).Command(t.Context(), "sh", "-c", greet).CombinedOutput(); err != nil {
		t.Errorf("a host that is joined again hears %q from NATS (%v)", out, err)
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
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", h.Socket())
		if err != nil {
			t.Fatalf("libvirtd of %s can't be dialled from outside: %v", h.Name, err)
		}
		_ = conn.Close()
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
	guest := lab.Domain{Name: "left", Tap: tap, Address: l.GuestAddress(12)}
	if err := lab.WaitPing(t.Context(), guest.Address.Addr(), 100*time.Millisecond); err == nil {
		t.Error("a guest that does not exist answers ping")
	}
	startGuest(t, l, l.Host(1), guest)
	if _, err := l.NATS(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Start(t.Context(), lab.Config{}); err == nil || !strings.Contains(err.Error(), "another lab") {
		t.Errorf("a second lab beside this one: error %v, want one that names the other lab", err)
	}
	before, err := lab.Remains(t.Context())
	if err != nil || len(before) < 10 {
		t.Errorf("a running lab has %v (%v), want its namespaces, processes, links and files", before, err)
	}
	if err := l.Close(t.Context()); err != nil { // it looks for itself, while no other lab can be there
		t.Error(err)
	}
	for _, thing := range before {
		if pid, ok := strings.CutPrefix(thing, "process "); ok {
			pid, _, _ = strings.Cut(pid, " ")
			if _, err := os.Stat("/proc/" + pid); err == nil {
				t.Errorf("after Close there is still %s", thing)
			}
		}
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
	// The error is "canceled by client", or that of the destination, whose QEMU finds its stream cut short: whichever libvirt
	// hears first. So the states below are the proof.
	if err := move.Wait(); err == nil {
		t.Error("virsh migrate succeeded, want it aborted")
	}
	t.Logf("virsh migrate said: %s", strings.TrimSpace(complaint.String()))
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
}
