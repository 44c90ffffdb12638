package vif_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/vif"
)

const (
	guest = "0b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"
	other = "1b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"
)

var (
	one   = instance.Port{ID: "df8e1f1a-9f5c-4a55-8a5b-0c1d2e3f4a5b", MAC: "52:54:00:00:00:01", MTU: 1450, Binding: instance.BindingBridge, Bridge: "br-int0"}
	two   = instance.Port{ID: "ef8e1f1a-9f5c-4a55-8a5b-0c1d2e3f4a5b", MAC: "52:54:00:00:00:02", Binding: instance.BindingTap}
	three = instance.Port{ID: "ff8e1f1a-9f5c-4a55-8a5b-0c1d2e3f4a5b", MAC: "52:54:00:00:00:03", Binding: instance.BindingBridge, Bridge: "br-int0", WaitForEvent: true}
)

var errShaky = fault.New(fault.Unavailable, "make", "tap", "the kernel is busy just now")

func plugged(name, status string) api.ExternalEvent {
	return api.ExternalEvent{Name: name, Instance: guest, Tag: three.ID, Status: status}
}

// quiet is the test's context without the warnings about tries that fail on purpose.
func quiet(t *testing.T) context.Context { t.Helper(); return logkit.Into(t.Context(), nil) }

// states gives the state of each port, by what Status says.
func states(m *vif.Manager, ports ...instance.Port) []instance.PortState {
	var out []instance.PortState
	for _, s := range m.Status(guest, ports) {
		out = append(out, s.State)
	}
	return out
}

func names(t *testing.T, n vif.Network) []string {
	t.Helper()
	taps, err := n.Taps(quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, tap := range taps {
		out = append(out, tap.Name)
	}
	return out
}

func TestPlugMakesTheFinalDevice(t *testing.T) {
	n := vif.Memory("br-int0")
	m := vif.New(vif.Config{}, n)
	for range 2 { // twice is once
		if err := m.Plug(quiet(t), guest, []instance.Port{one, two}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := n.Look(quiet(t), one.Device())
	want := vif.Tap{Name: "tapdf8e1f1a-9f", Port: one.ID, Instance: guest, MAC: "fe:54:00:00:00:01", MTU: 1450, Bridge: "br-int0", Up: true, Kind: "tap"}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("the device differs (-want +got), error %v:\n%s", err, diff)
	}
	if c := n.Counts(); c.Made != 2 || c.Mended != 0 {
		t.Errorf("Counts() = %+v, want 2 made and none mended", c)
	}
	if got := states(m, one, two, three); !slices.Equal(got, []instance.PortState{"plugged", "plugged", "unplugged"}) {
		t.Errorf("states = %v", got)
	}
	if s := m.Status(other, []instance.Port{one}); s[0].State != instance.PortUnplugged {
		t.Errorf("another instance's view of the port = %+v, want unplugged", s[0])
	}
}

// Only the port that failed is tried again, with growing sleeps, and only so often.
func TestPlugRetriesOnePort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := vif.Memory("br-int0")
		n.Fail("Make "+two.Device(), errShaky, errShaky, errors.New("any error at all"))
		m := vif.New(vif.Config{RetryFirst: time.Second}, n)
		start := time.Now()
		if err := m.Plug(quiet(t), guest, []instance.Port{one, two, three}); err != nil {
			t.Fatal(err)
		}
		// Sleeps of 1, 2 and 3 s, each shortened by at most a fifth.
		if took := time.Since(start); took < 4800*time.Millisecond || took > 6*time.Second {
			t.Errorf("took %s, want between 4.8 s and 6 s", took)
		}
		if c := n.Counts(); c.Made != 3 || c.Mended != 0 {
			t.Errorf("Counts() = %+v, want 3 made, none of them twice", c)
		}
	})
}

func TestPlugGivesUpAndUndoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := vif.Memory("br-int0")
		m := vif.New(vif.Config{MaxRetry: 2}, n)
		if err := m.Plug(quiet(t), guest, []instance.Port{one}); err != nil {
			t.Fatal(err)
		}
		last := fault.New(fault.Unavailable, "make", "tap", "the third and last")
		n.Fail("Make "+three.Device(), errShaky, errShaky, last)
		err := m.Plug(quiet(t), guest, []instance.Port{one, two, three})
		if !errors.Is(err, fault.Unavailable) || !errors.Is(err, last) || !strings.Contains(err.Error(), "try 3 of at most 3") {
			t.Errorf("Plug() = %v, want unavailable, after 3 tries, with the last error", err)
		}
		// one was there before and stays, two is undone.
		if got := names(t, n); !slices.Equal(got, []string{one.Device()}) {
			t.Errorf("left: %v, want only the port that was plugged before", got)
		}
		if got := states(m, one, two, three); !slices.Equal(got, []instance.PortState{"plugged", "unplugged", "failed"}) {
			t.Errorf("states = %v", got)
		}
		if s := m.Status(guest, []instance.Port{three})[0]; s.Fault == nil || !strings.Contains(s.Fault.Message, "third and last") {
			t.Errorf("fault = %v, want it to name the last error", s.Fault)
		}
	})
}

// What somebody has to mend is told at once: no retry, no virtual second passes.
func TestPlugRefusesAtOnce(t *testing.T) {
	ovs, vlan, broken, lost := one, one, one, one
	ovs.Binding, vlan.VLAN, broken.MAC, lost.Bridge = instance.BindingOVS, 7, "x", "br-itn0"
	cases := []struct {
		name string
		port instance.Port
		put  *vif.Tap
		kind fault.Kind
		want string
	}{
		{"ovs", ovs, nil, fault.PreconditionFailed, "binding ovs is not supported"},
		{"vlan on a bridge", vlan, nil, fault.PreconditionFailed, "vlan 7"},
		{"bad port", broken, nil, fault.InvalidArgument, "port.mac"},
		{"no bridge", lost, nil, fault.PreconditionFailed, "no bridge br-itn0"},
		{"a bridge has the name", one, &vif.Tap{Name: one.Device(), Kind: "bridge"}, fault.Conflict, "is a bridge"},
		{"somebody's tap in use", one, &vif.Tap{Name: one.Device(), Kind: "tap", Carrier: true}, fault.Conflict, "not ours and in use"},
		{"another port's tap", one, &vif.Tap{Name: one.Device(), Kind: "tap", Port: two.ID, Instance: other}, fault.Conflict, "belongs to port " + two.ID},
		{"another instance uses it", one, &vif.Tap{Name: one.Device(), Kind: "tap", Port: one.ID, Instance: other, Carrier: true}, fault.Conflict, "in use by instance " + other},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := vif.Memory("br-int0")
				if c.put != nil {
					n.Put(*c.put)
				}
				m, start := vif.New(vif.Config{}, n), time.Now()
				err := m.Plug(quiet(t), guest, []instance.Port{two, c.port})
				if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("Plug() = %v, want %s naming %q", err, c.kind, c.want)
				}
				if took := time.Since(start); took != 0 {
					t.Errorf("took %s, want no retry", took)
				}
				if got := names(t, n); slices.Contains(got, two.Device()) {
					t.Errorf("left: %v, want the other port undone", got)
				}
				if c.put == nil {
					return
				}
				if now, err := n.Look(quiet(t), c.put.Name); err != nil || now != *c.put {
					t.Errorf("the other's device is now %+v (%v)", now, err)
				}
			})
		})
	}
	n := vif.Memory("br-int0", "br-ext")
	if err := vif.New(vif.Config{}, n).Plug(quiet(t), guest, []instance.Port{lost}); fault.HintOf(err) != "did you mean br-int0?" {
		t.Errorf("hint = %q, want the near name", fault.HintOf(err))
	}
}

