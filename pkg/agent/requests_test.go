package agent_test

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

var wholeLife = []api.TaskState{api.TaskAccepted, api.TaskRunning, api.TaskSucceeded}

// inject puts a message into the stream as any NATS client could, past the
// duplicate window.
func (r *rig) inject(host, method string, h map[string]string, body string) {
	r.t.Helper()
	header := map[string][]string{}
	for k, v := range h {
		header[k] = []string{v}
	}
	if err := r.bus.Inject("compute.cast."+rpc.EscapeHost(host)+"."+method, header, []byte(body)); err != nil {
		r.t.Fatal(err)
	}
}

// The same request with the same id is told its state again and does nothing.
func TestRequestRepeated(t *testing.T) {
	inBubble(t, func(r *rig) {
		id := r.build("a")
		req := r.cast("a", api.PauseInstance, about(id))
		r.done(req)
		r.inject("a", api.PauseInstance, map[string]string{"Compute-Request-Id": req}, `{ "instance" : "`+id+`" }`)
		r.pass(time.Second)
		if d := cmp.Diff(append(append([]api.TaskState{}, wholeLife...), api.TaskSucceeded), r.life(req)); d != "" {
			t.Errorf("told (-want +got):\n%s", d)
		}
		same(t, "number of pauses", r.nodes["a"].machine.Counts(id).Pauses, 1)
	}, "a")
}

// Another request under a used id is refused; the first one's state has the last word.
func TestRequestIDUsedForAnother(t *testing.T) {
	for name, body := range map[string]string{"other method": api.StopInstance, "other arguments": api.PauseInstance} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				id, other := r.build("a"), r.build("a")
				req := r.cast("a", api.PauseInstance, about(id))
				r.done(req)
				r.inject("a", body, map[string]string{"Compute-Request-Id": req}, `{"instance":"`+other+`"}`)
				r.pass(time.Second)
				events := r.told(api.EventTask, req)
				if n := len(events); n != 5 {
					t.Fatalf("%d events, want the three of its life, the refusal and the last again", n)
				}
				refusal, last := taskEvent(t, events[3]), taskEvent(t, events[4])
				if refusal.State != api.TaskRefused || refusal.Error.Kind != fault.Conflict {
					t.Errorf("the other request: %s %v, want refused as a conflict", refusal.State, refusal.Error)
				}
				same(t, "last state", last.State, api.TaskSucceeded)
				same(t, "vm_state of the other", r.show("a", other).VMState, instance.VMActive)
			}, "a")
		})
	}
}

// A message that can't be read never touches the task whose id it bears.
func TestMalformedMessageWithAKnownID(t *testing.T) {
	inBubble(t, func(r *rig) {
		id := r.build("a")
		req := r.cast("a", api.PauseInstance, about(id))
		r.done(req)
		r.inject("a", api.PauseInstance, map[string]string{"Compute-Request-Id": req, "Compute-Expires": "yesterday"}, `{}`)
		r.pass(time.Second)
		r.nodes["a"].stop()
		r.nodes["a"].start()
		r.castAs(req, "a", api.PauseInstance, about(id)) // past the window it is stored again
		r.pass(30 * time.Second)
		last := taskEvent(t, r.told(api.EventTask, req)[len(r.told(api.EventTask, req))-1])
		same(t, "last state", last.State, api.TaskSucceeded)
		same(t, "number of pauses", r.nodes["a"].machine.Counts(id).Pauses, 1)
	}, "a")
}

