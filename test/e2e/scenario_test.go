package e2e_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/vif"
)

// onBus gives a dialler to a bus in memory.
func onBus() func(context.Context, string) (rpc.Transport, error) {
	bus := rpc.NewBus()
	return func(_ context.Context, name string) (rpc.Transport, error) { return bus.Connect(name), nil }
}

// The main job: build, migrate, reboot both ways, migrate back, abort a slow
// migration, delete. After each step the guest runs exactly once, its tap is
// exactly where it runs, and the view shows where that is.
func TestMainJob(t *testing.T) {
	r := newRig(t, onBus(), "node1.example", "node2.example")
	mainJob(t, r)
}

func mainJob(t *testing.T, r *rig) {
	t.Helper()
	ctx, c := t.Context(), r.c
	s := spec("web1")
	task, err := c.BuildAndRunInstance(ctx, "node1.example", s)
	done(t, task, err)
	r.settled(t, s, "node1.example", 1)

	task, err = c.LiveMigration(ctx, "web1", api.MigrateArgs{Dest: "node2.example"})
	done(t, task, err)
	r.settled(t, s, "node2.example", 2)

	for _, kind := range []string{api.RebootSoft, api.RebootHard} {
		task, err = c.RebootInstance(ctx, s.UUID, kind)
		if err != nil {
			t.Fatal(err)
		}
		ev, err := task.Wait(ctx)
		if err != nil || !strings.Contains(string(ev.Result), `"`+kind+`"`) {
			t.Fatalf("reboot %s: %s, %v", kind, ev.Result, err)
		}
		r.settled(t, s, "node2.example", 2)
	}

	task, err = c.PauseInstance(ctx, s.UUID)
	done(t, task, err)
	if i, err := c.ShowInstance(ctx, s.UUID); err != nil || i.VMState != instance.VMPaused || i.PowerState != instance.PowerPaused {
		t.Fatalf("paused: %s %s %v", i.VMState, i.PowerState, err)
	}
	task, err = c.UnpauseInstance(ctx, s.UUID)
	done(t, task, err)

	task, err = c.LiveMigration(ctx, s.UUID, api.MigrateArgs{Dest: "node1.example"})
	done(t, task, err)
	r.settled(t, s, "node1.example", 3)

	abortSlow(t, r, s)

	task, err = c.StopInstance(ctx, s.UUID, true)
	done(t, task, err)
	if i, err := c.ShowInstance(ctx, s.UUID); err != nil || i.VMState != instance.VMStopped {
		t.Fatalf("stopped: %s %v", i.VMState, err)
	}
	task, err = c.StartInstance(ctx, s.UUID)
	done(t, task, err)
	r.settled(t, s, "node1.example", 3)
	r.eventually(t, "the guest's console", func() bool {
		out, err := c.GetConsoleOutput(ctx, s.UUID, 0)
		return err == nil && out != ""
	})

	task, err = c.TerminateInstance(ctx, s.UUID)
	done(t, task, err)
	r.gone(t, s)
}

// abortSlow starts a migration at 1 MiB/s, aborts it, and finds everything as it was.
func abortSlow(t *testing.T, r *rig, s instance.Spec) {
	t.Helper()
	ctx := t.Context()
	before, err := r.c.ShowInstance(ctx, s.UUID)
	if err != nil {
		t.Fatal(err)
	}
	slow, err := r.c.LiveMigration(ctx, s.UUID, api.MigrateArgs{Dest: "node2.example", BandwidthMiB: 1})
	if err != nil {
		t.Fatal(err)
	}
	r.eventually(t, "the migration to run", func() bool {
		m, err := r.c.FindMigration(ctx, slow.Migration())
		return err == nil && m.Status == instance.MigrationRunning && m.Progress.Memory.Total > 0
	})
	second, err := r.c.LiveMigration(ctx, s.UUID, api.MigrateArgs{Dest: "node2.example"})
	if err := end(t, second, err); !errors.Is(err, fault.Conflict) {
		t.Errorf("a second migration: %v, want a conflict", err)
	}
	task, err := r.c.AbortMigration(ctx, slow.Migration())
	done(t, task, err)
	if err := end(t, slow, nil); !errors.Is(err, fault.Cancelled) {
		t.Errorf("the aborted migration ended with %v, want cancelled", err)
	}
	r.settled(t, s, before.Host, before.Generation)
}

