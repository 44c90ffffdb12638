package fake_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

func TestFaultsAtAnyCall(t *testing.T) {
	id, boom := "1b4e28ba-2fa1-11d2-883f-0016d3cca427", errors.New("boom")
	calls := map[string]func(context.Context, *fake.Driver) error{
		"List":     func(ctx context.Context, d *fake.Driver) error { _, err := d.List(ctx); return err },
		"Lookup":   func(ctx context.Context, d *fake.Driver) error { _, err := d.Lookup(ctx, id); return err },
		"Check":    func(ctx context.Context, d *fake.Driver) error { _, err := d.Check(ctx, virt.Definition{}); return err },
		"Define":   func(ctx context.Context, d *fake.Driver) error { return d.Define(ctx, virt.Definition{}) },
		"Undefine": func(ctx context.Context, d *fake.Driver) error { return d.Undefine(ctx, id, true) },
		"Console":  func(ctx context.Context, d *fake.Driver) error { _, err := d.Console(ctx, id, 0); return err },
		"Stats":    func(ctx context.Context, d *fake.Driver) error { _, err := d.Stats(ctx, id); return err },
		"Start":    func(ctx context.Context, d *fake.Driver) error { return d.Start(ctx, id) },
		"Shutdown": func(ctx context.Context, d *fake.Driver) error { return d.Shutdown(ctx, id, virt.ShutdownACPI) },
		"Destroy":  func(ctx context.Context, d *fake.Driver) error { return d.Destroy(ctx, id) },
		"Pause":    func(ctx context.Context, d *fake.Driver) error { return d.Pause(ctx, id) },
		"Unpause":  func(ctx context.Context, d *fake.Driver) error { return d.Unpause(ctx, id) },
		"Save":     func(ctx context.Context, d *fake.Driver) error { return d.Save(ctx, id) },
		"Restore":  func(ctx context.Context, d *fake.Driver) error { return d.Restore(ctx, id) },
		"PrepareIncoming": func(ctx context.Context, d *fake.Driver) error {
			_, err := d.PrepareIncoming(ctx, virt.Incoming{})
			return err
		},
		"CancelIncoming": func(ctx context.Context, d *fake.Driver) error { return d.CancelIncoming(ctx, id, "m") },
		"Migrate": func(ctx context.Context, d *fake.Driver) error {
			return d.Migrate(ctx, virt.MigrateRequest{Instance: id})
		},
		"Job":            func(ctx context.Context, d *fake.Driver) error { _, err := d.Job(ctx, id); return err },
		"CompletedJob":   func(ctx context.Context, d *fake.Driver) error { _, err := d.CompletedJob(ctx, id); return err },
		"AbortJob":       func(ctx context.Context, d *fake.Driver) error { return d.AbortJob(ctx, id) },
		"SetMaxDowntime": func(ctx context.Context, d *fake.Driver) error { return d.SetMaxDowntime(ctx, id, 1) },
		"SetBandwidth":   func(ctx context.Context, d *fake.Driver) error { return d.SetBandwidth(ctx, id, 1) },
		"StartPostCopy":  func(ctx context.Context, d *fake.Driver) error { return d.StartPostCopy(ctx, id) },
		"Host":           func(ctx context.Context, d *fake.Driver) error { _, err := d.Host(ctx); return err },
	}
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, fake.NewWorld(life(t)), fake.Config{Name: "a"})
		d := open(t, h)
		for name, call := range calls {
			h.Faults().Add(fake.Fault{Method: name, Err: boom, Delay: time.Second, Times: 1})
			began := time.Now()
			if err := call(t.Context(), d); !errors.Is(err, boom) || fault.KindOf(err) != fault.Internal {
				t.Errorf("%s: %v, want the fault", name, err)
			}
			if took := time.Since(began); took != time.Second {
				t.Errorf("%s took %v, want a second", name, took)
			}
			if err := call(t.Context(), d); errors.Is(err, boom) {
				t.Errorf("%s failed twice, want once", name)
			}
			h.Faults().Add(fake.Fault{Method: name, Hang: true})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := call(ctx, d); fault.KindOf(err) != fault.Timeout {
				t.Errorf("%s that hangs: %v, want timeout", name, err)
			}
			cancel()
		}
		h.Faults().Clear()
		h.Disconnect()
		for name, call := range calls {
			if name == "Migrate" { // it looks at the URI first
				continue
			}
			if err := call(t.Context(), d); fault.KindOf(err) != fault.Unavailable {
				t.Errorf("%s while the hypervisor is away: %v, want unavailable", name, err)
			}
		}
		h.Reconnect()
	})
}

func TestFaultThatHangsIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, fake.NewWorld(life(t)), fake.Config{Name: "a"})
		d := open(t, h)
		release := h.Faults().Add(fake.Fault{Hang: true})
		call := green.Spawn(t.Context(), func(ctx context.Context) ([]virt.Domain, error) { return d.List(ctx) })
		sleep(t, time.Hour)
		release()
		release()
		if _, err := call.Wait(t.Context()); err != nil {
			t.Errorf("List after its fault was removed: %v", err)
		}
	})
}

func TestLostReplyAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, fake.NewWorld(life(t)), fake.Config{Name: "a"})
		d, s := open(t, h), newSpec()
		h.Faults().Add(fake.Fault{Method: "Start", Instance: s.UUID, Err: fault.Unavailable, After: true, Times: 1})
		if err := d.Define(t.Context(), virt.Definition{Spec: s}); err != nil {
			t.Fatalf("Define: %v", err)
		}
		if err := d.Start(t.Context(), s.UUID); !errors.Is(err, fault.Unavailable) {
			t.Errorf("Start with its reply lost: %v, want unavailable", err)
		}
		for range 2 {
			if err := d.Start(t.Context(), s.UUID); err != nil {
				t.Errorf("Start again: %v", err)
			}
		}
		if err := errors.Join(d.Pause(t.Context(), s.UUID), d.Pause(t.Context(), s.UUID), d.Destroy(t.Context(), s.UUID), d.Destroy(t.Context(), s.UUID)); err != nil {
			t.Fatalf("pause and destroy: %v", err)
		}
		want := fake.Effects{Defines: 1, Starts: 1, Pauses: 1, Stops: 1}
		if diff := cmp.Diff(want, h.Counts(s.UUID)); diff != "" {
			t.Errorf("Counts (-want +got):\n%s", diff)
		}
	})
}

func TestDisconnectLosesEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, fake.DefaultGuest())
		p.a.Disconnect()
		p.a.Disconnect()
		if err := p.a.Crash(p.spec.UUID); err != nil {
			t.Fatalf("Crash: %v", err)
		}
		sleep(t, time.Second)
		p.a.Reconnect()
		want := []string{"   0 source disconnected", "1000 source connected"}
		if diff := cmp.Diff(want, p.log.all()); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		p.wantStates(t, "shutoff(crashed)", "gone")
	})
}

func TestWhatGuestsDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, fake.DefaultGuest())
		before, err := p.source.Lookup(t.Context(), p.spec.UUID)
		if err != nil {
			t.Fatalf("Lookup: %v", err)
		}
		if err := p.a.GuestReboot(p.spec.UUID); err != nil {
			t.Fatalf("GuestReboot: %v", err)
		}
		if out, err := p.source.Console(t.Context(), p.spec.UUID, 0); err != nil || len(out) != 0 {
			t.Errorf("the console of a guest that boots: %q, %v, want nothing yet", out, err)
		}
		if after, err := p.source.Lookup(t.Context(), p.spec.UUID); err != nil || after != before {
			t.Errorf("after its reboot the guest is %+v, %v, want the same run: %+v", after, err, before)
		}
		sleep(t, 2*time.Second)
		if out, err := p.source.Console(t.Context(), p.spec.UUID, 0); err != nil || string(out) != "tick 1\ntick 2\n" {
			t.Errorf("the console two seconds later: %q, %v", out, err)
		}
		if err := p.a.GuestShutdown(p.spec.UUID); err != nil {
			t.Fatalf("GuestShutdown: %v", err)
		}
		want := []string{"   0 source rebooted", "2000 source shutdown(guest)", "2000 source stopped(shutdown)"}
		if diff := cmp.Diff(want, p.log.all()); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		for name, err := range map[string]error{
			"Crash": p.a.Crash(p.spec.UUID), "GuestReboot": p.a.GuestReboot(p.spec.UUID), "GuestShutdown": p.a.GuestShutdown(p.spec.UUID),
		} {
			if !errors.Is(err, fault.Conflict) {
				t.Errorf("%s of a guest that is off: %v, want conflict", name, err)
			}
		}
		if err := p.a.Crash("nobody"); !errors.Is(err, fault.NotFound) {
			t.Errorf("Crash of nobody: %v, want not_found", err)
		}
	})
}