// A tap that an agent died over, unlabelled, or of an instance that is gone, is taken over.
func TestPlugTakesOverLeftovers(t *testing.T) {
	for _, left := range []vif.Tap{
		{Name: one.Device(), Kind: "tap"},
		{Name: one.Device(), Kind: "tap", Port: one.ID, Instance: other, Up: true},
	} {
		n := vif.Memory("br-int0")
		n.Put(left)
		if err := vif.New(vif.Config{}, n).Plug(quiet(t), guest, []instance.Port{one}); err != nil {
			t.Errorf("Plug() over %+v = %v", left, err)
		}
		if c := n.Counts(); c.Made != 0 || c.Mended != 1 {
			t.Errorf("Counts() = %+v, want one mended", c)
		}
	}
}

func TestPlugEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := vif.Memory("br-int0")
		n.Slow("Make "+two.Device(), time.Hour)
		ctx, cancel := context.WithCancelCause(quiet(t))
		took := fault.New(fault.Cancelled, "terminate_instance", guest, "took over")
		time.AfterFunc(25*time.Second, func() { cancel(took) })
		start := time.Now()
		err := vif.New(vif.Config{}, n).Plug(ctx, guest, []instance.Port{one, two})
		if !errors.Is(err, fault.Cancelled) || !errors.Is(err, took) {
			t.Errorf("Plug() = %v, want the cause", err)
		}
		if time.Since(start) != 25*time.Second {
			t.Errorf("took %s, want 25 s", time.Since(start))
		}
		if got := names(t, n); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
	})
}

// One try is bounded, so that a network that hangs is tried again.
func TestPlugBoundsEachTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := vif.Memory("br-int0")
		n.Slow("Make", time.Hour)
		start := time.Now()
		err := vif.New(vif.Config{MaxRetry: -1, TryTimeout: 7 * time.Second}, n).Plug(quiet(t), guest, []instance.Port{one})
		if !errors.Is(err, fault.Timeout) || time.Since(start) != 7*time.Second {
			t.Errorf("Plug() = %v after %s, want a timeout after 7 s", err, time.Since(start))
		}
	})
}

func TestUnplug(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := vif.Memory("br-int0")
		m := vif.New(vif.Config{MaxRetry: 1}, n)
		all := []instance.Port{one, two, three}
		if err := m.Plug(quiet(t), guest, all); err != nil {
			t.Fatal(err)
		}
		n.Drop(one.Device())                               // gone already
		n.Fail("Remove "+two.Device(), errShaky, errShaky) // for good
		if err := m.Unplug(quiet(t), guest, all); !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), two.ID) {
			t.Errorf("Unplug() = %v, want the error of port two", err)
		}
		if got := states(m, all...); !slices.Equal(got, []instance.PortState{"unplugged", "plugged", "unplugged"}) {
			t.Errorf("states = %v", got)
		}
		for range 2 {
			if err := m.Unplug(quiet(t), guest, all); err != nil {
				t.Errorf("Unplug() again = %v", err)
			}
		}
		if got := names(t, n); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
		n.Put(vif.Tap{Name: one.Device(), Kind: "veth"})
		if err := m.Unplug(quiet(t), guest, all); err != nil {
			t.Errorf("Unplug() beside somebody else's device = %v", err)
		}
		if _, err := n.Look(quiet(t), one.Device()); err != nil {
			t.Errorf("somebody else's device is gone: %v", err)
		}
	})
}