// settled checks the invariants of an instance that runs on host.
func (r *rig) settled(t *testing.T, s instance.Spec, host string, generation uint64) {
	t.Helper()
	ctx := t.Context()
	i, err := r.c.ShowInstance(ctx, s.UUID)
	if err != nil {
		t.Fatalf("show: %v", err)
	}
	if i.Host != host || i.Generation != generation || i.VMState != instance.VMActive || i.PowerState != instance.PowerRunning || i.TaskState != "" {
		t.Errorf("instance is on %s, generation %d, %s/%s/%q; want %s, %d, active/running/none",
			i.Host, i.Generation, i.VMState, i.PowerState, i.TaskState, host, generation)
	}
	if a := r.World.Audit(); len(a) != 0 {
		t.Errorf("not running exactly once: %v", a)
	}
	for _, name := range []string{"node1.example", "node2.example"} {
		taps, err := r.Host(name).Network.Taps(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		if name == host {
			want = 1
		}
		if len(taps) != want {
			t.Errorf("%s has %d taps, want %d: %+v", name, len(taps), want, taps)
		}
	}
	r.eventually(t, "the view to follow", func() bool {
		v, err := r.c.FindInstance(ctx, s.UUID)
		all, lerr := r.c.Instances(ctx)
		return err == nil && lerr == nil && len(all) == 1 && v.Host == host && v.Generation == generation && v.TaskState == ""
	})
}

// gone checks that nothing is left of an instance.
func (r *rig) gone(t *testing.T, s instance.Spec) {
	t.Helper()
	ctx := t.Context()
	for _, name := range []string{"node1.example", "node2.example"} {
		if taps, _ := r.Host(name).Network.Taps(ctx); len(taps) != 0 {
			t.Errorf("%s has taps left: %+v", name, taps)
		}
		all, err := r.c.ListInstances(ctx, name)
		if err != nil || len(all) != 0 {
			t.Errorf("%s has instances left: %v %v", name, all, err)
		}
	}
	r.eventually(t, "the view to forget it", func() bool {
		_, err := r.c.FindInstance(ctx, s.UUID)
		return errors.Is(err, fault.NotFound)
	})
}

// A task's life is told completely and in order.
func TestTaskEvents(t *testing.T) {
	r := newRig(t, onBus(), "node1.example", "node2.example")
	s := spec("web1")
	task, err := r.c.BuildAndRunInstance(t.Context(), "node1.example", s)
	if err != nil {
		t.Fatal(err)
	}
	var states []api.TaskState
	for {
		ev, err := task.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, ev.State)
		if ev.State.Ended() {
			break
		}
	}
	if d := cmp.Diff([]api.TaskState{api.TaskAccepted, api.TaskRunning, api.TaskSucceeded}, states); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
}

// Whatever is wrong with a request: an error of the right kind that says what to
// do, and nothing is changed.
func TestBadInput(t *testing.T) {
	r := newRig(t, onBus(), "node1.example", "node2.example")
	ctx := t.Context()
	s := spec("web1")
	task, err := r.c.BuildAndRunInstance(ctx, "node1.example", s)
	done(t, task, err)
	big := spec("big")
	big.MemoryMiB = 1 << 20
	nobridge := spec("nobridge")
	nobridge.Ports[0].Bridge = "br-int9"
	anything := instance.NewUUID()
	cast := func(method string, args any) func() (*controller.Task, error) {
		return func() (*controller.Task, error) { return r.c.Cast(ctx, "node1.example", method, args) }
	}
	cases := []struct {
		name string
		ask  func() (*controller.Task, error)
		want fault.Kind
		text string // in message or hint
	}{
		{"unknown method", cast("fly_instance", map[string]any{"instance": s.UUID}), fault.UnsupportedMethod, "fly_instance"},
		{"wrong type", cast(api.StopInstance, map[string]any{"instance": s.UUID, "clean_shutdown": "yes"}), fault.InvalidArgument, "clean_shutdown"},
		{"unknown instance", cast(api.StartInstance, api.InstanceArgs{Instance: anything}), fault.NotFound, "instance list"},
		{"unknown instance by name", func() (*controller.Task, error) { return r.c.StartInstance(ctx, "web2") }, fault.NotFound, "web1"},
		{"unknown host", func() (*controller.Task, error) { return r.c.BuildAndRunInstance(ctx, "node1.exmaple", spec("x")) }, fault.NotFound, "node1.example"},
		{"spec too big", func() (*controller.Task, error) { return r.c.BuildAndRunInstance(ctx, "node1.example", big) }, fault.PreconditionFailed, "memory"},
		{"no such bridge", func() (*controller.Task, error) { return r.c.BuildAndRunInstance(ctx, "node1.example", nobridge) }, fault.PreconditionFailed, "br-int9"},
		{"built twice", func() (*controller.Task, error) { return r.c.BuildAndRunInstance(ctx, "node1.example", s) }, fault.Conflict, "exists"},
		{"destination is the source", func() (*controller.Task, error) {
			return r.c.LiveMigration(ctx, s.UUID, api.MigrateArgs{Dest: "node1.example"})
		}, fault.InvalidArgument, "already"},
		{"a call sent as a cast", cast(api.ShowInstance, api.InstanceArgs{Instance: s.UUID}), fault.InvalidArgument, "call"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			task, err := c.ask()
			err = end(t, task, err)
			if fault.KindOf(err) != c.want || !strings.Contains(err.Error()+fault.HintOf(err), c.text) {
				t.Errorf("got %v (%s, hint %q), want %s with %q", err, fault.KindOf(err), fault.HintOf(err), c.want, c.text)
			}
		})
	}
	r.settled(t, s, "node1.example", 1)
}

