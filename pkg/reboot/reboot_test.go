package reboot_test

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/reboot"
	"github.com/compute-agent/compute-agent/pkg/vif"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

const id = "0b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"

// rig is one host with one guest that has been up for a second.
type rig struct {
	*fake.Driver
	t    *testing.T
	host *fake.Host
	net  *vif.MemoryNetwork
	nics *vif.Manager
	def  virt.Definition
	id   int // the guest's domain id at the beginning
	at   time.Time

	deaf bool // events are lost
	mu   sync.Mutex
	asks []time.Duration // when the guest was asked, by whatever method
}

// Shutdown remembers when it was called.
func (r *rig) Shutdown(ctx context.Context, id string, how virt.ShutdownMethod) error {
	r.mu.Lock()
	r.asks = append(r.asks, time.Since(r.at))
	r.mu.Unlock()
	return r.Driver.Shutdown(ctx, id, how)
}

// Subscribe loses every event of a deaf rig.
func (r *rig) Subscribe(fn func(virt.Event)) (cancel func()) {
	if r.deaf {
		return func() {}
	}
	return r.Driver.Subscribe(fn)
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) look() virt.Domain {
	r.t.Helper()
	d, err := r.Lookup(r.ctx(), id)
	r.must(err)
	return d
}

// vanish takes the domain away, as somebody with virsh could.
func (r *rig) vanish() {
	r.must(r.Destroy(r.ctx(), id))
	r.must(r.Undefine(r.ctx(), id, true))
}

// restart is somebody else restarting the guest.
func (r *rig) restart() {
	r.must(r.Destroy(r.ctx(), id))
	r.must(r.Start(r.ctx(), id))
}

func (r *rig) ctx() context.Context { return quiet(r.t) }

// quiet is the test's context without the warnings about what fails or hangs on purpose.
func quiet(t *testing.T) context.Context {
	t.Helper()
	return green.WithLogger(logkit.Into(t.Context(), nil), func(context.Context, string, error) {})
}

// later does something after d, unless the test is over before.
func (r *rig) later(d time.Duration, do func()) {
	timer := time.AfterFunc(d, do)
	r.t.Cleanup(func() { timer.Stop() })
}

func (r *rig) rebooter(c reboot.Config) *reboot.Rebooter {
	r.at = time.Now()
	return reboot.New(c, r, r.nics)
}

// withRig runs a test in virtual time.
func withRig(t *testing.T, metadata map[string]string, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx := quiet(t)
		h, err := fake.NewHost(fake.NewWorld(ctx), fake.Config{Name: "a"})
		if err != nil {
			t.Fatal(err)
		}
		r := &rig{Driver: h.Open(), t: t, host: h, net: vif.Memory("br-int0")}
		defer func() { r.must(r.Close()) }()
		r.nics = vif.New(vif.Config{MaxRetry: -1}, r.net)
		r.def = virt.Definition{Generation: 1, Spec: instance.Spec{
			UUID: id, Name: "web1", VCPUs: 1, MemoryMiB: 128, Metadata: metadata,
			Ports: []instance.Port{{ID: "df8e1f1a-9f5c-4a55-8a5b-0c1d2e3f4a5b", MAC: "52:54:00:00:00:01", Binding: instance.BindingBridge, Bridge: "br-int0"}},
		}}
		r.must(r.nics.Plug(ctx, id, r.def.Spec.Ports))
		r.must(r.Define(ctx, r.def))
		r.must(r.Start(ctx, id))
		<-time.After(time.Second)
		r.id = r.look().ID
		test(r)
	})
}

var (
	ignores = map[string]string{"fake.acpi": "ignores"}
	agent   = map[string]string{"fake.acpi": "ignores", "fake.agent": "true"}
)

const answer = 100 * time.Millisecond // the fake guest goes off so long after it was asked