func TestReadyWaitsForDevicesAndEvents(t *testing.T) {
	cases := []struct {
		name string
		do   func(m *vif.Manager, n *vif.MemoryNetwork) // before Ready
		soon func(m *vif.Manager, n *vif.MemoryNetwork) // 42.1 s later
		cfg  vif.Config
		took time.Duration
		kind fault.Kind
		want string
	}{
		{name: "event before the waiter", do: func(m *vif.Manager, _ *vif.MemoryNetwork) {
			m.Event(plugged("network-vif-plugged", "completed"))
		}},
		{name: "event later", soon: func(m *vif.Manager, _ *vif.MemoryNetwork) {
			m.Event(plugged("network-vif-plugged", "completed"))
		}, took: 42100 * time.Millisecond},
		{name: "event failed", soon: func(m *vif.Manager, _ *vif.MemoryNetwork) {
			m.Event(plugged("network-vif-plugged", "failed"))
		}, took: 42100 * time.Millisecond, kind: fault.Unavailable, want: "network-vif-plugged failed"},
		{name: "in progress is not enough", soon: func(m *vif.Manager, _ *vif.MemoryNetwork) {
			m.Event(plugged("network-vif-plugged", "in-progress"))
		}, took: 300 * time.Second, kind: fault.Timeout, want: three.ID + ": no network-vif-plugged"},
		{name: "taken back", do: func(m *vif.Manager, _ *vif.MemoryNetwork) {
			m.Event(plugged("network-vif-plugged", "completed"))
			m.Event(plugged("network-vif-unplugged", "completed"))
		}, took: 300 * time.Second, kind: fault.Timeout, want: "no network-vif-plugged"},
		{name: "no event, own limit", cfg: vif.Config{PluggingTimeout: 20 * time.Second}, took: 20 * time.Second, kind: fault.Timeout, want: "not ready after 20s"},
		{name: "no event, not fatal", cfg: vif.Config{PluggingNotFatal: true}, took: 300 * time.Second},
		{name: "nobody waits", cfg: vif.Config{PluggingTimeout: -1}},
		{name: "device is late", do: func(m *vif.Manager, n *vif.MemoryNetwork) {
			m.Event(plugged("network-vif-plugged", "completed"))
			n.Drop(one.Device())
		}, soon: func(m *vif.Manager, _ *vif.MemoryNetwork) {
			_ = m.Plug(context.Background(), guest, []instance.Port{one})
		}, took: 42500 * time.Millisecond},
		{name: "out of its bridge", do: func(m *vif.Manager, n *vif.MemoryNetwork) {
			m.Event(plugged("network-vif-plugged", "completed"))
			n.Drop("br-int0")
		}, took: 300 * time.Second, kind: fault.Timeout, want: "lacks its place in bridge br-int0"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := vif.Memory("br-int0")
				m := vif.New(c.cfg, n)
				all := []instance.Port{one, two, three}
				if err := m.Plug(quiet(t), guest, all); err != nil {
					t.Fatal(err)
				}
				if c.do != nil {
					c.do(m, n)
				}
				if c.soon != nil {
					timer := time.AfterFunc(42100*time.Millisecond, func() { c.soon(m, n) })
					defer timer.Stop()
				}
				start := time.Now()
				err := m.Ready(quiet(t), guest, all)
				if took := time.Since(start); took != c.took {
					t.Errorf("Ready() took %s, want %s", took, c.took)
				}
				switch {
				case c.kind == "" && err != nil:
					t.Errorf("Ready() = %v, want none", err)
				case c.kind != "" && (!errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want)):
					t.Errorf("Ready() = %v, want %s naming %q", err, c.kind, c.want)
				}
			})
		})
	}
}

func TestReadyEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := vif.New(vif.Config{PluggingNotFatal: true}, vif.Memory("br-int0"))
		cause := errors.New("the migration was aborted")
		ctx, cancel := context.WithCancelCause(quiet(t))
		time.AfterFunc(3*time.Second, func() { cancel(cause) })
		start := time.Now()
		if err := m.Ready(ctx, guest, []instance.Port{two}); !errors.Is(err, cause) || time.Since(start) != 3*time.Second {
			t.Errorf("Ready() = %v after %s, want the cause after 3 s", err, time.Since(start))
		}
	})
}