// What is against a guest's ports at the destination is known before anything is done, with
// every other reason.
func TestPortsAreChecked(t *testing.T) {
	r := newRig(t, onBus(), "node1.example", "node2.example")
	ctx := t.Context()
	s := spec("web1")
	task, err := r.c.BuildAndRunInstance(ctx, "node1.example", s)
	done(t, task, err)
	net := r.Host("node2.example").Network
	net.Drop("br-int0")
	net.Put(vif.Tap{Name: s.Ports[0].Device(), Kind: "veth"})
	if _, err := r.c.SetHostEnabled(ctx, "node2.example", false, "for repairs"); err != nil {
		t.Fatal(err)
	}
	reasons, err := r.c.CheckMigration(ctx, s.UUID, api.MigrateArgs{Dest: "node2.example"})
	if err != nil || len(reasons) != 3 {
		t.Fatalf("check: %q, %v, want three reasons", reasons, err)
	}
	all, err := r.c.CheckMigration(ctx, s.UUID, api.MigrateArgs{Dest: "node2.example", Compression: "mt", ParallelConnections: 2})
	if err != nil || len(all) != 4 || !strings.Contains(all[0], "compression mt and parallel connections") {
		t.Errorf("check with a compression that is not possible: %q, %v, want that reason beside the three", all, err)
	}
	task, err = r.c.LiveMigration(ctx, s.UUID, api.MigrateArgs{Dest: "node2.example"})
	err = end(t, task, err)
	for _, want := range []string{"for repairs", "no bridge br-int0", "is a veth"} {
		if !strings.Contains(strings.Join(reasons, "\n"), want) || fault.KindOf(err) != fault.PreconditionFailed || !strings.Contains(err.Error(), want) {
			t.Errorf("no reason names %q: check %q, migration %v", want, reasons, err)
		}
	}
	if c := net.Counts(); c.Made+c.Mended+c.Removed > 0 {
		t.Errorf("the destination's network was changed: %+v", c)
	}
	r.settled(t, s, "node1.example", 1)
}

// A host whose agent is down: calls are unavailable at once, a cast waits in the
// stream and is carried out when the agent is back.
func TestAgentAway(t *testing.T) {
	r := newRig(t, onBus(), "node1.example", "node2.example")
	ctx := t.Context()
	s := spec("web1")
	task, err := r.c.BuildAndRunInstance(ctx, "node1.example", s)
	done(t, task, err)
	if err := r.Host("node1.example").Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.ShowInstance(ctx, s.UUID); !errors.Is(err, fault.Unavailable) {
		t.Errorf("a call to a host without agent: %v, want unavailable", err)
	}
	task, err = r.c.PauseInstance(ctx, s.UUID)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Host("node1.example").Start(context.WithoutCancel(ctx)); err != nil {
		t.Fatal(err)
	}
	done(t, task, nil)
	if i, err := r.c.ShowInstance(ctx, s.UUID); err != nil || i.VMState != instance.VMPaused {
		t.Errorf("after the agent is back: %s, %v; want paused", i.VMState, err)
	}
}