// The rows of nova's table of edge cases, and what else may happen to a soft reboot.
func TestSoft(t *testing.T) {
	refuse := fault.New(fault.Conflict, "Shutdown", id, "refused")
	cases := []struct {
		name   string
		guest  map[string]string
		cfg    reboot.Config
		before func(r *rig)
		typ    string
		took   time.Duration
		why    string
		asks   []time.Duration
		same   bool // the guest was not started by this reboot
	}{
		{name: "answers", typ: reboot.Soft, took: answer, why: "went off and was started again", asks: []time.Duration{0}},
		{
			name: "answers, events are lost", before: func(r *rig) { r.deaf = true }, typ: reboot.Soft, took: 500 * time.Millisecond,
			why: "went off", asks: []time.Duration{0},
		},
		{name: "off", before: func(r *rig) { r.must(r.Destroy(r.ctx(), id)); r.id = -1 }, typ: reboot.Hard, why: "it was off"},
		{name: "paused", before: func(r *rig) { r.must(r.Pause(r.ctx(), id)) }, typ: reboot.Hard, why: "it is paused"},
		{name: "saved", before: func(r *rig) { r.must(r.Save(r.ctx(), id)) }, typ: reboot.Hard, why: "its memory was saved"},
		{name: "gone", before: func(r *rig) { r.vanish(); r.id = -1 }, typ: reboot.Hard, why: "its domain is gone"},
		{name: "vanishes while we wait", guest: ignores, before: func(r *rig) {
			r.deaf = true
			r.later(3200*time.Millisecond, r.vanish)
		}, typ: reboot.Hard, took: 3500 * time.Millisecond, why: "its domain is gone", asks: []time.Duration{0}},
		{
			name: "ignores", guest: ignores, typ: reboot.Hard, took: 120 * time.Second, why: "did not go off within 2m0s",
			asks: []time.Duration{0, 30 * time.Second},
		},
		{
			name: "ignores, events are lost", guest: ignores, before: func(r *rig) { r.deaf = true }, typ: reboot.Hard, took: 120 * time.Second,
			why: "did not go off within 2m0s", asks: []time.Duration{0, 30 * time.Second},
		},
		{
			name: "only the agent answers", guest: agent, typ: reboot.Soft, took: 30*time.Second + answer, why: "went off",
			asks: []time.Duration{0, 30 * time.Second},
		},
		{name: "the first method is refused", guest: agent, before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Shutdown", Err: refuse, Times: 1})
		}, typ: reboot.Soft, took: answer, why: "went off", asks: []time.Duration{0, 0}},
		{name: "all methods are refused", before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Shutdown", Err: refuse})
		}, typ: reboot.Hard, why: "no way to ask it was accepted", asks: []time.Duration{0, 0}},
		{name: "a request hangs, the next one works", before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Shutdown", Hang: true, Times: 1})
		}, typ: reboot.Soft, took: 40*time.Second + answer, why: "went off", asks: []time.Duration{0, 30 * time.Second, 40 * time.Second}},
		{name: "a request hangs, the guest goes off by itself", before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Shutdown", Hang: true})
			r.later(3*time.Second, func() { r.must(r.host.GuestShutdown(id)) })
		}, typ: reboot.Soft, took: 3 * time.Second, why: "went off", asks: []time.Duration{0}},
		{name: "crashes", guest: ignores, before: func(r *rig) {
			r.later(2*time.Second, func() { r.must(r.host.Crash(id)) })
		}, typ: reboot.Soft, took: 2 * time.Second, why: "went off", asks: []time.Duration{0}},
		{name: "restarts itself", guest: ignores, before: func(r *rig) {
			r.later(5*time.Second, func() { r.must(r.host.GuestReboot(id)) })
		}, typ: reboot.Soft, took: 5 * time.Second, why: "restarted itself", asks: []time.Duration{0}, same: true},
		{name: "somebody restarts it", guest: ignores, before: func(r *rig) {
			r.deaf = true
			r.later(5200*time.Millisecond, r.restart)
		}, typ: reboot.Soft, took: 5500 * time.Millisecond, why: "somebody restarted it", asks: []time.Duration{0}},
		{name: "somebody restarted it and it is paused for good", before: func(r *rig) {
			r.restart()
			r.must(r.Pause(r.ctx(), id))
		}, typ: reboot.Hard, took: 120 * time.Second, why: "it was restarted, and is paused"},
		{name: "somebody restarted it and it is paused for a moment", before: func(r *rig) {
			r.restart()
			r.must(r.Pause(r.ctx(), id))
			r.later(700*time.Millisecond, func() { r.must(r.Unpause(r.ctx(), id)) })
		}, typ: reboot.Soft, took: 700 * time.Millisecond, why: "somebody restarted it"},
		{name: "can't be started again, then can", before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Start", Err: errors.New("no memory just now"), Times: 1})
		}, typ: reboot.Hard, took: answer, why: "could not be started again: Start " + id + ": no memory just now", asks: []time.Duration{0}},
		{name: "the hypervisor is away for a while", before: func(r *rig) {
			r.host.Disconnect()
			r.later(15*time.Second, r.host.Reconnect)
		}, typ: reboot.Soft, took: 15*time.Second + answer, why: "went off", asks: []time.Duration{15 * time.Second}},
		{name: "no time to answer", cfg: reboot.Config{WaitSoftReboot: -1}, typ: reboot.Hard, why: "did not go off within 0s: it still runs"},
		{name: "looks hang", before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Lookup", Hang: true, Times: 4})
		}, typ: reboot.Hard, took: 120 * time.Second, why: "it could not be looked at"},
		{name: "resumed, the guest went off meanwhile", before: func(r *rig) { r.must(r.Destroy(r.ctx(), id)) }, typ: reboot.Soft, why: "went off"},
		{name: "resumed, it was started meanwhile", before: func(r *rig) { r.restart() }, typ: reboot.Soft, why: "somebody restarted it"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			withRig(t, c.guest, func(r *rig) {
				before := r.id
				if c.before != nil {
					c.before(r)
				}
				got, err := r.rebooter(c.cfg).Soft(r.ctx(), r.def, r.id)
				if err != nil || got.Type != c.typ || got.Took != c.took || !strings.Contains(got.Reason, c.why) {
					t.Fatalf("Soft() = %+v, %v; want %s after %s, because %q", got, err, c.typ, c.took, c.why)
				}
				if !slices.Equal(r.asks, c.asks) {
					t.Errorf("the guest was asked at %v, want %v", r.asks, c.asks)
				}
				if now := r.look(); now.State != virt.Running || (now.ID == before) != c.same {
					t.Errorf("the guest is %s with id %d, before %d", now.State, now.ID, before)
				}
				if taps, _ := r.net.Taps(r.ctx()); len(taps) != 1 {
					t.Errorf("taps = %v, want the guest's", taps)
				}
			})
		})
	}
}