// Unplug forgets what was heard: the next plug of the port waits for a new word.
func TestEventsAreKeptPerPlug(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := vif.New(vif.Config{PluggingTimeout: time.Minute}, vif.Memory("br-int0"))
		ports := []instance.Port{three}
		m.Event(plugged("network-vif-plugged", "completed"))
		for i, want := range []error{nil, fault.Timeout} {
			if err := m.Plug(quiet(t), guest, ports); err != nil {
				t.Fatal(err)
			}
			if err := m.Ready(quiet(t), guest, ports); !errors.Is(err, want) {
				t.Errorf("Ready() of plug %d = %v, want %v", i+1, err, want)
			}
			if err := m.Unplug(quiet(t), guest, ports); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestEventSaysWhetherItWasForAPort(t *testing.T) {
	m := vif.New(vif.Config{}, vif.Memory("br-int0"))
	steps := []struct {
		name, status, tag string
		want              bool
	}{
		{"network-vif-unplugged", "completed", three.ID, false},
		{"network-changed", "completed", three.ID, false},
		{"network-vif-plugged", "in-progress", three.ID, false},
		{"network-vif-plugged", "completed", three.ID, true},
		{"network-changed", "completed", three.ID, true},
		{"network-vif-deleted", "completed", three.ID, true},
		{"network-vif-deleted", "completed", three.ID, false},
		{"network-vif-plugged", "completed", "", false},
		{"volume-extended", "completed", three.ID, false},
	}
	for _, s := range steps {
		if got := m.Event(api.ExternalEvent{Name: s.name, Instance: guest, Tag: s.tag, Status: s.status}); got != s.want {
			t.Errorf("Event(%s %s %q) = %v, want %v", s.name, s.status, s.tag, got, s.want)
		}
	}
}

// What is kept for ports that nobody plugs is bounded; a port that is plugged keeps its word.
func TestEventsKeptAreBounded(t *testing.T) {
	n := vif.Memory("br-int0")
	m := vif.New(vif.Config{PluggingTimeout: -1}, n)
	if err := m.Plug(quiet(t), guest, []instance.Port{three}); err != nil {
		t.Fatal(err)
	}
	m.Event(plugged("network-vif-plugged", "completed"))
	first := instance.NewUUID()
	m.Event(api.ExternalEvent{Name: "network-vif-plugged", Tag: first, Status: "completed"})
	for range 10_000 {
		m.Event(api.ExternalEvent{Name: "network-vif-plugged", Tag: instance.NewUUID(), Status: "completed"})
	}
	for tag, want := range map[string]bool{first: false, three.ID: true} {
		if got := m.Event(api.ExternalEvent{Name: "network-changed", Tag: tag, Status: "completed"}); got != want {
			t.Errorf("port %s is known: %v, want %v", tag, got, want)
		}
	}
}

func TestActivate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := vif.Memory("br-int0")
		m := vif.New(vif.Config{MaxRetry: 1}, n)
		all := []instance.Port{one, two, three}
		if err := m.Plug(quiet(t), guest, all); err != nil {
			t.Fatal(err)
		}
		before := n.Counts()
		start := time.Now()
		if err := m.Activate(quiet(t), guest, all); err != nil || time.Since(start) != 0 {
			t.Errorf("Activate() of good ports = %v after %s", err, time.Since(start))
		}
		if c := n.Counts(); c.Made != before.Made || c.Mended != 0 {
			t.Errorf("Activate() of good ports changed something: %+v", c)
		}
		// One port won't, another is down: the second doesn't wait for the first.
		down, _ := n.Look(quiet(t), three.Device())
		down.Up = false
		n.Put(down)
		n.Drop(one.Device())
		n.Fail("Make "+one.Device(), errShaky, errShaky, errShaky)
		timer := time.AfterFunc(time.Millisecond, func() {
			if got, _ := n.Look(quiet(t), three.Device()); !got.Up {
				t.Error("the good port waits for the bad one")
			}
		})
		defer timer.Stop()
		if err := m.Activate(quiet(t), guest, all); !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), one.ID) {
			t.Errorf("Activate() = %v, want the error of port one", err)
		}
		if err := m.Activate(quiet(t), guest, all); err != nil {
			t.Errorf("Activate() again = %v", err)
		}
	})
}

