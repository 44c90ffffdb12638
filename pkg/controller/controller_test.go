package controller_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/controller/controllertest"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

const (
	web1 = "0b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"
	web2 = "1b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"
	none = "2b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"
)

// rig is a fleet of two hosts with one instance, and a client beside it.
type rig struct {
	t      *testing.T
	bus    *rpc.Bus
	fleet  *controllertest.Fleet
	conn   rpc.Transport
	client *controller.Client
}

// inBubble runs a test with a rig on virtual time.
func inBubble(t *testing.T, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bus := rpc.NewBus()
		r := &rig{t: t, bus: bus, conn: bus.Connect("controller")}
		r.fleet = controllertest.NewFleet(t, bus.Connect("agents"), "node1", "node2")
		r.fleet.Add(t, "node1", "web1", web1)
		r.client = controller.New(r.conn, controller.Options{})
		test(r)
	})
}

func wantKind(t *testing.T, what string, err error, kind fault.Kind, parts ...string) {
	t.Helper()
	var e *fault.Error
	if !errors.Is(err, kind) || !errors.As(err, &e) {
		t.Fatalf("%s = %v, want a *fault.Error of kind %s", what, err, kind)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error()+"\n"+fault.HintOf(err), part) {
			t.Errorf("%s = %v (hint: %s), want %q in it", what, err, fault.HintOf(err), part)
		}
	}
}

func TestVerbs(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		ctx, c := t.Context(), r.client
		verbs := []struct {
			name string
			do   func() (*controller.Task, error)
			want instance.VMState
		}{
			{"stop", func() (*controller.Task, error) { return c.StopInstance(ctx, "web1", true) }, instance.VMStopped},
			{"start", func() (*controller.Task, error) { return c.StartInstance(ctx, web1) }, instance.VMActive},
			{"pause", func() (*controller.Task, error) { return c.PauseInstance(ctx, web1) }, instance.VMPaused},
			{"unpause", func() (*controller.Task, error) { return c.UnpauseInstance(ctx, web1) }, instance.VMActive},
			{"suspend", func() (*controller.Task, error) { return c.SuspendInstance(ctx, web1) }, instance.VMSuspended},
			{"resume", func() (*controller.Task, error) { return c.ResumeInstance(ctx, web1) }, instance.VMActive},
			{"reboot", func() (*controller.Task, error) { return c.RebootInstance(ctx, web1, api.RebootHard) }, instance.VMActive},
		}
		for _, v := range verbs {
			task, err := v.do()
			if err != nil {
				t.Fatalf("%s = %v", v.name, err)
			}
			event, err := task.Wait(ctx)
			if err != nil || event.State != api.TaskSucceeded || event.RequestID != task.RequestID() {
				t.Errorf("%s: Wait = %+v, %v", v.name, event, err)
			}
			if err := task.Close(); err != nil {
				t.Errorf("%s: Close = %v", v.name, err)
			}
			if got, err := c.ShowInstance(ctx, web1); err != nil || got.VMState != v.want {
				t.Errorf("after %s: ShowInstance = %s, %v, want %s", v.name, got.VMState, err, v.want)
			}
		}
		wait(t, c.TerminateInstance, "web1")
		_, err := c.FindInstance(ctx, web1)
		wantKind(t, "FindInstance after delete", err, fault.NotFound)
	})
}

// wait carries a verb out and fails the test when it fails.
func wait(t *testing.T, verb func(context.Context, string) (*controller.Task, error), ref string) {
	t.Helper()
	task, err := verb(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := task.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestBuildAndMigrate(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		ctx, c := t.Context(), r.client
		r.fleet.Step = time.Second
		task, err := c.BuildAndRunInstance(ctx, "node1", instance.Spec{UUID: web2, Name: "web2", VCPUs: 1, MemoryMiB: 128})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := task.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		move, err := c.LiveMigration(ctx, "web2", api.MigrateArgs{Dest: "node2"})
		if err != nil {
			t.Fatal(err)
		}
		var percents []int
		err = c.WatchMigration(ctx, move.Migration(), func(m instance.Migration) error {
			percents = append(percents, m.Progress.Percent)
			return nil
		})
		if err != nil || len(percents) < 4 || percents[len(percents)-1] != 99 {
			t.Errorf("WatchMigration = %v after %v", err, percents)
		}
		if _, err := move.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		i, err := c.FindInstance(ctx, "web2")
		if err != nil || i.Host != "node2" || i.Generation != 2 {
			t.Errorf("FindInstance = %+v, %v, want node2", i, err)
		}
		m, err := c.FindMigration(ctx, "web2")
		if err != nil || m.UUID != move.Migration() || m.Status != instance.MigrationCompleted {
			t.Errorf("FindMigration = %+v, %v", m, err)
		}
		if m, err := c.ShowMigration(ctx, move.Migration()); err != nil || m.Result == nil {
			t.Errorf("ShowMigration = %+v, %v", m, err)
		}
	})
}