// What can't be carried out is refused with the right kind, is removed from the
// stream and does not stop what comes behind it.
func TestRefusals(t *testing.T) {
	cases := []struct {
		name, method string
		header       map[string]string
		body         string
		kind         fault.Kind
	}{
		{"unknown method", "fly_instance", nil, `{}`, fault.UnsupportedMethod},
		{"too new", api.StartInstance, map[string]string{"Compute-Version": "1.1"}, `{}`, fault.UnsupportedVersion},
		{"other major", api.StartInstance, map[string]string{"Compute-Version": "2.0"}, `{}`, fault.UnsupportedVersion},
		{"no version", api.StartInstance, map[string]string{"Compute-Version": "new"}, `{}`, fault.InvalidArgument},
		{"no JSON", api.StartInstance, nil, `{`, fault.InvalidArgument},
		{"empty", api.StartInstance, nil, ``, fault.InvalidArgument},
		{"wrong type", api.StartInstance, nil, `{"instance":1}`, fault.InvalidArgument},
		{"bad expiry", api.StartInstance, map[string]string{"Compute-Expires": "soon"}, `{}`, fault.InvalidArgument},
		{"expired", api.StartInstance, map[string]string{"Compute-Expires": "1999-12-31T23:59:59Z"}, `{}`, fault.Expired},
		{"a call", api.ShowInstance, nil, `{}`, fault.InvalidArgument},
		{"unknown instance", api.StartInstance, nil, `{"instance":"` + instance.NewUUID() + `"}`, fault.NotFound},
	}
	inBubble(t, func(r *rig) {
		ids := make([]string, len(cases))
		for i, c := range cases {
			ids[i] = instance.NewUUID()
			h := map[string]string{"Compute-Request-Id": ids[i]}
			maps.Copy(h, c.header)
			r.inject("a", c.method, h, c.body)
		}
		r.inject("a", api.StartInstance, nil, `{}`) // without any id
		id := r.build("a")
		for i, c := range cases {
			e := r.faultOf(ids[i], api.TaskRefused, c.kind)
			if len(r.life(ids[i])) != 1 || e.Error() == "" {
				t.Errorf("%s: told %v, want one refusal", c.name, r.life(ids[i]))
			}
		}
		anonymous := 0
		for _, e := range r.told(api.EventTask, "") {
			if strings.HasPrefix(taskEvent(t, e).RequestID, "malformed-") {
				anonymous++
			}
		}
		same(t, "refusals without an id", anonymous, 1)
		r.pass(time.Minute)
		same(t, "vm_state behind them", r.show("a", id).VMState, instance.VMActive)
		reader, err := r.nodes["a"].conn.Casts(r.ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		n, err := reader.Unacked(r.ctx)
		if err != nil || n != 0 {
			t.Errorf("%d casts are not acknowledged (%v)", n, err)
		}
		_ = reader.Close()
	}, "a")
}

// Members that are not known are ignored, and an older minor is served.
func TestVersionSkew(t *testing.T) {
	inBubble(t, func(r *rig) {
		id, req := r.build("a"), instance.NewUUID()
		r.inject("a", api.PauseInstance, map[string]string{"Compute-Request-Id": req}, `{"instance":"`+id+`","colour":"red"}`)
		r.done(req)
		m := r.message(instance.NewUUID(), api.ShowInstance, about(id))
		m.Version = "1.7"
		if _, err := r.ctl.Call(r.ctx, "a", m); !errors.Is(err, fault.UnsupportedVersion) {
			t.Errorf("a call of version 1.7: %v, want unsupported_version", err)
		}
		if _, err := r.ctl.Call(r.ctx, "a", r.message(instance.NewUUID(), "fly", nil)); !errors.Is(err, fault.UnsupportedMethod) {
			t.Errorf("an unknown call: %v, want unsupported_method", err)
		}
	}, "a")
}

// A call that changes something is carried out once: repeated it gets its first
// reply, also after a restart, and with other arguments a conflict.
func TestCallRepeated(t *testing.T) {
	inBubble(t, func(r *rig) {
		req := instance.NewUUID()
		off := r.message(req, api.SetHostEnabled, api.HostEnabledArgs{Enabled: false, Reason: "repair"})
		first, err := r.ctl.Call(r.ctx, "a", off)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.call("a", api.SetHostEnabled, api.HostEnabledArgs{Enabled: true}, nil); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			again, err := r.ctl.Call(r.ctx, "a", off)
			if err != nil || string(again) != string(first) {
				t.Errorf("repeated: %s, %v, want the first reply %s", again, err, first)
			}
			r.nodes["a"].stop()
			r.nodes["a"].start()
		}
		var host api.HostView
		if err := r.call("a", api.GetHostInfo, api.NoArgs{}, &host); err != nil || !host.Enabled {
			t.Errorf("the host is enabled: %v (%v), want true: the repetition did nothing", host.Enabled, err)
		}
		other := r.message(req, api.SetHostEnabled, api.HostEnabledArgs{Enabled: false, Reason: "another"})
		if _, err := r.ctl.Call(r.ctx, "a", other); !errors.Is(err, fault.Conflict) {
			t.Errorf("the id for another request: %v, want a conflict", err)
		}
	}, "a")
}

// Two calls with one id at the same moment, again and again: one effect, one reply.
func TestCallTwiceAtOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		for range 20 {
			m := r.message(instance.NewUUID(), api.SetHostEnabled, api.HostEnabledArgs{Enabled: false, Reason: instance.NewUUID()})
			replies := make(chan string, 4)
			for range cap(replies) {
				go func() {
					body, err := r.ctl.Call(r.ctx, "a", m)
					if err != nil {
						t.Error(err)
					}
					var v api.HostView
					_ = json.Unmarshal(body, &v)
					replies <- v.DisabledReason + v.ReportedAt.String() + string(body)
				}()
			}
			first := <-replies
			for range cap(replies) - 1 {
				same(t, "reply", <-replies, first)
			}
		}
	}, "a")
}

