package agent_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/logkit/logtest"
	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/vif"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

func instanceEvent(t *testing.T, e rpc.Event) (ie api.InstanceEvent) {
	t.Helper()
	if err := json.Unmarshal(e.Body, &ie); err != nil {
		t.Fatal(err)
	}
	return ie
}

// What happens to a guest without a task is seen, recorded and told.
func TestGuestsChangeByThemselves(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		cases := []struct {
			event string
			do    func(id string) error
			want  instance.VMState
		}{
			{"stopped", n.machine.GuestShutdown, instance.VMStopped},
			{"crashed", n.machine.Crash, instance.VMStopped},
			{"paused", func(id string) error { return n.driver.Pause(r.ctx, id) }, instance.VMPaused},
		}
		for _, c := range cases {
			id := r.build("a")
			if err := c.do(id); err != nil {
				t.Fatal(err)
			}
			r.pass(5 * time.Second)
			i := r.show("a", id)
			same(t, "vm_state after "+c.event, i.VMState, c.want)
			if v, ok := r.view("a", id); !ok || v.VMState != c.want {
				t.Errorf("view after %s: %s %v, want %s", c.event, v.VMState, ok, c.want)
			}
			events := r.told(api.EventInstance, id)
			if len(events) < 2 {
				t.Errorf("%s was not told", c.event)
			}
		}
	}, "a")
}

// A guest that goes off while a task holds it is seen when the task has ended.
func TestGuestGoesOffDuringATask(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		release := n.machine.Faults().Add(hangs("Unpause"))
		req := r.cast("a", api.UnpauseInstance, about(id))
		r.pass(time.Second)
		if err := n.machine.GuestShutdown(id); err != nil {
			t.Fatal(err)
		}
		r.pass(time.Second)
		release()
		r.end(req)
		r.pass(time.Second)
		same(t, "vm_state", r.show("a", id).VMState, instance.VMStopped)
	}, "a")
}

// An inventory finds what does not fit: a domain of ours without a record and one of
// another generation are reported and left alone, a record without a domain becomes
// an error that a start mends, and foreign domains are counted and nothing else.
func TestReconcile(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		lost, newer, fine := r.build("a"), r.build("a"), r.build("a")
		n.stop()
		foreign := n.machine.AddForeign("somebody's")
		d := n.machine.Open()
		stray := guest()
		stray.Ports = nil
		if err := d.Define(r.ctx, virt.Definition{Spec: stray, Generation: 1}); err != nil {
			t.Fatal(err)
		}
		if err := d.Start(r.ctx, stray.UUID); err != nil {
			t.Fatal(err)
		}
		if err := n.machine.Crash(lost); err != nil {
			t.Fatal(err)
		}
		if err := d.Undefine(r.ctx, lost, true); err != nil {
			t.Fatal(err)
		}
		s := guest()
		s.UUID, s.Ports = newer, nil
		if err := d.Define(r.ctx, virt.Definition{Spec: s, Generation: 7}); err != nil {
			t.Fatal(err)
		}
		_ = d.Close()
		if err := n.machine.Crash(newer); err != nil { // its definition of the higher generation is what is left
			t.Fatal(err)
		}
		n.start()
		r.pass(15 * time.Second)
		var host api.HostView
		if err := r.call("a", api.GetHostInfo, api.NoArgs{}, &host); err != nil {
			t.Fatal(err)
		}
		problems := strings.Join(host.Problems, "\n")
		for _, id := range []string{lost, newer, stray.UUID} {
			if !strings.Contains(problems, id) {
				t.Errorf("%s is not among the problems:\n%s", id, problems)
			}
		}
		same(t, "problems", len(host.Problems), 3)
		same(t, "vm_state of the lost one", r.show("a", lost).VMState, instance.VMError)
		same(t, "vm_state of the fine one", r.show("a", fine).VMState, instance.VMActive)
		left := n.machine.Open()
		defer func() { _ = left.Close() }()
		for _, id := range []string{foreign, stray.UUID} {
			if dom, err := left.Lookup(r.ctx, id); err != nil || !dom.Active() {
				t.Errorf("domain %s was touched: %+v, %v", id, dom, err)
			}
		}
		r.done(r.cast("a", api.StartInstance, about(lost)))
		same(t, "vm_state of the lost one, started", r.show("a", lost).VMState, instance.VMActive)
		if err := r.call("a", api.ShowInstance, about(foreign), nil); err == nil {
			t.Error("a foreign domain is shown")
		}
	}, "a")
}

