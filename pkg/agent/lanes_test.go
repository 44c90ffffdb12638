package agent_test

import (
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

func deaf() instance.Spec {
	s := guest()
	s.Metadata = map[string]string{"fake.acpi": "ignores"}
	return s
}

// What holds an instance decides over what is asked: through the wire, the cells of
// the admission matrix that are more than waiting.
func TestTakeOver(t *testing.T) {
	softReboot := func(id string) any { return api.RebootArgs{Instance: id, RebootType: api.RebootSoft} }
	hardReboot := func(id string) any { return api.RebootArgs{Instance: id, RebootType: api.RebootHard} }
	no := false
	cases := []struct {
		name       string
		held       string
		heldArgs   func(string) any
		asked      string
		askedArgs  func(string) any
		left       instance.VMState // empty: gone
		taskStatus api.TaskState
	}{
		{"terminate, soft reboot", api.RebootInstance, softReboot, api.TerminateInstance, func(id string) any { return about(id) }, "", api.TaskFailed},
		{"hard reboot, soft reboot", api.RebootInstance, softReboot, api.RebootInstance, hardReboot, instance.VMActive, api.TaskFailed},
		{"stop now, soft reboot", api.RebootInstance, softReboot, api.StopInstance, func(id string) any { return api.StopArgs{Instance: id, CleanShutdown: &no} }, instance.VMStopped, api.TaskFailed},
		{"terminate, clean stop", api.StopInstance, func(id string) any { return about(id) }, api.TerminateInstance, func(id string) any { return about(id) }, "", api.TaskFailed},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				s := deaf()
				r.done(r.cast("a", api.BuildAndRunInstance, api.BuildArgs{Spec: s}))
				first := r.cast("a", c.held, c.heldArgs(s.UUID))
				r.pass(5 * time.Second)
				began := time.Now()
				second := r.cast("a", c.asked, c.askedArgs(s.UUID))
				r.done(second)
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("taking over took %v", took)
				}
				r.failed(first, c.taskStatus, fault.Cancelled)
				if c.left != "" {
					same(t, "vm_state", r.show("a", s.UUID).VMState, c.left)
				} else if err := r.call("a", api.ShowInstance, about(s.UUID), nil); !errors.Is(err, fault.NotFound) {
					t.Errorf("the instance: %v, want gone", err)
				}
			}, "a")
		})
	}
}

// A termination also ends what has not begun yet, and a build under way.
func TestTerminateTakesOverABuild(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, s := r.nodes["a"], guest()
		release := n.machine.Faults().Add(hangs("Start"))
		build := r.cast("a", api.BuildAndRunInstance, api.BuildArgs{Spec: s})
		waits := r.cast("a", api.PauseInstance, about(s.UUID)) // the build is before it
		r.pass(time.Second)
		gone := r.cast("a", api.TerminateInstance, about(s.UUID))
		r.done(gone)
		r.failed(build, api.TaskFailed, fault.Cancelled)
		if e := r.end(waits); e.State != api.TaskFailed {
			t.Errorf("what waited behind the build: %s, want failed", e.State)
		}
		release()
		taps, _ := n.network.Taps(r.ctx)
		same(t, "taps left", len(taps), 0)
		if a := r.world.Audit(); len(a) != 0 {
			t.Errorf("left behind: %v", a)
		}
	}, "a")
}

// What a request is to take over from may end while the request is acknowledged: then
// nothing is taken over, least of all the request itself.
func TestTakeOverComesTooLate(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, s := r.nodes["a"], guest()
		var delay atomic.Int64
		n.stop()
		n.wrapBus = func(b agent.Bus) agent.Bus { return slowAcks{b, &delay} }
		n.start()
		started := n.machine.Faults().Add(hangs("Start"))
		build := r.cast("a", api.BuildAndRunInstance, api.BuildArgs{Spec: s})
		r.pass(time.Second)
		delay.Store(int64(3 * time.Second))
		n.machine.Faults().Add(fake.Fault{Method: "Destroy", Delay: 10 * time.Second, Times: 1})
		gone := r.cast("a", api.TerminateInstance, about(s.UUID))
		r.pass(time.Second)
		started()
		r.done(build)
		r.done(gone)
	}, "a")
}

