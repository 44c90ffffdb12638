package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/controller/controllertest"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// drainRig is node1 with guests vm0, vm1, … and three more hosts.
type drainRig struct {
	rig
	events []controller.DrainEvent
	most   int // migrations at a time
}

func drainBubble(t *testing.T, guests int, test func(r *drainRig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bus := rpc.NewBus()
		r := &drainRig{rig: rig{t: t, bus: bus, conn: bus.Connect("controller")}}
		r.fleet = controllertest.NewFleet(t, bus.Connect("agents"), "node1", "node2", "node3", "node4")
		r.fleet.Step = time.Second
		for n := range guests {
			r.fleet.Add(t, "node1", fmt.Sprintf("vm%d", n), vm(n))
		}
		r.client = controller.New(r.conn, controller.Options{})
		test(r)
	})
}

func vm(n int) string { return fmt.Sprintf("0b6e8e43-9a1c-4a55-8a5b-%012d", n) }

// drain prepares a drain of node1 whose events are kept.
func (r *drainRig) drain(o controller.DrainOptions) *controller.Drain {
	var d *controller.Drain
	o.Report = func(e controller.DrainEvent) {
		r.events = append(r.events, e)
		moving := map[string]bool{}
		for _, e := range r.events {
			moving[e.Instance] = e.State == controller.DrainMoving
		}
		n := 0
		for _, m := range moving {
			if m {
				n++
			}
		}
		r.most = max(r.most, n)
	}
	d = r.client.Drain("node1", o)
	return d
}

// ends are the outcomes as name, destination and reasons.
func ends(events []controller.DrainEvent) []string {
	all := []string{}
	for _, e := range events {
		all = append(all, strings.TrimSpace(e.Name+" "+e.Dest+" "+strings.Join(e.Reasons, "; ")))
	}
	slices.Sort(all)
	return all
}

func (r *drainRig) states(name string) []controller.DrainState {
	var all []controller.DrainState
	for _, e := range r.events {
		if e.Name == name && (len(all) == 0 || all[len(all)-1] != e.State) {
			all = append(all, e.State)
		}
	}
	return all
}