func TestAbort(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		ctx, c := t.Context(), r.client
		r.fleet.Step = time.Minute
		move, err := c.LiveMigration(ctx, "web1", api.MigrateArgs{Dest: "node2"})
		if err != nil {
			t.Fatal(err)
		}
		if err := move.Accepted(ctx); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wait(t, c.AbortMigration, "web1")
		event, err := move.Wait(ctx)
		wantKind(t, "Wait of an aborted migration", err, fault.Cancelled)
		if event.State != api.TaskFailed {
			t.Errorf("the task is %s", event.State)
		}
	})
}

func TestHostLookup(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		ctx, c := t.Context(), r.client
		spec := instance.Spec{UUID: web2, Name: "web2", VCPUs: 1, MemoryMiB: 128}
		_, err := c.BuildAndRunInstance(ctx, "nod1", spec)
		wantKind(t, "a host that does not exist", err, fault.NotFound, "host nod1", "did you mean node1?")
		_, err = c.LiveMigration(ctx, "web1", api.MigrateArgs{Dest: "noed2"})
		wantKind(t, "a destination that does not exist", err, fault.NotFound, "did you mean node2?")

		r.fleet.Report(t, "node2", time.Now().Add(-200*time.Second))
		_, err = c.BuildAndRunInstance(ctx, "node2", spec)
		wantKind(t, "a host that is down", err, fault.Unavailable, "it last reported 3m20s ago", "--force")
		hosts, err := c.Hosts(ctx)
		if err != nil || len(hosts) != 2 || hosts[0].Down || !hosts[1].Down {
			t.Errorf("Hosts = %+v, %v", hosts, err)
		}
		forced := controller.New(r.conn, controller.Options{Force: true})
		task, err := forced.BuildAndRunInstance(ctx, "node2", spec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := task.Wait(ctx); err != nil {
			t.Errorf("forced: %v", err)
		}
		_, err = c.ListInstances(ctx, "nowhere")
		wantKind(t, "a call to a host that does not exist", err, fault.NotFound, "host nowhere")
	})
}

// A cast that the agent never accepted is sent again and runs once.
func TestResend(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		r.fleet.IgnoreCasts(1)
		begun := time.Now()
		task, err := r.client.StopInstance(t.Context(), "web1", true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := task.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := r.fleet.Runs(task.RequestID()); n != 1 {
			t.Errorf("it ran %d times, want once", n)
		}
		if took := time.Since(begun); took < 5*time.Second || took > 30*time.Second {
			t.Errorf("it took %s: want a second sending after 5 s", took)
		}
	})
}

// shaky is a client whose first readers of events break after a while.
type shaky struct {
	rpc.Client
	breaks int
}

func (s *shaky) Events(ctx context.Context, f rpc.EventFilter) (rpc.EventReader, error) {
	if s.breaks--; s.breaks >= 0 {
		if s.breaks%2 == 0 {
			return nil, fault.New(fault.Unavailable, "", "", "the bus is away")
		}
		return broken{}, nil
	}
	return s.Client.Events(ctx, f)
}

type broken struct{}

func (broken) Next(context.Context) (rpc.Event, error) {
	return rpc.Event{}, fault.New(fault.Unavailable, "", "", "the bus went away")
}
func (broken) Close() error { return nil }