// A soft reboot keeps the definition and the ports; a hard one builds both anew from the record.
func TestWhatIsRebuilt(t *testing.T) {
	withRig(t, nil, func(r *rig) {
		r.def.Spec.VCPUs = 2
		rb := r.rebooter(reboot.Config{})
		if _, err := rb.Soft(r.ctx(), r.def, r.id); err != nil {
			t.Fatal(err)
		}
		if c := r.net.Counts(); r.look().VCPUs != 1 || c.Removed != 0 || c.Made != 1 {
			t.Errorf("after soft: %d vCPUs, ports %+v; want nothing rebuilt", r.look().VCPUs, c)
		}
		if _, err := rb.Hard(r.ctx(), r.def, r.look().ID); err != nil {
			t.Fatal(err)
		}
		if c := r.net.Counts(); r.look().VCPUs != 2 || c.Removed != 1 || c.Made != 2 {
			t.Errorf("after hard: %d vCPUs, ports %+v; want both rebuilt", r.look().VCPUs, c)
		}
	})
}

func TestHard(t *testing.T) {
	boom := errors.New("boom")
	cases := []struct {
		name   string
		cfg    reboot.Config
		before func(r *rig)
		took   time.Duration
		why    string     // of success
		kind   fault.Kind // of failure
		err    string
		starts int // by this reboot
		off    bool
	}{
		{name: "running", why: "asked for", starts: 1},
		{name: "running, events are lost", before: func(r *rig) { r.deaf = true }, why: "asked for", starts: 1},
		{name: "off", before: func(r *rig) { r.must(r.Destroy(r.ctx(), id)); r.id = -1 }, why: "asked for", starts: 1},
		{name: "paused", before: func(r *rig) { r.must(r.Pause(r.ctx(), id)) }, why: "asked for", starts: 1},
		{name: "gone", before: func(r *rig) { r.vanish(); r.id = -1 }, why: "asked for", starts: 1},
		{name: "its tap is gone", before: func(r *rig) { r.net.Drop("tapdf8e1f1a-9f") }, why: "asked for", starts: 1},
		{name: "a port can't be unplugged", before: func(r *rig) { r.net.Fail("Remove", boom) }, why: "asked for", starts: 1},
		{name: "resumed, it has happened", before: func(r *rig) { r.restart() }, why: "had happened already"},
		{name: "resumed, it was off already", before: func(r *rig) { r.must(r.Destroy(r.ctx(), id)) }, why: "asked for", starts: 1},
		{name: "vanishes before its start", before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Start", Delay: time.Second, Times: 1})
			r.later(500*time.Millisecond, func() { r.must(r.Undefine(r.ctx(), id, true)) })
		}, took: 2 * time.Second, why: "asked for", starts: 1},
		{name: "the answer of the start is lost", before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Start", Err: boom, After: true, Times: 1})
		}, took: time.Second, why: "asked for", starts: 1},
		{name: "never starts", before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Start", Err: boom})
		}, took: 3 * time.Second, kind: fault.Internal, err: "boom", off: true},
		{name: "the start hangs", before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Start", Hang: true})
		}, took: 363 * time.Second, kind: fault.Timeout, err: "does not run 2m0s after its start", off: true},
		{name: "the start hangs longer than the whole may take", cfg: reboot.Config{HardRebootTimeout: 100 * time.Second}, before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Start", Hang: true})
		}, took: 100 * time.Second, kind: fault.Timeout, err: "not over after 1m40s", off: true},
		{name: "the power can't be taken", before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Destroy", Hang: true})
		}, took: 183 * time.Second, kind: fault.Timeout, err: "reboot: destroy"},
		{name: "one try only", cfg: reboot.Config{MaxRetry: -1}, before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Destroy", Err: boom, Times: 1})
		}, kind: fault.Internal, err: "boom"},
		{name: "a port can't be plugged", before: func(r *rig) { r.net.Drop("br-int0") }, kind: fault.PreconditionFailed, err: "no bridge br-int0", off: true},
		{name: "the host can't run the record", before: func(r *rig) { r.def.Spec.Machine = "m68k" }, kind: fault.PreconditionFailed, err: "m68k", off: true},
		{
			name: "the hypervisor is away", before: func(r *rig) { r.host.Disconnect(); r.later(time.Minute, r.host.Reconnect) },
			kind: fault.Unavailable, err: "reboot " + id,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			withRig(t, nil, func(r *rig) {
				if c.before != nil {
					c.before(r)
				}
				starts := r.host.Counts(id).Starts
				rb := r.rebooter(c.cfg)
				got, err := rb.Hard(r.ctx(), r.def, r.id)
				if took := time.Since(r.at); took != c.took {
					t.Errorf("took %s, want %s", took, c.took)
				}
				if c.kind != "" {
					if !errors.Is(err, c.kind) || fault.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.err) {
						t.Errorf("Hard() = %+v, %v; want %s naming %q", got, err, c.kind, c.err)
					}
					r.host.Faults().Clear()
					r.host.Reconnect()
					if off := !r.look().Active(); off != c.off {
						t.Errorf("off: %v, want %v", off, c.off)
					}
					return
				}
				if err != nil || got.Type != reboot.Hard || !strings.Contains(got.Reason, c.why) || got.Took != c.took {
					t.Fatalf("Hard() = %+v, %v; want it because %q", got, err, c.why)
				}
				if now := r.look(); now.State != virt.Running || now.ID == r.id {
					t.Errorf("the guest is %s with id %d, before %d", now.State, now.ID, r.id)
				}
				if n := r.host.Counts(id).Starts - starts; n != c.starts {
					t.Errorf("started %d times, want %d", n, c.starts)
				}
				if taps, _ := r.net.Taps(r.ctx()); len(taps) != 1 {
					t.Errorf("taps = %v, want the guest's", taps)
				}
			})
		})
	}
}