// A migration that ends while the termination is acknowledged is not aborted any more,
// and the termination goes on.
func TestTakeOverOfAMigrationComesTooLate(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		var delay atomic.Int64
		n.stop()
		n.wrapBus = func(b agent.Bus) agent.Bus { return slowAcks{b, &delay} }
		n.start()
		stuck := n.machine.Faults().Add(fake.Fault{Method: fake.PointBegin, Delay: 2 * time.Second, Err: errors.New("not now"), Times: 1})
		defer stuck()
		move := r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: id, Dest: "b"})
		r.pass(time.Second)
		delay.Store(int64(5 * time.Second))
		n.machine.Faults().Add(fake.Fault{Method: "Destroy", Delay: 10 * time.Second, Times: 1})
		gone := r.cast("a", api.TerminateInstance, about(id))
		if e := r.end(move); e.State != api.TaskFailed || e.Error.Kind == fault.Cancelled {
			t.Errorf("the migration ended as %s: %v, want failed by itself", e.State, e.Error)
		}
		r.done(gone)
	}, "a", "b")
}

// A termination ends a running migration by its abort; one that the migration
// outran says where the guest went.
func TestTerminateTakesOverAMigration(t *testing.T) {
	inBubble(t, func(r *rig) {
		id := r.build("a")
		move := r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: id, Dest: "b", BandwidthMiB: 1})
		r.pass(3 * time.Second)
		r.failed(r.cast("a", api.PauseInstance, about(id)), api.TaskRefused, fault.Conflict)
		r.done(r.cast("a", api.TerminateInstance, about(id)))
		r.failed(move, api.TaskFailed, fault.Cancelled)
		for _, name := range []string{"a", "b"} {
			taps, _ := r.nodes[name].network.Taps(r.ctx)
			same(t, "taps left on "+name, len(taps), 0)
		}
	}, "a", "b")
}

// A migration that waits for its lane is aborted there, and what runs is not disturbed.
func TestAbortOfAWaitingMigration(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		release := n.machine.Faults().Add(hangs("Pause"))
		pause := r.cast("a", api.PauseInstance, about(id))
		move := r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: id, Dest: "b"})
		r.pass(time.Second)
		r.done(r.cast("a", api.LiveMigrationAbort, api.MigrationRefArgs{Instance: id}))
		r.failed(move, api.TaskFailed, fault.Cancelled)
		same(t, "task_state of what runs", r.show("a", id).TaskState, instance.TaskPausing)
		release()
		r.done(pause)
		same(t, "vm_state", r.show("a", id).VMState, instance.VMPaused)
		r.failed(r.cast("a", api.LiveMigrationAbort, api.MigrationRefArgs{Instance: id}), api.TaskFailed, fault.NotFound)
	}, "a", "b")
}

// An abort right behind its migration never misses it, whichever comes first to it.
func TestAbortRightBehindAMigration(t *testing.T) {
	inBubble(t, func(r *rig) {
		id := r.build("a")
		for range 20 {
			move := r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: id, Dest: "b", BandwidthMiB: 1})
			abort := r.cast("a", api.LiveMigrationAbort, api.MigrationRefArgs{Instance: id})
			r.done(abort)
			r.failed(move, api.TaskFailed, fault.Cancelled)
		}
		same(t, "host", r.show("a", id).Host, "a")
	}, "a", "b")
}