func wantEnds(t *testing.T, what string, got []controller.DrainEvent, want ...string) {
	t.Helper()
	if d := cmp.Diff(append([]string{}, want...), ends(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

// A host is closed, emptied two at a time, and its guests are spread.
func TestDrain(t *testing.T) {
	drainBubble(t, 6, func(r *drainRig) {
		t := r.t
		res, err := r.drain(controller.DrainOptions{To: []string{"node2", "node3"}, Reason: "drained by ann"}).Run(t.Context())
		if err != nil || res.Err() != nil {
			t.Fatalf("Run = %v, %v", err, res.Err())
		}
		there := map[string]int{}
		for _, e := range res.Moved {
			there[e.Dest]++
		}
		if d := cmp.Diff(map[string]int{"node2": 3, "node3": 3}, there); d != "" {
			t.Errorf("where they are (-want +got):\n%s", d)
		}
		if r.most != 2 || !res.Disabled || res.Stopped {
			t.Errorf("%d at a time, %+v", r.most, res)
		}
		h, err := r.client.FindHost(t.Context(), "node1")
		if err != nil || h.Enabled || h.DisabledReason != "drained by ann" {
			t.Errorf("the host is %v %q, %v", h.Enabled, h.DisabledReason, err)
		}
		want := []controller.DrainState{controller.DrainWaiting, controller.DrainChecking, controller.DrainMoving, controller.DrainMoved}
		if d := cmp.Diff(want, r.states("vm0")); d != "" {
			t.Errorf("states (-want +got):\n%s", d)
		}
		res, err = r.drain(controller.DrainOptions{To: []string{"node2"}}).Run(t.Context())
		if err != nil || len(res.Moved)+len(res.Stayed)+len(res.Gone) != 0 || !res.Disabled {
			t.Errorf("an empty host: %+v, %v", res, err)
		}
	})
}

func TestDrainParallelAndOpen(t *testing.T) {
	drainBubble(t, 6, func(r *drainRig) {
		t := r.t
		begun := time.Now()
		res, err := r.drain(controller.DrainOptions{To: []string{"node2", "node3", "node4"}, Parallel: 3, StayOpen: true}).Run(t.Context())
		if err != nil || len(res.Moved) != 6 || r.most != 3 || res.Disabled {
			t.Errorf("%d at a time, %+v, %v", r.most, res, err)
		}
		if took := time.Since(begun); took != 8*time.Second { // two rounds of four steps
			t.Errorf("it took %s", took)
		}
	})
}

// Priority and options reach the agent.
func TestDrainArguments(t *testing.T) {
	drainBubble(t, 1, func(r *drainRig) {
		t := r.t
		var got api.MigrateArgs
		r.fleet.Judge(func(_ string, m rpc.Message) *fault.Error {
			if m.Method == api.LiveMigration {
				return fault.Wire(json.Unmarshal(m.Args, &got))
			}
			return nil
		})
		o := controller.DrainOptions{To: []string{"node2"}, Migrate: api.MigrateArgs{Policy: "nova", BandwidthMiB: 7, Priority: "user"}}
		if _, err := r.drain(o).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		got.Migration = ""
		if d := cmp.Diff(api.MigrateArgs{Instance: vm(0), Dest: "node2", Policy: "nova", BandwidthMiB: 7, Priority: "drain"}, got); d != "" {
			t.Errorf("arguments (-want +got):\n%s", d)
		}
	})
}

// What is off, suspended, in error or being built is listed, and nothing is tried.
func TestDrainRooted(t *testing.T) {
	drainBubble(t, 4, func(r *drainRig) {
		t := r.t
		r.fleet.Set(t, vm(0), instance.VMStopped)
		r.fleet.Set(t, vm(1), instance.VMSuspended)
		r.fleet.Set(t, vm(2), instance.VMError)
		res, err := r.drain(controller.DrainOptions{To: []string{"node2"}}).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantEnds(t, "moved", res.Moved, "vm3 node2")
		wantEnds(t, "stayed", res.Stayed, "vm0  it is off, and only what runs can be moved live: start it, or leave it here",
			"vm1  it is suspended, and only what runs can be moved live: resume it, or leave it here", "vm2  it is in error")
		wantKind(t, "Err", res.Err(), fault.PreconditionFailed, "host node1: 3 instances are still there")
	})
}

// busyOf is what a destination says whose slots are taken.
func busyOf(dest string) *fault.Error {
	return fault.New(fault.Busy, "live_migration", dest, "all 2 inbound migration slots are taken").WithDetail("retry_after_seconds", 20)
}

func destOf(m rpc.Message) string {
	var args api.MigrateArgs
	_ = json.Unmarshal(m.Args, &args)
	return args.Dest
}

// A busy destination is asked again when it said, another one is taken meanwhile.
func TestDrainBusy(t *testing.T) {
	drainBubble(t, 1, func(r *drainRig) {
		t := r.t
		begun := time.Now()
		r.fleet.Judge(func(_ string, m rpc.Message) *fault.Error {
			if m.Method == api.CheckMigrateSource && time.Since(begun) < time.Minute {
				return busyOf(destOf(m))
			}
			return nil
		})
		res, err := r.drain(controller.DrainOptions{To: []string{"node2", "node3"}}).Run(t.Context())
		if err != nil || len(res.Moved) != 1 || time.Since(begun) != 64*time.Second {
			t.Fatalf("%+v, %v after %s", res, err, time.Since(begun))
		}
		busy := 0
		for _, e := range r.events {
			if e.State == controller.DrainBusy {
				busy++
				if e.RetryAfterSeconds != 20 || len(e.Reasons) != 2 {
					t.Errorf("busy: %+v", e)
				}
			}
		}
		if busy != 3 {
			t.Errorf("it was busy %d times", busy)
		}
	})
	drainBubble(t, 4, func(r *drainRig) {
		t := r.t
		r.fleet.Judge(func(_ string, m rpc.Message) *fault.Error {
			if m.Method == api.CheckMigrateSource && destOf(m) == "node2" {
				return busyOf("node2")
			}
			return nil
		})
		res, err := r.drain(controller.DrainOptions{To: []string{"node2", "node3"}}).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantEnds(t, "moved", res.Moved, "vm0 node3", "vm1 node3", "vm2 node3", "vm3 node3")
	})
}

// The patience has an end, and the last answer is the reason.
func TestDrainBusyForever(t *testing.T) {
	drainBubble(t, 3, func(r *drainRig) {
		t := r.t
		r.fleet.Refuse(api.CheckMigrateSource, busyOf("node2"))
		begun := time.Now()
		res, err := r.drain(controller.DrainOptions{To: []string{"node2"}, BusyTimeout: time.Minute}).Run(t.Context())
		if err != nil || len(res.Stayed) != 3 || time.Since(begun) > 2*time.Minute {
			t.Fatalf("%+v, %v after %s", res, err, time.Since(begun))
		}
		if got := res.Stayed[0].Reasons[0]; !strings.Contains(got, "node2: live_migration") || !strings.Contains(got, "slots are taken") {
			t.Errorf("reason: %s", got)
		}
	})
}

// A destination that refuses is left out for that instance, with all its reasons.
func TestDrainRefused(t *testing.T) {
	drainBubble(t, 2, func(r *drainRig) {
		t := r.t
		r.fleet.Judge(func(_ string, m rpc.Message) *fault.Error {
			if m.Method == api.CheckMigrateSource && (destOf(m) == "node2" || strings.Contains(string(m.Args), vm(1))) {
				return fault.New(fault.PreconditionFailed, m.Method, "", "it can't").WithDetail("reasons", []string{"no bridge br7", "no room"})
			}
			return nil
		})
		res, err := r.drain(controller.DrainOptions{To: []string{"node2", "node3"}}).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantEnds(t, "moved", res.Moved, "vm0 node3")
		wantEnds(t, "stayed", res.Stayed, "vm1  node2: no bridge br7, no room; node3: no bridge br7, no room")
	})
}

// A migration that fails in the middle is tried with the next destination, once each.
func TestDrainFailure(t *testing.T) {
	drainBubble(t, 2, func(r *drainRig) {
		t := r.t
		r.fleet.Break("node2", fault.New(fault.Internal, api.LiveMigration, "", "the connection broke"))
		res, err := r.drain(controller.DrainOptions{To: []string{"node2", "node3"}}).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantEnds(t, "moved", res.Moved, "vm0 node3", "vm1 node3")
		if !slices.Contains(r.states("vm0"), controller.DrainFailed) {
			t.Errorf("states: %v", r.states("vm0"))
		}
	})
	drainBubble(t, 1, func(r *drainRig) {
		t := r.t
		r.fleet.Break("node2", fault.New(fault.Internal, api.LiveMigration, "", "the connection broke"))
		res, err := r.drain(controller.DrainOptions{To: []string{"node2"}}).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantEnds(t, "stayed", res.Stayed, "vm0  node2: live_migration: the connection broke")
	})
}

// A drain that is run again follows what is on its way and goes on with the rest.
func TestDrainResume(t *testing.T) {
	drainBubble(t, 5, func(r *drainRig) {
		t := r.t
		ctx, cancel := context.WithCancel(t.Context())
		leave := green.SpawnAfter(t.Context(), 2500*time.Millisecond, func(context.Context) (struct{}, error) {
			cancel()
			return struct{}{}, nil
		})
		res, err := r.drain(controller.DrainOptions{To: []string{"node2", "node3"}}).Run(ctx)
		if !errors.Is(err, context.Canceled) || len(res.Moved) != 0 || len(res.Stayed) != 5 {
			t.Fatalf("after leaving: %+v, %v", res, err)
		}
		if _, err := leave.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.events, r.most = nil, 0
		res, err = r.drain(controller.DrainOptions{To: []string{"node4"}}).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantEnds(t, "moved", res.Moved, "vm0 node2", "vm1 node3", "vm2 node4", "vm3 node4", "vm4 node4")
		if slices.Contains(r.states("vm0"), controller.DrainChecking) || r.most != 2 {
			t.Errorf("it was followed as %v, %d at a time", r.states("vm0"), r.most)
		}
	})
}

// Stop lets those on their way end, Abort ends them.
func TestDrainStopAndAbort(t *testing.T) {
	for _, abort := range []bool{false, true} {
		drainBubble(t, 4, func(r *drainRig) {
			t := r.t
			d := r.drain(controller.DrainOptions{To: []string{"node2"}})
			stop := green.SpawnAfter(t.Context(), 1500*time.Millisecond, func(ctx context.Context) (struct{}, error) {
				if len(d.Moving()) != 2 {
					t.Errorf("moving: %v", d.Moving())
				}
				if abort {
					return struct{}{}, d.Abort(ctx)
				}
				d.Stop()
				return struct{}{}, nil
			})
			res, err := d.Run(t.Context())
			if _, stopErr := stop.Wait(t.Context()); err != nil || stopErr != nil || !res.Stopped {
				t.Fatalf("Run = %+v, %v; %v", res, err, stopErr)
			}
			unbegun := []string{"vm2  it was not begun: the drain was stopped", "vm3  it was not begun: the drain was stopped"}
			if abort {
				wantEnds(t, "moved", res.Moved)
				wantEnds(t, "stayed", res.Stayed, append([]string{"vm0 node2 its migration to node2 was aborted", "vm1 node2 its migration to node2 was aborted"}, unbegun...)...)
				return
			}
			wantEnds(t, "moved", res.Moved, "vm0 node2", "vm1 node2")
			wantEnds(t, "stayed", res.Stayed, unbegun...)
		})
	}
}

// After its time nothing new begins.
func TestDrainTimeout(t *testing.T) {
	drainBubble(t, 6, func(r *drainRig) {
		t := r.t
		res, err := r.drain(controller.DrainOptions{To: []string{"node2"}, Timeout: 5 * time.Second}).Run(t.Context())
		if err != nil || len(res.Moved) != 4 || len(res.Stayed) != 2 || !res.Stopped {
			t.Errorf("%+v, %v", res, err)
		}
	})
}

// What comes to the host meanwhile leaves too; what is deleted is not in the way.
func TestDrainMeanwhile(t *testing.T) {
	drainBubble(t, 3, func(r *drainRig) {
		t := r.t
		r.fleet.Add(t, "node4", "guest", web1)
		coming, err := r.client.LiveMigration(t.Context(), "guest", api.MigrateArgs{Dest: "node1"})
		if err != nil || coming.Accepted(t.Context()) != nil {
			t.Fatal(err)
		}
		r.fleet.Set(t, vm(1), instance.VMStopped)
		later := green.SpawnAfter(t.Context(), 2*time.Second, func(context.Context) (struct{}, error) {
			r.fleet.Add(t, "node1", "late", web2)     //nolint:contextcheck // the test's own
			r.fleet.Set(t, vm(1), instance.VMDeleted) //nolint:contextcheck // the test's own
			return struct{}{}, nil
		})
		res, err := r.drain(controller.DrainOptions{To: []string{"node2"}}).Run(t.Context())
		if _, lateErr := later.Wait(t.Context()); err != nil || lateErr != nil {
			t.Fatal(err, lateErr)
		}
		wantEnds(t, "moved", res.Moved, "guest node2", "late node2", "vm0 node2", "vm2 node2")
		wantEnds(t, "stayed", res.Stayed)
		wantEnds(t, "gone", res.Gone, "vm1  it is off, and only what runs can be moved live: start it, or leave it here")
	})
}

func TestDrainRefusals(t *testing.T) {
	drainBubble(t, 1, func(r *drainRig) {
		t := r.t
		run := func(host string, to ...string) error {
			_, err := r.client.Drain(host, controller.DrainOptions{To: to}).Run(t.Context())
			return err
		}
		wantKind(t, "no destination", run("node1"), fault.InvalidArgument, "no destination")
		wantKind(t, "itself", run("node1", "node1"), fault.InvalidArgument, "its own destination")
		wantKind(t, "unknown host", run("nod1", "node2"), fault.NotFound, "did you mean node1")
		wantKind(t, "unknown destination", run("node1", "node2", "nde3"), fault.NotFound, "did you mean node3")
		r.fleet.Report(t, "node3", time.Now().Add(-time.Hour))
		wantKind(t, "host that is down", run("node3", "node2"), fault.Unavailable)
		if _, err := r.client.SetHostEnabled(t.Context(), "node2", false, "new disks"); err != nil {
			t.Fatal(err)
		}
		wantKind(t, "closed destinations", run("node1", "node2", "node3"), fault.PreconditionFailed, "node2: it is disabled: new disks", "node3: it is down")
		if h, err := r.client.FindHost(t.Context(), "node1"); err != nil || !h.Enabled {
			t.Errorf("a drain that can't be begun changes nothing: %+v, %v", h, err)
		}
	})
}