func TestStop(t *testing.T) {
	boom := errors.New("boom")
	everyTen := []time.Duration{0, 10 * time.Second, 20 * time.Second, 30 * time.Second, 40 * time.Second, 50 * time.Second}
	cases := []struct {
		name   string
		guest  map[string]string
		dirty  bool // not clean
		cfg    reboot.Config
		before func(r *rig)
		took   time.Duration
		asks   []time.Duration
		gone   bool
		err    string
	}{
		{name: "answers", took: answer, asks: []time.Duration{0}},
		{name: "answers, events are lost", before: func(r *rig) { r.deaf = true }, took: 500 * time.Millisecond, asks: []time.Duration{0}},
		{name: "ignores", guest: ignores, took: 60 * time.Second, asks: everyTen},
		{name: "ignores, and something happens all the time", guest: ignores, before: func(r *rig) {
			for i := range 40 {
				r.later(time.Duration(i)*1300*time.Millisecond+7*time.Millisecond, func() { r.must(r.host.GuestReboot(id)) })
			}
		}, took: 60 * time.Second, asks: everyTen},
		{name: "is asked again until it answers", guest: map[string]string{"fake.boot": "25s"}, took: 30*time.Second + answer, asks: everyTen[:4]},
		{name: "a request hangs", before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Shutdown", Hang: true, Times: 1})
		}, cfg: reboot.Config{Methods: []virt.ShutdownMethod{virt.ShutdownACPI}}, took: 40*time.Second + answer, asks: []time.Duration{0, 40 * time.Second}},
		{name: "by force", dirty: true},
		{name: "never asks", cfg: reboot.Config{ShutdownTimeout: -1}},
		{name: "off", before: func(r *rig) { r.must(r.Destroy(r.ctx(), id)) }},
		{name: "gone", before: func(r *rig) { r.vanish() }, gone: true},
		{name: "gone, by force", dirty: true, before: func(r *rig) { r.vanish() }, gone: true},
		{name: "paused", before: func(r *rig) { r.must(r.Pause(r.ctx(), id)) }},
		{name: "vanishes while we wait", guest: ignores, before: func(r *rig) {
			r.deaf = true
			r.later(3200*time.Millisecond, r.vanish)
		}, took: 3500 * time.Millisecond, asks: everyTen[:1], gone: true},
		{name: "the power can't be taken at first", dirty: true, before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Destroy", Err: boom, Times: 2})
		}, took: 3 * time.Second},
		{name: "the power can't be taken", dirty: true, before: func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Destroy", Err: boom})
		}, took: 3 * time.Second, err: "boom"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			withRig(t, c.guest, func(r *rig) {
				if c.before != nil {
					c.before(r)
				}
				rb := r.rebooter(c.cfg)
				err := rb.Stop(r.ctx(), id, !c.dirty)
				if took := time.Since(r.at); took != c.took {
					t.Errorf("took %s, want %s", took, c.took)
				}
				if !slices.Equal(r.asks, c.asks) {
					t.Errorf("the guest was asked at %v, want %v", r.asks, c.asks)
				}
				if c.err != "" {
					if err == nil || !strings.Contains(err.Error(), c.err) {
						t.Errorf("Stop() = %v, want it to name %q", err, c.err)
					}
					return
				}
				if err != nil {
					t.Errorf("Stop() = %v", err)
				}
				if d, err := r.Lookup(r.ctx(), id); d.Active() && err == nil || errors.Is(err, fault.NotFound) != c.gone {
					t.Errorf("afterwards: %+v, %v", d, err)
				}
			})
		})
	}
}