func TestCheckNamesEveryReasonAndChangesNothing(t *testing.T) {
	n := vif.Memory("br-int0")
	n.Put(vif.Tap{Name: one.Device(), Kind: "veth"})
	m := vif.New(vif.Config{}, n)
	ovs, lost := two, three
	ovs.ID, ovs.Binding, ovs.Bridge = instance.NewUUID(), instance.BindingOVS, "br-int"
	lost.Bridge = "br-nowhere"
	got, err := m.Check(quiet(t), guest, []instance.Port{one, two, lost, ovs})
	if err != nil || len(got) != 3 {
		t.Fatalf("Check() = %q, %v, want three reasons", got, err)
	}
	for i, want := range []string{"is a veth", "no bridge br-nowhere on this host (make it; these are here: br-int0)", "binding ovs is not supported"} {
		if !strings.Contains(got[i], want) {
			t.Errorf("reason %d = %q, want it to name %q", i, got[i], want)
		}
	}
	if got, err := m.Check(quiet(t), guest, []instance.Port{two, three}); err != nil || got == nil || len(got) != 0 {
		t.Errorf("Check() of good ports = %#v, %v, want an empty slice", got, err)
	}
	n.Fail("Bridges", errShaky)
	if _, err := m.Check(quiet(t), guest, nil); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Check() of a network that can't be asked = %v", err)
	}
	if c := n.Counts(); c.Made+c.Mended+c.Removed != 0 {
		t.Errorf("Counts() = %+v, want no change", c)
	}
}

// Updates: eight at once, one at a time for a port, the newest wins, strangers are left alone.
func TestUpdates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := vif.Memory("br-int0")
		var mu sync.Mutex
		told := map[string][]int{}
		cfg := vif.Config{OnChange: func(_ string, s instance.PortStatus) {
			mu.Lock()
			defer mu.Unlock()
			if s.State == instance.PortPlugged {
				told[s.ID] = append(told[s.ID], s.MTU)
			}
		}}
		m := vif.New(cfg, n)
		var ports []instance.Port
		for i := range 16 {
			p := two
			p.ID = "0000000" + string("0123456789abcdef"[i]) + "-0000-4000-8000-000000000000"
			ports = append(ports, p)
		}
		if err := m.Plug(quiet(t), guest, ports); err != nil {
			t.Fatal(err)
		}
		clear(told)
		n.Slow("Make", time.Second)
		ctx, cancel := context.WithCancel(quiet(t))
		run := green.Spawn(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, m.Run(ctx) })
		for _, mtu := range []int{1400, 1410, 1420} {
			for _, p := range ports {
				p.MTU = mtu
				m.Update(guest, p)
			}
			synctest.Wait()
		}
		m.Update(guest, three)    // not plugged here
		m.Update(other, ports[0]) // not that instance's
		if err := green.Sleep(ctx, 4*time.Second+time.Millisecond); err != nil {
			t.Fatal(err)
		}
		// 16 ports at 8 a second: the first 8 had begun with 1400 and come again, the others went straight to 1420.
		mu.Lock()
		for i, p := range ports {
			want := []int{1400, 1420}
			if i >= 8 {
				want = []int{1420}
			}
			if !slices.Equal(told[p.ID], want) {
				t.Errorf("port %d was told %v, want %v", i, told[p.ID], want)
			}
		}
		mu.Unlock()
		cancel()
		if _, err := run.Wait(quiet(t)); !errors.Is(err, context.Canceled) {
			t.Errorf("Run() = %v, want the context's end", err)
		}
		if _, err := n.Look(quiet(t), three.Device()); !errors.Is(err, fault.NotFound) {
			t.Errorf("an update plugged a port that was not: %v", err)
		}
	})
}

// A later run of the agent knows its taps by their labels.
func TestAdopt(t *testing.T) {
	n := vif.Memory("br-int0")
	if err := vif.New(vif.Config{}, n).Plug(quiet(t), guest, []instance.Port{one}); err != nil {
		t.Fatal(err)
	}
	n.Put(vif.Tap{Name: "tapforeign", Kind: "tap"})
	m := vif.New(vif.Config{}, n)
	if got := states(m, one); got[0] != instance.PortUnplugged {
		t.Errorf("before Adopt the port is %s", got[0])
	}
	if err := m.Adopt(quiet(t)); err != nil {
		t.Fatal(err)
	}
	if got := m.Status(guest, []instance.Port{one, two}); got[0].State != instance.PortPlugged || got[0].Device != one.Device() || got[1].State != instance.PortUnplugged {
		t.Errorf("after Adopt: %+v", got)
	}
	if taps, err := m.Taps(quiet(t)); err != nil || len(taps) != 1 || taps[0].Instance != guest {
		t.Errorf("Taps() = %+v, %v, want ours alone", taps, err)
	}
}