// An instance that a task holds for long is looked at now and then, however many
// inventories come by, and the agent's stop waits for the look.
func TestLooksDoNotPileUp(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		looks := &slowLooks{}
		n.stop()
		n.cfg.ReconcileInterval = time.Second
		n.wrap = func(hv agent.Hypervisor) agent.Hypervisor { looks.Hypervisor = hv; return looks }
		n.start()
		release := n.machine.Faults().Add(hangs("Pause"))
		defer release()
		r.cast("a", api.PauseInstance, about(id))
		r.pass(time.Minute)
		before := looks.begun.Load()
		r.pass(time.Minute)
		if got := looks.begun.Load() - before; got == 0 || got > 13 {
			t.Errorf("%d looks in a minute, want one every 5 s", got)
		}
		looks.slow.Store(true)
		for before = looks.begun.Load(); looks.begun.Load() == before; {
			r.pass(10 * time.Millisecond)
		}
		n.stop()
		same(t, "looks that have ended", looks.ended.Load(), looks.begun.Load())
	}, "a")
}

// The network's word about a port reaches the build that waits for it, before or
// after it begins to wait, and the destination of a guest that is on its way.
func TestExternalEvents(t *testing.T) {
	inBubble(t, func(r *rig) {
		plugged := func(s instance.Spec) api.ExternalEventArgs {
			return api.ExternalEventArgs{Events: []api.ExternalEvent{{
				Name: vif.EventPlugged, Instance: s.UUID, Tag: s.Ports[0].ID, Status: "completed",
			}}}
		}
		waiting := func() instance.Spec {
			s := guest()
			s.Ports[0].WaitForEvent = true
			return s
		}
		late, early := waiting(), waiting()
		build := r.cast("a", api.BuildAndRunInstance, api.BuildArgs{Spec: late})
		r.pass(30 * time.Second)
		if d := cmp.Diff([]api.TaskState{api.TaskAccepted, api.TaskRunning}, r.life(build)); d != "" {
			t.Errorf("a build that waits for its port (-want +got):\n%s", d)
		}
		r.done(r.cast("a", api.ExternalInstanceEvent, plugged(late)))
		r.done(build)
		r.done(r.cast("a", api.ExternalInstanceEvent, plugged(early)))
		r.done(r.cast("a", api.BuildAndRunInstance, api.BuildArgs{Spec: early}))
		move := r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: late.UUID, Dest: "b"})
		r.pass(30 * time.Second)
		same(t, "where the guest waits for the other host's port", r.show("a", late.UUID).TaskState, instance.TaskMigrating)
		r.done(r.cast("a", api.ExternalInstanceEvent, plugged(late)))
		r.done(move)
		same(t, "host", r.show("b", late.UUID).Host, "b")
	}, "a", "b")
}

// A task that this version does not know, left by a newer one, ends as failed and
// gives its instance free.
func TestDowngrade(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		inst := r.show("a", id)
		n.stop()
		inst.TaskState = "levitating"
		s, err := state.Open(r.ctx, n.dir, state.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		instances := state.Table[instance.Instance]{Name: "instances", Version: 1}
		tasks := state.Table[map[string]any]{Name: "tasks", Version: 1}
		req := instance.NewUUID()
		err = s.Update(r.ctx, func(tx *state.Tx) error {
			if err := instances.Put(tx, id, inst); err != nil {
				return err
			}
			return tasks.Put(tx, req, map[string]any{
				"id": req, "order": 1000, "sequence": 1000, "style": "cast", "method": "levitate_instance",
				"instance": id, "args": map[string]any{}, "state": "running", "accepted_at": time.Now(),
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		n.start()
		r.failed(req, api.TaskFailed, "unsupported_method")
		same(t, "task_state", r.show("a", id).TaskState, instance.TaskNone)
		r.done(r.cast("a", api.PauseInstance, about(id)))
	}, "a")
}

// A journal in which a later version has written, in whichever table, is not begun with
// and left as it is.
func TestJournalOfALaterVersion(t *testing.T) {
	for _, table := range []string{"instances", "tasks", "ended", "migrations", "settings", "outbox", "outbox_told"} {
		t.Run(table, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				n := r.nodes["a"]
				r.build("a")
				n.stop()
				newer := state.Table[map[string]any]{Name: table, Version: 3}
				s, err := state.Open(r.ctx, n.dir, state.Options{NoSync: true})
				if err == nil {
					err = s.Update(r.ctx, func(tx *state.Tx) error { return newer.Put(tx, "x", map[string]any{"levitates": true}) })
				}
				if err == nil {
					err = s.Close()
				}
				path := filepath.Join(n.dir, state.FileName)
				before, rerr := os.ReadFile(path)
				if err != nil || rerr != nil {
					t.Fatal(err, rerr)
				}
				err = n.begin()
				if !errors.Is(err, state.ErrNewer) || !errors.Is(err, fault.UnsupportedVersion) || !strings.Contains(fault.HintOf(err), path) {
					t.Errorf("Start = %v (hint %q), want unsupported_version and what to do with %s", err, fault.HintOf(err), path)
				}
				n.stop()
				if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
					t.Errorf("the journal was changed, %v", err)
				}
			}, "a")
		})
	}
}

