package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
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
	l, err := lab.Start(t.Context(), lab.Config{LockWait: 10 * time.Minute})
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
	l, err := lab.Start(ctx, lab.Config{LockWait: 10 * time.Minute})
	if err == nil {
		_, err = l.NATS(ctx, "")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}