// The switch refuses what would come, and nothing else.
func TestHostDisabled(t *testing.T) {
	inBubble(t, func(r *rig) {
		here, there := r.build("a"), r.build("b")
		if err := r.call("a", api.SetHostEnabled, api.HostEnabledArgs{Enabled: false, Reason: "disk swap"}, nil); err != nil {
			t.Fatal(err)
		}
		r.nodes["a"].stop()
		r.nodes["a"].start()
		e := r.faultOf(r.cast("a", api.BuildAndRunInstance, api.BuildArgs{Spec: guest()}), api.TaskRefused, fault.Conflict)
		if !strings.Contains(e.Error(), "disk swap") {
			t.Errorf("refused with %v, want the reason in it", e)
		}
		r.failed(r.cast("b", api.LiveMigration, api.MigrateArgs{Instance: there, Dest: "a"}), api.TaskFailed, fault.PreconditionFailed)
		r.done(r.cast("a", api.PauseInstance, about(here)))
		r.done(r.cast("a", api.UnpauseInstance, about(here)))
		r.done(r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: here, Dest: "b"}))
		if err := r.call("a", api.SetHostEnabled, api.HostEnabledArgs{Enabled: true}, nil); err != nil {
			t.Fatal(err)
		}
		r.done(r.cast("b", api.LiveMigration, api.MigrateArgs{Instance: here, Dest: "a"}))
	}, "a", "b")
}

// Reading pauses at max_accepted_tasks and goes on when there is room; nothing is lost.
func TestBackpressure(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		n.stop()
		n.cfg.MaxAcceptedTasks = 10
		n.start()
		ids := make([]string, 40)
		guests := make([]string, len(ids))
		for i := range ids {
			guests[i] = r.build("a")
		}
		hang := n.machine.Faults().Add(hangs("Pause"))
		for i := range ids {
			ids[i] = r.cast("a", api.PauseInstance, about(guests[i]))
		}
		r.pass(20 * time.Second)
		accepted := 0
		for _, id := range ids {
			accepted += min(1, len(r.life(id)))
		}
		same(t, "tasks accepted while none ends", accepted, 10)
		if err := r.call("a", api.GetHostInfo, api.NoArgs{}, nil); err != nil {
			t.Errorf("a call while reading pauses: %v", err)
		}
		hang()
		for i, id := range ids {
			r.done(id)
			same(t, "number of pauses", n.machine.Counts(guests[i]).Pauses, 1)
		}
	}, "a")
}

// Ended tasks are forgotten by age and by count; an id that is forgotten is new.
func TestForgetting(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		n.stop()
		n.cfg.TasksKept = 20
		n.start()
		id := r.build("a")
		var old []string
		for range 40 {
			old = append(old, r.cast("a", api.PauseInstance, about(id)))
		}
		r.done(old[39])
		r.pass(time.Minute)
		reborn := func(req string) bool {
			r.inject("a", api.PauseInstance, map[string]string{"Compute-Request-Id": req}, `{"instance":"`+id+`"}`)
			r.pass(time.Second)
			life := r.life(req)
			return len(life) >= 3 && cmp.Equal(life[len(life)-3:], wholeLife)
		}
		same(t, "one that is remembered has a new life", reborn(old[39]), false)
		same(t, "one of too many has a new life", reborn(old[0]), true)
		r.pass(25 * time.Hour)
		same(t, "one that ended 25 h ago has a new life", reborn(old[39]), true)
	}, "a")
}

// A cast that says nothing of its expiry is refused when it is read after
// cast_default_expiry, counted from when it was sent; one that says more is not.
func TestDefaultExpiry(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		n.stop()
		n.cfg.TaskRetention = 7 * 24 * time.Hour
		n.start()
		id := r.build("a")
		n.stop()
		late := r.cast("a", api.PauseInstance, about(id))
		patient := r.message(instance.NewUUID(), api.PauseInstance, about(id))
		patient.Expires = time.Now().Add(48 * time.Hour)
		if err := r.ctl.Cast(r.ctx, "a", patient); err != nil {
			t.Fatal(err)
		}
		r.pass(23*time.Hour + 50*time.Minute)
		inTime := r.cast("a", api.SuspendInstance, about(id))
		r.pass(20 * time.Minute)
		n.start()
		r.done(inTime)
		r.done(patient.RequestID)
		if e := r.faultOf(late, api.TaskRefused, fault.Expired); e.Hint == "" {
			t.Errorf("the refusal has no hint: %v", e)
		}
		same(t, "pauses", n.machine.Counts(id).Pauses, 1)
	}, "a")
}
