package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

// stage is a lab with an agent on each host, an external NATS and a controller.
type stage struct {
	*lab.Lab
	nats   *lab.NATS
	agents []*lab.Agent
	c      *controller.Client
}

// agent is the agent of host n, counted from 1.
func (s *stage) agent(n int) *lab.Agent { return s.agents[n-1] }

// build makes the program under test, once a test run.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "compute-agent")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "github.com/compute-agent/compute-agent/cmd/compute-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// newStage makes a stage; options are lines of TOML for both agents.
func newStage(t *testing.T, options ...string) *stage {
	t.Helper()
	l := startLab(t)
	ctx := t.Context()
	bus, err := l.NATS(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{Lab: l, nats: bus}
	binary := build(t)
	for _, h := range l.Hosts() {
		a, err := l.Agent(ctx, h, binary, bus.URL, options...)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("the agent of %s is ready after %s", h.Name, a.Ready.Round(time.Millisecond))
		s.agents = append(s.agents, a)
	}
	t.Cleanup(func() {
		for _, a := range s.agents {
			if t.Failed() {
				log, err := os.ReadFile(a.Log())
				t.Logf("the log of %s (%v):\n%s", a.Host.Name, err, log)
			}
		}
	})
	transport, err := rpc.Dial(ctx, rpc.Config{URLs: []string{bus.URL}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = transport.Close() })
	s.c = controller.New(transport, controller.Options{})
	s.eventually(t, 15*time.Second, "both hosts to report their hypervisor", func() error {
		for _, h := range l.Hosts() {
			v, err := s.c.FindHost(ctx, h.Name)
			if err != nil {
				return err
			}
			if v.Hypervisor != "connected" || v.Resources.VCPUs == 0 {
				return fmt.Errorf("%s: hypervisor %s", h.Name, v.Hypervisor)
			}
		}
		return nil
	})
	return s
}

// eventually polls until try gives nil.
func (s *stage) eventually(t *testing.T, patience time.Duration, what string, try func() error) {
	t.Helper()
	give := time.NewTimer(patience)
	defer give.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-give.C:
			t.Fatalf("waited %s for %s: %v", patience, what, err)
		}
	}
}

// do waits for a task and tells how long it took.
func (s *stage) do(t *testing.T, task *controller.Task, err error) (api.TaskEvent, time.Duration) {
	t.Helper()
	begin := time.Now()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = task.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	ev, err := task.Wait(ctx)
	if err != nil {
		t.Fatalf("%s: %v (hint: %s)", task.Method(), err, fault.HintOf(err))
	}
	took := time.Since(begin)
	t.Logf("%-24s %s", task.Method(), took.Round(time.Millisecond))
	return ev, took
}

// guest is the spec of a guest that boots the lab's kernel with one port on the bridge.
func (s *stage) guest(n int) (instance.Spec, netip.Addr) {
	g, address := s.Guest(), s.GuestAddress(n)
	return instance.Spec{
		UUID: instance.NewUUID(), Name: fmt.Sprintf("guest%d", n), VCPUs: 1, MemoryMiB: 128,
		CPU:   instance.CPU{Mode: "custom", Model: "qemu64"},
		Boot:  instance.Boot{Kernel: g.Kernel, Initrd: g.Initrd, Cmdline: g.Cmdline(address)},
		Ports: []instance.Port{{ID: uuid.NewString(), MAC: lab.MAC(address.Addr()), Binding: instance.BindingBridge, Bridge: s.Host(1).Bridge}},
	}, address.Addr()
}