// Any sequence of plugs and unplugs, with a network that fails now and then, leaves
// exactly what was plugged last; after unplugging all, nothing.
func TestSequencesAreIdempotent(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := vif.Memory("br-int0")
		m := vif.New(vif.Config{RetryFirst: time.Nanosecond, MaxRetry: 3}, n)
		all := []instance.Port{one, two, three}
		want := map[string]bool{}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			ports := rapid.SliceOfNDistinct(rapid.SampledFrom(all), 0, 3, func(p instance.Port) string { return p.ID }).Draw(rt, "ports")
			for range rapid.IntRange(0, 3).Draw(rt, "failures") {
				n.Fail(rapid.SampledFrom([]string{"Make", "Remove"}).Draw(rt, "method"), errShaky)
			}
			do, plug := m.Unplug, rapid.Bool().Draw(rt, "plug")
			if plug {
				do = m.Plug
			}
			// The failures that are queued are three a step and shared by the ports, so a few calls get through.
			for try := 0; do(quiet(t), guest, ports) != nil; try++ {
				if try > 50 {
					rt.Fatal("never succeeds")
				}
			}
			for _, p := range ports {
				want[p.Device()] = plug
			}
			var expect []string
			for name, there := range want {
				if there {
					expect = append(expect, name)
				}
			}
			slices.Sort(expect)
			if got := names(t, n); !slices.Equal(got, expect) {
				rt.Fatalf("devices = %v, want %v", got, expect)
			}
		}
		for try := 0; m.Unplug(quiet(t), guest, all) != nil && try < 50; try++ {
			continue
		}
		if got := names(t, n); len(got) != 0 {
			rt.Fatalf("left after unplug: %v", got)
		}
	})
}

// Plugs, unplugs, activations and updates of the same ports at the same time: what is
// unplugged last is gone, and memory and network agree.
func TestAllAtOnce(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 3))
			n := vif.Memory("br-int0")
			n.Slow("Make", 30*time.Millisecond)
			n.Slow("Remove", 20*time.Millisecond)
			m := vif.New(vif.Config{}, n)
			all := []instance.Port{one, two, three}
			ctx, cancel := context.WithCancel(quiet(t))
			run := green.Spawn(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, m.Run(ctx) })
			pool := green.NewPool(100)
			for range 60 {
				p, what, at := all[random.IntN(3)], random.IntN(4), time.Duration(random.IntN(500))*time.Millisecond
				p.MTU = 1400 + random.IntN(50)
				err := pool.SpawnN(ctx, func(ctx context.Context) error {
					if err := green.Sleep(ctx, at); err != nil {
						return err
					}
					switch what {
					case 0:
						return m.Plug(ctx, guest, []instance.Port{p})
					case 1:
						return m.Unplug(ctx, guest, []instance.Port{p})
					case 2:
						return m.Activate(ctx, guest, []instance.Port{p})
					}
					m.Update(guest, p)
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := pool.WaitAll(ctx); err != nil {
				t.Fatal(err)
			}
			if err := m.Unplug(ctx, guest, all); err != nil { // updates may still be at work, or wait
				t.Fatal(err)
			}
			if err := green.Sleep(ctx, time.Minute); err != nil {
				t.Fatal(err)
			}
			if got := names(t, n); len(got) != 0 {
				t.Errorf("seed %d: left %v", seed, got)
			}
			if got := states(m, all...); !slices.Equal(got, []instance.PortState{"unplugged", "unplugged", "unplugged"}) {
				t.Errorf("seed %d: states = %v", seed, got)
			}
			cancel()
			if _, err := run.Wait(quiet(t)); !errors.Is(err, context.Canceled) {
				t.Errorf("Run() = %v", err)
			}
		})
	}
}