// A reader that breaks is opened again, and nothing is missed.
func TestReadersThatBreak(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		client := controller.New(&shaky{Client: r.conn, breaks: 4}, controller.Options{})
		task, err := client.StopInstance(t.Context(), "web1", true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := task.Wait(t.Context()); err != nil {
			t.Errorf("Wait = %v", err)
		}
		client = controller.New(&shaky{Client: r.conn, breaks: 4}, controller.Options{})
		enough := errors.New("enough")
		err = client.WatchEvents(t.Context(), rpc.EventFilter{Kind: api.EventTask, From: rpc.FromAll}, func(e rpc.Event) error {
			if strings.Contains(string(e.Body), string(api.TaskSucceeded)) {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Errorf("WatchEvents = %v", err)
		}
	})
}

func TestNobodyAccepts(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		r.bus.Partition("agents")
		task, err := r.client.StopInstance(t.Context(), "web1", true)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		_, err = task.Wait(t.Context())
		wantKind(t, "Wait", err, fault.Timeout, "has not accepted it within 1m0s", task.RequestID())
		if took := time.Since(begun); took > 70*time.Second {
			t.Errorf("it took %s", took)
		}
		r.bus.Heal("agents")
		later, err := r.client.Task(t.Context(), "node1", task.RequestID())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := later.Wait(t.Context()); err != nil {
			t.Errorf("a cast that was stored must be carried out later: %v", err)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		r.fleet.Step = time.Hour
		task, err := r.client.LiveMigration(t.Context(), "web1", api.MigrateArgs{Dest: "node2"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = task.Wait(ctx)
		wantKind(t, "Wait", err, fault.Timeout, "node1")
		short := controller.New(r.conn, controller.Options{TaskTimeout: 10 * time.Second})
		same, err := short.Task(t.Context(), "node1", task.RequestID())
		if err != nil {
			t.Fatal(err)
		}
		_, err = same.Wait(t.Context())
		wantKind(t, "Wait with TaskTimeout", err, fault.Timeout, "within 10s")
	})
}

func TestRefused(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		want := fault.New(fault.Conflict, api.StartInstance, web1, "it is being migrated").WithHint("wait").WithDetail("task_state", "migrating")
		r.fleet.Refuse(api.StartInstance, want)
		task, err := r.client.StartInstance(t.Context(), "web1")
		if err != nil {
			t.Fatal(err)
		}
		_, err = task.Wait(t.Context())
		var got *fault.Error
		if !errors.Is(err, fault.Conflict) || !errors.As(err, &got) {
			t.Fatalf("Wait = %v, want conflict", err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("the agent's error (-want +got):\n%s", d)
		}
		wantKind(t, "Accepted", task.Accepted(t.Context()), fault.Conflict)
		if n := r.fleet.Runs(task.RequestID()); n != 0 {
			t.Errorf("a refused task ran %d times", n)
		}
	})
}

func TestRequestID(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		ctx := controller.WithRequestID(t.Context(), none)
		for range 2 {
			task, err := r.client.StopInstance(ctx, "web1", true)
			if err != nil || task.RequestID() != none {
				t.Fatalf("StopInstance = %v, %v", task, err)
			}
			if _, err := task.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if n := r.fleet.Runs(none); n != 1 {
			t.Errorf("one request id ran %d times", n)
		}
		_, err := r.client.StopInstance(controller.WithRequestID(t.Context(), "mine"), "web1", true)
		wantKind(t, "a request id that is no UUID", err, fault.InvalidArgument)
	})
}

func TestFind(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		ctx, c := t.Context(), r.client
		r.fleet.Add(t, "node2", "twin", web2)
		r.fleet.Add(t, "node1", "twin", none)
		_, err := c.FindInstance(ctx, "twin")
		wantKind(t, "a name that two have", err, fault.Conflict, web2+" on node2", none+" on node1")
		_, err = c.FindInstance(ctx, "wbe1")
		wantKind(t, "a name that none has", err, fault.NotFound, "did you mean web1?")
		_, err = c.FindMigration(ctx, "web1")
		wantKind(t, "an instance that never moved", err, fault.NotFound)

		// Two hosts publish one instance: the higher generation is right.
		newer, err := rpc.JSON(instance.Instance{UUID: web1, Name: "web1", Host: "node2", Generation: 7})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.conn.Put(ctx, rpc.Instances, []string{"node2", web1}, newer); err != nil {
			t.Fatal(err)
		}
		for _, ref := range []string{"web1", web1} {
			if i, err := c.FindInstance(ctx, ref); err != nil || i.Host != "node2" {
				t.Errorf("FindInstance(%s) = %s, %v, want node2", ref, i.Host, err)
			}
		}
		// What can't be read hides nothing.
		if err := r.conn.Put(ctx, rpc.Instances, []string{"node2", "sick"}, []byte("{")); err != nil {
			t.Fatal(err)
		}
		if all, err := c.Instances(ctx); err != nil || len(all) != 3 {
			t.Errorf("Instances = %d, %v, want 3", len(all), err)
		}
	})
}