// What a host has is seen at once, not with the next report.
func TestHostViewFollows(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.pass(100 * time.Millisecond) // off the beat of 10 s
		count := func() int {
			t.Helper()
			e, err := r.ctl.Get(r.ctx, rpc.Hosts, []string{"a"})
			if err != nil {
				t.Fatal(err)
			}
			var v api.HostView
			if err := json.Unmarshal(e.Value, &v); err != nil {
				t.Fatal(err)
			}
			return v.Resources.Instances
		}
		id := r.build("a")
		r.pass(time.Second)
		if n := count(); n != 1 {
			t.Errorf("%d instances a second after one was built", n)
		}
		r.done(r.cast("a", api.TerminateInstance, about(id)))
		r.pass(time.Second)
		if n := count(); n != 0 {
			t.Errorf("%d instances a second after the only one was removed", n)
		}
	}, "a")
}

// A host that may not list the views, or can't, still reports, and shows what changes:
// a silent one counts as down.
func TestViewsWithoutAList(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		n.stop()
		var refusal atomic.Pointer[fault.Error]
		refusal.Store(fault.New(fault.Unauthorized, "list", "instances", "permissions violation"))
		n.wrapBus = func(b agent.Bus) agent.Bus { return listless{b, &refusal} }
		n.start()
		r.pass(65 * time.Minute) // off the beat of the inventories
		e, err := r.ctl.Get(r.ctx, rpc.Hosts, []string{"a"})
		if err != nil || time.Since(e.At) > n.cfg.WithDefaults().ReportInterval+time.Second {
			t.Errorf("the host reported at %v, %v, now it is %v", e.At, err, time.Now())
		}
		r.done(r.cast("a", api.PauseInstance, about(id)))
		r.pass(10 * time.Second)
		inst, _ := r.view("a", id)
		same(t, "vm_state in the view", inst.VMState, instance.VMPaused)
	}, "a")
}

// What is in the way of listing the views is said once, however often it is tried, and so is
// its end. A bus that is away is not said.
func TestViewsWithoutAListAreSaid(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		n.stop()
		log, heard := logtest.Record(t)
		r.ctx = logkit.Into(r.ctx, log)
		said := func(what string, want ...string) {
			t.Helper()
			r.pass(time.Hour)
			var got []string
			for _, e := range heard.Entries() {
				if strings.HasPrefix(e.Message, "the views of this host") {
					got = append(got, e.Level)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: said as %q, want %q", what, got, want)
			}
		}
		var refusal atomic.Pointer[fault.Error]
		refusal.Store(fault.New(fault.Unavailable, "list", "", "away").Because(rpc.ErrAway))
		n.wrapBus = func(b agent.Bus) agent.Bus { return listless{b, &refusal} }
		n.start()
		said("away")
		refusal.Store(fault.New(fault.Unauthorized, "list", "instances", "permissions violation"))
		said("a missing right", "warning")
		refusal.Store(fault.New(fault.Unauthorized, "list", "migrations", "permissions violation"))
		said("another one", "warning", "warning")
		refusal.Store(nil)
		said("well again", "warning", "warning", "info")
		refusal.Store(fault.New(fault.Unauthorized, "list", "instances", "permissions violation"))
		said("the first one again", "warning", "warning", "info", "warning")
	}, "a")
}

// A damaged journal is set aside and said among the host's problems; the guest, of
// which nothing is known now, is left alone and listed.
func TestDamagedJournal(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		n.stop()
		path := filepath.Join(n.dir, state.FileName)
		if err := os.Truncate(path, 10_000); err != nil {
			t.Fatal(err)
		}
		n.start()
		r.pass(time.Second)
		var host api.HostView
		if err := r.call("a", api.GetHostInfo, api.NoArgs{}, &host); err != nil {
			t.Fatal(err)
		}
		problems := strings.Join(host.Problems, "\n")
		if !strings.Contains(problems, "journal was damaged and is set aside as "+path+".damaged-") || !strings.Contains(problems, id) {
			t.Errorf("the host's problems:\n%s", problems)
		}
		same(t, "stops of the guest", n.machine.Counts(id).Stops, 0)
		again := r.build("a") // and it works
		r.done(r.cast("a", api.PauseInstance, about(again)))
	}, "a")
}