// Another request takes over: its cause comes back at that moment, whatever we were
// in, and the guest stays as it is.
func TestTakeover(t *testing.T) {
	hang := func(method string) func(r *rig) {
		return func(r *rig) { r.host.Faults().Add(fake.Fault{Method: method, Hang: true}) }
	}
	soft := func(ctx context.Context, r *rig, rb *reboot.Rebooter) error {
		_, err := rb.Soft(ctx, r.def, r.id)
		return err
	}
	hard := func(ctx context.Context, r *rig, rb *reboot.Rebooter) error {
		_, err := rb.Hard(ctx, r.def, r.id)
		return err
	}
	stop := func(ctx context.Context, _ *rig, rb *reboot.Rebooter) error { return rb.Stop(ctx, id, true) }
	cases := []struct {
		name   string
		guest  map[string]string
		before func(r *rig)
		do     func(ctx context.Context, r *rig, rb *reboot.Rebooter) error
		off    bool
	}{
		{"soft, waiting", ignores, func(*rig) {}, soft, false},
		{"soft, a request hangs", nil, hang("Shutdown"), soft, false},
		{"soft, a look hangs", nil, hang("Lookup"), soft, false},
		{"soft, starting again", nil, hang("Start"), soft, true},
		{"hard, destroying", nil, hang("Destroy"), hard, false},
		{"hard, unplugging", nil, func(r *rig) { r.net.Slow("Remove", time.Hour) }, hard, true},
		{"hard, plugging", nil, func(r *rig) { r.net.Slow("Make", time.Hour) }, hard, true},
		{"hard, defining", nil, hang("Define"), hard, true},
		{"hard, starting", nil, hang("Start"), hard, true},
		{"hard, between two tries", nil, func(r *rig) {
			r.host.Faults().Add(fake.Fault{Method: "Start", Err: errors.New("boom"), Delay: 2 * time.Second})
		}, hard, true},
		{"stop, waiting", ignores, func(*rig) {}, stop, false},
		{"stop, destroying", map[string]string{"fake.acpi": "ignores"}, hang("Destroy"), func(ctx context.Context, _ *rig, rb *reboot.Rebooter) error {
			return rb.Stop(ctx, id, false)
		}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			withRig(t, c.guest, func(r *rig) {
				c.before(r)
				cause := fault.New(fault.Cancelled, "terminate_instance", id, "took over")
				ctx, cancel := context.WithCancelCause(r.ctx())
				defer cancel(nil)
				r.later(2500*time.Millisecond, func() { cancel(cause) })
				err := c.do(ctx, r, r.rebooter(reboot.Config{}))
				if took := time.Since(r.at); !errors.Is(err, cause) || took != 2500*time.Millisecond {
					t.Errorf("= %v after %s, want the cause after 2.5 s", err, took)
				}
				r.host.Faults().Clear()
				synctest.Wait()
				if d := r.look(); d.Active() == c.off {
					t.Errorf("the guest is %s, off wanted: %v", d.State, c.off)
				}
				if d := r.look(); !c.off && d.ID != r.id {
					t.Errorf("the guest has id %d, before %d", d.ID, r.id)
				}
			})
		})
	}
}