// Tasks of one instance run in the order of the stream, though they were read in
// one batch; those that depend on what is before them are not refused.
func TestBatchInOrder(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.nodes["a"].stop()
		s := guest()
		ids := []string{
			r.cast("a", api.BuildAndRunInstance, api.BuildArgs{Spec: s}),
			r.cast("a", api.PauseInstance, about(s.UUID)),
			r.cast("a", api.UnpauseInstance, about(s.UUID)),
			r.cast("a", api.StopInstance, about(s.UUID)),
			r.cast("a", api.StartInstance, about(s.UUID)),
			r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: s.UUID, Dest: "b"}),
		}
		refused := r.cast("a", api.LiveMigration, api.MigrateArgs{Instance: s.UUID, Dest: "b"})
		r.nodes["a"].start()
		for _, id := range ids {
			r.done(id)
		}
		r.failed(refused, api.TaskRefused, fault.Conflict)
		same(t, "host", r.show("b", s.UUID).Host, "b")
	}, "a", "b")
}

// order gives the request ids in which tasks began.
func (r *rig) order() []string {
	var ids []string
	for _, e := range r.told(api.EventTask, "") {
		if te := taskEvent(r.t, e); te.State == api.TaskRunning {
			ids = append(ids, te.RequestID)
		}
	}
	return ids
}

// Casts that were delivered and lost come again after later ones were read: the
// later ones wait for them, after a restart as after a reconnect.
func TestOrderOverLostDeliveries(t *testing.T) {
	for _, how := range []string{"restart", "reconnect"} {
		t.Run(how, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				n, id := r.nodes["a"], r.build("a")
				began := len(r.order())
				lost := 2
				r.bus.SetFaults(func(p rpc.Passage) rpc.Fate {
					if p.Leg == rpc.LegDelivery && lost > 0 {
						lost--
						return rpc.Fate{Drop: true}
					}
					return rpc.Fate{}
				})
				want := []string{r.cast("a", api.PauseInstance, about(id)), r.cast("a", api.UnpauseInstance, about(id))}
				r.pass(100 * time.Millisecond)
				if how == "restart" {
					n.crash()
					n.start()
				} else {
					r.bus.Partition("a")
					r.bus.Heal("a")
				}
				want = append(want, r.cast("a", api.PauseInstance, about(id)), r.cast("a", api.UnpauseInstance, about(id)))
				r.done(want[3])
				if d := cmp.Diff(want, r.order()[began:]); d != "" {
					t.Errorf("order (-want +got):\n%s", d)
				}
				same(t, "pauses", n.machine.Counts(id).Pauses, 2)
			}, "a")
		})
	}
}

// A cast that comes again twice does not stand for another one that has not come yet.
func TestOrderOverRepeatedDeliveries(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		began := len(r.order())
		first, second := instance.NewUUID(), instance.NewUUID()
		deliveries := map[string]int{}
		r.bus.SetFaults(func(p rpc.Passage) rpc.Fate {
			if p.Leg != rpc.LegDelivery {
				return rpc.Fate{}
			}
			deliveries[p.Request]++
			switch n := deliveries[p.Request]; p.Request {
			case first:
				return rpc.Fate{Drop: n == 1, Duplicate: n > 1}
			case second:
				return rpc.Fate{Drop: n <= 2}
			}
			return rpc.Fate{}
		})
		r.castAs(first, "a", api.PauseInstance, about(id))
		r.castAs(second, "a", api.UnpauseInstance, about(id))
		r.pass(100 * time.Millisecond)
		n.crash()
		n.start()
		want := []string{first, second, r.cast("a", api.PauseInstance, about(id))}
		r.done(want[2])
		if d := cmp.Diff(want, r.order()[began:]); d != "" {
			t.Errorf("order (-want +got):\n%s", d)
		}
	}, "a")
}