// only checks that the guest runs on host n and nowhere else, that its tap is there and
// nowhere else, and that record and view say the same.
func (s *stage) only(t *testing.T, spec instance.Spec, n int) {
	t.Helper()
	ctx := t.Context()
	tap := spec.Ports[0].Device()
	for i, h := range s.Hosts() {
		running, err := h.Virsh(ctx, "list", "--state-running", "--uuid")
		if err != nil {
			t.Fatal(err)
		}
		if here := strings.Contains(running, spec.UUID); here != (i+1 == n) {
			t.Errorf("the guest runs on %s: %v", h.Name, here)
		}
		links, err := h.Links(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if here := slices.Contains(links, tap); here != (i+1 == n) {
			t.Errorf("%s has the tap %s: %v", h.Name, tap, here)
		}
	}
	if n == 0 {
		return
	}
	want := s.Host(n).Name
	got, err := s.c.ShowInstance(ctx, spec.UUID)
	if err != nil || got.Host != want || got.VMState != instance.VMActive || got.PowerState != instance.PowerRunning {
		t.Errorf("show: on %s, %s, %s, %v; want %s, active, running", got.Host, got.VMState, got.PowerState, err, want)
	}
	s.eventually(t, 5*time.Second, "the view to show "+want, func() error {
		all, err := s.c.Instances(ctx)
		if err != nil || len(all) != 1 || all[0].Host != want {
			return fmt.Errorf("the view shows %v, %w", all, err)
		}
		return nil
	})
}

// moved is what one migration was measured at.
type moved struct {
	gap, took time.Duration
	m         instance.Migration
}

// migrate moves the guest to host n while it is pinged every 5 ms.
func (s *stage) migrate(t *testing.T, spec instance.Spec, address netip.Addr, n int) moved {
	t.Helper()
	pinger := &lab.Pinger{Target: address, Interval: lab.PingInterval}
	pctx, stop := context.WithCancel(t.Context())
	defer stop()
	reports := make(chan lab.PingReport, 1)
	go func() {
		r, err := pinger.Run(pctx)
		if err != nil {
			t.Errorf("ping: %v", err)
		}
		reports <- r
	}()
	begin := time.Now()
	task, err := s.c.LiveMigration(t.Context(), spec.UUID, api.MigrateArgs{Dest: s.Host(n).Name})
	_, took := s.do(t, task, err)
	end := time.Now()
	s.eventually(t, 5*time.Second, "a reply after the migration", func() error { return lab.WaitPing(t.Context(), address, time.Second) })
	stop()
	r := <-reports
	m, err := s.c.ShowMigration(t.Context(), task.Migration())
	if err != nil || m.Status != instance.MigrationCompleted || m.Result == nil {
		t.Fatalf("the migration ended as %s, %+v, %v", m.Status, m.Result, err)
	}
	gap := r.LongestGap(begin, end).Length()
	t.Logf("moved to %s: outage %s (QEMU's downtime %d ms), cast to succeeded %s, %d MiB, %d iterations", s.Host(n).Name,
		gap.Round(time.Millisecond), m.Result.DowntimeMS, took.Round(time.Millisecond), m.Result.Bytes>>20, m.Result.Iterations)
	return moved{gap, took, m}
}

// The main job on real hypervisors: build by RPC, answer ping, live-migrate by a cast
// while being pinged, soft reboot (the guest's ACPI power button), hard reboot, back
// again, abort a slowed migration, delete.
func TestMainJob(t *testing.T) {
	s := newStage(t)
	ctx := t.Context()
	spec, address := s.guest(10)
	task, err := s.c.BuildAndRunInstance(ctx, "h1", spec)
	s.do(t, task, err)
	if err := lab.WaitPing(ctx, address, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	s.only(t, spec, 1)

	s.migrate(t, spec, address, 2)
	s.only(t, spec, 2)

	for _, kind := range []string{api.RebootSoft, api.RebootHard} {
		task, err = s.c.RebootInstance(ctx, spec.UUID, kind)
		ev, _ := s.do(t, task, err)
		if !strings.Contains(string(ev.Result), `"`+kind+`"`) {
			t.Errorf("a %s reboot answers %s", kind, ev.Result)
		}
		if err := lab.WaitPing(ctx, address, 30*time.Second); err != nil {
			t.Fatalf("after a %s reboot: %v", kind, err)
		}
		s.only(t, spec, 2)
	}

	s.migrate(t, spec, address, 1)
	s.only(t, spec, 1)
	s.abort(t, spec)
	if err := lab.WaitPing(ctx, address, 5*time.Second); err != nil {
		t.Errorf("after the abort: %v", err)
	}
	s.only(t, spec, 1)
	if out, err := s.c.GetConsoleOutput(ctx, spec.UUID, 4096); err != nil || !strings.Contains(out, "tick") {
		t.Errorf("console: %q, %v; want ticks", out, err)
	}

	task, err = s.c.TerminateInstance(ctx, spec.UUID)
	s.do(t, task, err)
	s.only(t, spec, 0)
	for _, h := range s.Hosts() {
		if left, err := h.Virsh(ctx, "list", "--all", "--name"); err != nil || strings.TrimSpace(left) != "" {
			t.Errorf("%s has domains left: %q, %v", h.Name, left, err)
		}
	}
}

// abort ends a migration that 4 MiB/s make last half a minute.
func (s *stage) abort(t *testing.T, spec instance.Spec) {
	t.Helper()
	ctx := t.Context()
	slow, err := s.c.LiveMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h2", BandwidthMiB: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Close() }()
	s.eventually(t, 15*time.Second, "the slowed migration to move memory", func() error {
		m, err := s.c.FindMigration(ctx, slow.Migration())
		if err == nil && (m.Status != instance.MigrationRunning || m.Progress.Memory.Processed == 0) {
			err = fmt.Errorf("it is %s, %d bytes", m.Status, m.Progress.Memory.Processed)
		}
		return err
	})
	task, err := s.c.AbortMigration(ctx, slow.Migration())
	s.do(t, task, err)
	if _, err := slow.Wait(ctx); !errors.Is(err, fault.Cancelled) {
		t.Errorf("the aborted migration ended with %v, want cancelled", err)
	}
}