// Whatever else happens to the guest meanwhile, in whatever order: a soft reboot ends in
// time, and its guest runs anew, unless somebody paused it in the end.
func TestSoftAmongOtherPeople(t *testing.T) {
	for seed := range uint64(150) {
		random := rand.New(rand.NewPCG(seed, 7))
		guest := []map[string]string{nil, ignores, agent}[random.IntN(3)]
		withRig(t, guest, func(r *rig) {
			r.deaf = random.IntN(2) == 0
			var resets atomic.Int32
			others := map[string]func(){
				"pause":    func() { _ = r.Pause(r.ctx(), id) },
				"unpause":  func() { _ = r.Unpause(r.ctx(), id) },
				"crash":    func() { _ = r.host.Crash(id) },
				"shutdown": func() { _ = r.host.GuestShutdown(id) },
				"destroy":  func() { _ = r.Destroy(r.ctx(), id) },
				"start":    func() { _ = r.Start(r.ctx(), id) },
				"reset": func() {
					if r.host.GuestReboot(id) == nil {
						resets.Add(1)
					}
				},
			}
			names := slices.Sorted(maps.Keys(others))
			var said []string
			var timers []*time.Timer
			for i := range random.IntN(5) {
				name := names[random.IntN(len(names))]
				at := time.Duration(random.IntN(110_000))*time.Millisecond + time.Duration(i+1)*time.Nanosecond
				said = append(said, name+" after "+at.String())
				timers = append(timers, time.AfterFunc(at, others[name]))
			}
			got, err := r.rebooter(reboot.Config{}).Soft(r.ctx(), r.def, r.id)
			for _, timer := range timers {
				timer.Stop()
			}
			synctest.Wait() // whoever it heard of its end from has counted it
			now := r.look()
			switch {
			case err != nil && now.State != virt.Paused:
				t.Errorf("seed %d, %v: %v; the guest is %s", seed, said, err, now.State)
			case err == nil && (now.State != virt.Running || now.ID == r.id && resets.Load() == 0):
				t.Errorf("seed %d, %v: %+v; the guest is %s with id %d, before %d", seed, said, got, now.State, now.ID, r.id)
			case err == nil && got.Took > 125*time.Second:
				t.Errorf("seed %d, %v: took %s", seed, said, got.Took)
			}
		})
	}
}