func TestPowerButton(t *testing.T) {
	cases := []struct {
		name     string
		metadata map[string]string
		wait     time.Duration // from the start to the button
		how      virt.ShutdownMethod
		kind     fault.Kind
		after    time.Duration // from the button to off; 0: never
	}{
		{"answered", nil, time.Second, virt.ShutdownACPI, "", 100 * time.Millisecond},
		{"answered late", map[string]string{"fake.acpi_after": "90s"}, time.Second, virt.ShutdownACPI, "", 90 * time.Second},
		{"ignored", map[string]string{"fake.acpi": "ignores"}, time.Second, virt.ShutdownACPI, "", 0},
		{"pressed while it boots", map[string]string{"fake.boot": "10s"}, time.Second, virt.ShutdownACPI, "", 0},
		{"no agent", nil, time.Second, virt.ShutdownAgent, fault.Conflict, 0},
		{"agent", map[string]string{"fake.agent": "true", "fake.acpi": "ignores"}, time.Second, virt.ShutdownAgent, "", 100 * time.Millisecond},
		{"unknown way", nil, time.Second, "telepathy", fault.Conflict, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, s := open(t, newHost(t, fake.NewWorld(life(t)), fake.Config{Name: "a"})), newSpec()
				s.Metadata = c.metadata
				mustStart(t, d, s)
				sleep(t, c.wait)
				if err := d.Shutdown(t.Context(), s.UUID, c.how); fault.KindOf(err) != c.kind {
					t.Errorf("Shutdown: %v, want kind %q", err, c.kind)
				}
				last := 24 * time.Hour
				if c.after > 0 {
					sleep(t, c.after-time.Millisecond)
					last = 2 * time.Millisecond
				}
				if got := state(t, d, s.UUID); got != "running(booted)" {
					t.Errorf("before its time the guest is %s", got)
				}
				sleep(t, last)
				if got, want := state(t, d, s.UUID), map[bool]string{true: "shutoff(shutdown)", false: "running(booted)"}[c.after > 0]; got != want {
					t.Errorf("at last the guest is %s, want %s", got, want)
				}
			})
		})
	}
}

func TestPowerButtonIsNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, fake.DefaultGuest())
		ctx, id := t.Context(), p.spec.UUID
		if err := errors.Join(p.source.Shutdown(ctx, id, virt.ShutdownACPI), p.source.Pause(ctx, id)); err != nil {
			t.Fatalf("shutdown and pause: %v", err)
		}
		sleep(t, time.Minute)
		p.wantStates(t, "paused(user)", "gone")
		if _, err := p.migrate(t).Wait(ctx); err != nil {
			t.Fatalf("Migrate: %v", err)
		}
		if err := p.dest.Unpause(ctx, id); err != nil {
			t.Fatalf("Unpause: %v", err)
		}
		sleep(t, 101*time.Millisecond)
		p.wantStates(t, "gone", "shutoff(shutdown)")
	})
}

func TestConsoleGoesOnAfterAMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, fake.DefaultGuest())
		sleep(t, 5*time.Second)
		if _, err := p.migrate(t).Wait(t.Context()); err != nil {
			t.Fatalf("Migrate: %v", err)
		}
		sleep(t, 3*time.Second)
		out, err := p.dest.Console(t.Context(), p.spec.UUID, 0)
		if want := "tick 8\ntick 9\ntick 10\n"; err != nil || string(out) != want {
			t.Errorf("the console on the destination: %q, %v, want the ticks since it came: %q", out, err, want)
		}
	})
}

func TestGuestsOutliveTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		first := newHost(t, fake.NewWorld(life(t)), fake.Config{Name: "node1.example", Dir: dir})
		d, running, paused, off, saved := open(t, first), newSpec(), newSpec(), newSpec(), newSpec()
		for _, s := range []instance.Spec{running, paused, off, saved} {
			mustStart(t, d, s)
		}
		sleep(t, 10*time.Second)
		err := errors.Join(d.Pause(t.Context(), paused.UUID), d.Destroy(t.Context(), off.UUID), d.Save(t.Context(), saved.UUID),
			d.Shutdown(t.Context(), running.UUID, virt.ShutdownACPI))
		if err != nil {
			t.Fatalf("pause, destroy, save, shutdown: %v", err)
		}
		before, err := d.List(t.Context())
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		second := newHost(t, fake.NewWorld(life(t)), fake.Config{Name: "node1.example", Dir: dir})
		again := open(t, second)
		after, err := again.List(t.Context())
		if diff := cmp.Diff(before, after); err != nil || diff != "" {
			t.Errorf("after the restart: %v (-before +after):\n%s", err, diff)
		}
		sleep(t, time.Second)
		if got := state(t, again, running.UUID); got != "shutoff(shutdown)" {
			t.Errorf("the guest that was asked to go off is %s", got)
		}
		if err := errors.Join(again.Restore(t.Context(), saved.UUID), again.Unpause(t.Context(), paused.UUID)); err != nil {
			t.Errorf("restore and unpause: %v", err)
		}
		if out, err := again.Console(t.Context(), paused.UUID, 8); err != nil || string(out) != "tick 10\n" {
			t.Errorf("the console of the guest that was paused ends with %q, %v", out, err)
		}
	})
}

func TestStoreRefusesWhatItDoesNotKnow(t *testing.T) {
	for name, c := range map[string]struct {
		data string
		kind fault.Kind
	}{
		"newer":  {`{"version": 2}`, fault.UnsupportedVersion},
		"broken": {`{"version": 1, "domains": [{`, fault.Internal},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "a.json"), []byte(c.data), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := fake.NewHost(fake.NewWorld(life(t)), fake.Config{Name: "a", Dir: dir}); fault.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %s", name, err, c.kind)
		}
	}
}

func TestNewHostRefuses(t *testing.T) {
	w := fake.NewWorld(life(t))
	newHost(t, w, fake.Config{Name: "a"})
	for _, c := range []struct {
		config fake.Config
		kind   fault.Kind
	}{
		{fake.Config{}, fault.InvalidArgument},
		{fake.Config{Name: "a"}, fault.Conflict},
		{fake.Config{Name: "b", Listen: "0.0.0.0:0"}, fault.InvalidArgument},
		{fake.Config{Name: "b", Listen: "nonsense"}, fault.InvalidArgument},
	} {
		if _, err := fake.NewHost(w, c.config); fault.KindOf(err) != c.kind {
			t.Errorf("NewHost(%+v): %v, want %s", c.config, err, c.kind)
		}
	}
}