// Deliveries that come twice, late and in any order do nothing twice.
func TestRedeliveryDoesNothingTwice(t *testing.T) {
	inBubble(t, func(r *rig) {
		n := r.nodes["a"]
		strikes := 0
		r.bus.SetFaults(func(p rpc.Passage) rpc.Fate {
			strikes++
			switch {
			case p.Leg == rpc.LegAck && strikes%3 == 0:
				return rpc.Fate{Drop: true}
			case p.Leg == rpc.LegDelivery && strikes%5 == 0:
				return rpc.Fate{Duplicate: true}
			}
			return rpc.Fate{}
		})
		guests := []string{r.build("a"), r.build("a"), r.build("a")}
		var last string
		for range 10 {
			for _, g := range guests {
				r.cast("a", api.PauseInstance, about(g))
				last = r.cast("a", api.UnpauseInstance, about(g))
			}
		}
		r.done(last)
		r.pass(time.Minute)
		for _, g := range guests {
			same(t, "pauses", n.machine.Counts(g).Pauses, 10)
			same(t, "unpauses", n.machine.Counts(g).Unpauses, 10)
		}
	}, "a")
}

// A disk that is full refuses nothing and loses nothing: casts stay in the stream,
// tasks wait, calls that only read go on; with room everything goes on.
func TestDiskFull(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id, held := r.nodes["a"], r.build("a"), r.build("a")
		release := n.machine.Faults().Add(hangs("Pause"))
		running := r.cast("a", api.PauseInstance, about(held))
		r.pass(time.Second)
		full := error(syscall.ENOSPC)
		n.trouble.Store(&full)
		stored := r.cast("a", api.PauseInstance, about(id))
		release()
		r.pass(10 * time.Minute)
		same(t, "events of the cast in the stream", len(r.life(stored)), 0)
		if d := cmp.Diff([]api.TaskState{api.TaskAccepted, api.TaskRunning}, r.life(running)); d != "" {
			t.Errorf("the task that ends meanwhile (-want +got):\n%s", d)
		}
		same(t, "power_state", r.show("a", held).PowerState, instance.PowerPaused)
		err := r.call("a", api.SetHostEnabled, api.HostEnabledArgs{Enabled: true}, nil)
		if !errors.Is(err, fault.Unavailable) || fault.HintOf(err) == "" {
			t.Errorf("a call that would change something: %v (hint %q), want unavailable with a hint", err, fault.HintOf(err))
		}
		n.trouble.Store(nil)
		r.done(running)
		r.done(stored)
		same(t, "pauses", n.machine.Counts(id).Pauses+n.machine.Counts(held).Pauses, 2)
	}, "a")
}

// A defect in a verb fails its task; its lane, and the caller, go on.
func TestPanicFailsTheTask(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		n.stop()
		n.wrap = func(hv agent.Hypervisor) agent.Hypervisor { return panics{hv} }
		n.start()
		r.failed(r.cast("a", api.PauseInstance, about(id)), api.TaskFailed, fault.Internal)
		if err := r.call("a", api.GetConsoleOutput, api.ConsoleArgs{Instance: id}, nil); !errors.Is(err, fault.Internal) {
			t.Errorf("a call that panics: %v, want internal", err)
		}
		r.done(r.cast("a", api.StopInstance, about(id)))
		same(t, "task_state", r.show("a", id).TaskState, instance.TaskNone)
	}, "a")
}

// What the journal refused is taken before anything else is read: the order holds.
func TestOrderOverAFullDisk(t *testing.T) {
	inBubble(t, func(r *rig) {
		n, id := r.nodes["a"], r.build("a")
		began := len(r.order())
		full := error(syscall.ENOSPC)
		n.trouble.Store(&full)
		want := []string{r.cast("a", api.PauseInstance, about(id))}
		r.pass(time.Second)
		want = append(want, r.cast("a", api.UnpauseInstance, about(id)))
		r.pass(time.Second)
		n.trouble.Store(nil)
		want = append(want, r.cast("a", api.PauseInstance, about(id)))
		r.done(want[2])
		if d := cmp.Diff(want, r.order()[began:]); d != "" {
			t.Errorf("order (-want +got):\n%s", d)
		}
		same(t, "pauses", n.machine.Counts(id).Pauses, 2)
	}, "a")
}