func TestCalls(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		ctx, c := t.Context(), r.client
		if out, err := c.GetConsoleOutput(ctx, "web1", 100); err != nil || out != "login: " {
			t.Errorf("GetConsoleOutput = %q, %v", out, err)
		}
		if h, err := c.SetHostEnabled(ctx, "node1", false, "disks"); err != nil || h.Enabled || h.DisabledReason != "disks" {
			t.Errorf("SetHostEnabled = %+v, %v", h, err)
		}
		if h, err := c.GetHostInfo(ctx, "node1"); err != nil || h.Enabled || h.Down {
			t.Errorf("GetHostInfo = %+v, %v", h, err)
		}
		if got, err := c.GetAvailableResource(ctx, "node1"); err != nil || got.VCPUs != 8 {
			t.Errorf("GetAvailableResource = %+v, %v", got, err)
		}
		if reasons, err := c.CheckMigration(ctx, "web1", api.MigrateArgs{Dest: "node2"}); err != nil || len(reasons) != 0 {
			t.Errorf("CheckMigration = %v, %v", reasons, err)
		}
		if all, err := c.ListInstances(ctx, "node1"); err != nil || len(all) != 1 {
			t.Errorf("ListInstances = %v, %v", all, err)
		}
		_, err := c.GetDiagnostics(ctx, "web1")
		wantKind(t, "a method that the agent doesn't have", err, fault.UnsupportedMethod)
		err = c.Call(ctx, "node1", api.ShowInstance, api.InstanceArgs{Instance: "web1"}, nil)
		wantKind(t, "arguments that are wrong", err, fault.InvalidArgument, "is not a UUID")
	})
}

func TestWatchEvents(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		wait(t, r.client.PauseInstance, "web1")
		var states []api.TaskState
		enough := errors.New("enough")
		err := r.client.WatchEvents(t.Context(), rpc.EventFilter{Kind: api.EventTask, From: rpc.FromAll}, func(e rpc.Event) error {
			var body api.TaskEvent
			if err := api.Decode("", e.Body, &body); err != nil {
				return err
			}
			if states = append(states, body.State); body.State.Ended() {
				return enough
			}
			return nil
		})
		want := []api.TaskState{api.TaskAccepted, api.TaskRunning, api.TaskSucceeded}
		if d := cmp.Diff(want, states); d != "" || !errors.Is(err, enough) {
			t.Errorf("WatchEvents = %v (-want +got):\n%s", err, d)
		}
	})
}

func TestWatchInstances(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		wait(t, r.client.TerminateInstance, "web1")
		r.fleet.Add(t, "node2", "web2", web2)
		enough := errors.New("enough")
		err := r.client.WatchInstances(t.Context(), "*", "*", func(i instance.Instance, gone bool) error {
			if i.UUID == web2 && !gone {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Errorf("WatchInstances = %v", err)
		}
	})
}

// A migration that is accepted is found before any view has it; one that ended is not.
func TestPendingMigration(t *testing.T) {
	inBubble(t, func(r *rig) {
		t := r.t
		_, err := r.client.PendingMigration(t.Context(), "web1")
		wantKind(t, "PendingMigration of none", err, fault.NotFound)
		r.fleet.Step = time.Second
		cast, err := r.client.LiveMigration(t.Context(), "web1", api.MigrateArgs{Dest: "node2"})
		if err != nil || cast.Accepted(t.Context()) != nil {
			t.Fatal(err)
		}
		task, err := r.client.PendingMigration(t.Context(), "web1")
		if err != nil || task.RequestID() != cast.RequestID() || task.Migration() != cast.Migration() {
			t.Fatalf("PendingMigration = %v, %v", task, err)
		}
		if _, err := task.Wait(t.Context()); err != nil {
			t.Error(err)
		}
		if err := errors.Join(task.Close(), cast.Close()); err != nil {
			t.Error(err)
		}
		_, err = r.client.PendingMigration(t.Context(), web1)
		wantKind(t, "PendingMigration of one that ended", err, fault.NotFound)
	})
}