func TestLinkRefusesNonsense(t *testing.T) {
	ctx, cancel := context.WithCancel(life(t))
	t.Cleanup(cancel)
	h := newHost(t, fake.NewWorld(ctx), fake.Config{Name: "a", Listen: "127.0.0.1:0", LinkTimeout: 5 * time.Second})
	in, err := open(t, h).PrepareIncoming(t.Context(), virt.Incoming{Definition: virt.Definition{Spec: newSpec(), Migration: "m"}})
	if err != nil {
		t.Fatalf("PrepareIncoming: %v", err)
	}
	address := strings.TrimSuffix(strings.TrimPrefix(in.URI, "fake+tcp://"), "/a")
	for _, line := range []string{
		"", "hello", "{}", `{"begin": {"instance": "x", "migration": "m"}}`, `{"finish": {"instance": "x", "migration": "m"}}`,
		strings.Repeat("x", 2<<20),
	} {
		var dialer net.Dialer
		c, err := dialer.DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatalf("dial: %v", err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		var reply struct {
			Error *fault.Error `json:"error"`
		}
		_, _ = c.Write([]byte(line + "\n")) // one that is too long is cut off
		err = json.NewDecoder(c).Decode(&reply)
		if len(line) < 1<<20 && (err != nil || reply.Error == nil) {
			t.Errorf("%.40q was answered %+v, %v, want an error", line, reply, err)
		}
		if len(line) > 1<<20 && err == nil {
			t.Errorf("a line of %d bytes was answered, want the connection closed", len(line))
		}
		_ = c.Close()
	}
	d := open(t, h)
	if list, err := d.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("List = %+v, %v, want nothing", list, err)
	}
}

// manyMigrations has n guests of two hosts on their way at once and gives the
// bytes of heap and stacks that each migration takes.
func manyMigrations(t *testing.T, n int) float64 {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	w := fake.NewWorld(ctx)
	var drivers [2]*fake.Driver
	for i, name := range []string{"a", "b"} {
		h, err := fake.NewHost(w, fake.Config{Name: name})
		if err != nil {
			t.Fatalf("NewHost: %v", err)
		}
		drivers[i] = h.Open()
	}
	requests := make([]virt.MigrateRequest, n)
	for i := range requests {
		s := newSpec()
		if err := errors.Join(drivers[0].Define(ctx, virt.Definition{Spec: s}), drivers[0].Start(ctx, s.UUID)); err != nil {
			t.Fatalf("define and start: %v", err)
		}
		requests[i] = virt.MigrateRequest{Instance: s.UUID, Migration: instance.NewUUID(), Generation: 2, BandwidthMiB: 2}
		in, err := drivers[1].PrepareIncoming(ctx, virt.Incoming{Definition: virt.Definition{Spec: s, Migration: requests[i].Migration}})
		if err != nil {
			t.Fatalf("PrepareIncoming: %v", err)
		}
		requests[i].Inbound = in
	}
	before := footprint()
	calls := make([]*green.Thread[struct{}], n)
	for i, r := range requests {
		calls[i] = green.Spawn(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, drivers[0].Migrate(ctx, r) })
	}
	if err := green.Sleep(ctx, 10*time.Second); err != nil {
		t.Fatalf("Sleep: %v", err)
	}
	each := (footprint() - before) / float64(n)
	for _, r := range requests {
		if j, err := drivers[0].Job(ctx, r.Instance); err != nil || j.Memory.Remaining == 0 {
			t.Fatalf("Job of one of many = %+v, %v, want it to run", j, err)
		}
	}
	for _, c := range calls {
		if _, err := c.Wait(ctx); err != nil {
			t.Fatalf("Migrate: %v", err)
		}
	}
	if found := w.Audit(); len(found) != 0 {
		t.Fatalf("the audit found %d guests, the first is %+v", len(found), found[0])
	}
	return each
}

func footprint() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

func TestTenThousandMigrationsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		each := manyMigrations(t, 10_000)
		t.Logf("%.1f KiB each", each/1024)
		if each > 24<<10 {
			t.Errorf("a running migration takes %.1f KiB, want at most 24", each/1024)
		}
	})
}

func ExampleNewHost() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h, err := fake.NewHost(fake.NewWorld(ctx), fake.Config{Name: "node1"})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := h.Open()
	defer func() { _ = d.Close() }()
	spec := instance.Spec{UUID: "7f6f4a4e-6f3c-4a5c-9b57-2f3f0f7f5f01", Name: "web", VCPUs: 1, MemoryMiB: 512}
	if err := errors.Join(d.Define(ctx, virt.Definition{Spec: spec, Generation: 1}), d.Start(ctx, spec.UUID)); err != nil {
		fmt.Println(err)
		return
	}
	list, err := d.List(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(list[0].Name, list[0].State, list[0].MemoryMiB)
	// Output: web running 512
}
