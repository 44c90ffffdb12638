package migration_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

var update = flag.Bool("update", false, "rewrite the golden conversations in testdata; read the difference before you commit it")

// slow makes the memory move for five seconds.
var slow = api.MigrateArgs{BandwidthMiB: 100}

// busy is a guest that never converges by itself.
func busy(s *instance.Spec) {
	s.Metadata = map[string]string{"fake.working_set_mib": "500", "fake.dirty_mib": "2000"}
}

// scenario is one migration, what happens to it, and how it must end.
type scenario struct {
	name   string
	args   api.MigrateArgs
	guest  func(*instance.Spec)
	paused bool
	option option
	during func(w *world, inst instance.Instance) // while it runs; nil: nothing
	want   instance.MigrationStatus
	kind   fault.Kind // of the error of Run
	says   string     // in the reason of the result
}

func configure(on string, change func(*migration.Config)) option {
	return func(w *world) { change(&w.sites[on].cfg) }
}

var errNo = fault.New(fault.Internal, "test", "", "it does not work")

// failing has a point fail n times; 0: always.
func failing(point string, n int) option {
	return func(w *world) {
		count := 0
		w.hook = func(p string) error {
			if p != point {
				return nil
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			count++
			if n > 0 && count > n {
				return nil
			}
			return errNo
		}
	}
}

// local gives a guest a disk that only its host has.
func local(s *instance.Spec) {
	s.Disks = []instance.Disk{{Source: instance.DiskSource{Image: "/img/base.qcow2"}}}
}

// abortIn asks for the end as soon as a phase is reached.
func abortIn(p migration.Phase) func(*world, instance.Instance) {
	return func(w *world, inst instance.Instance) {
		w.reach("a", p)
		if err := w.sites["a"].living().source.Abort(w.ctx, inst.UUID, ""); err != nil {
			w.t.Errorf("abort in %s: %v", p, err)
		}
	}
}

// holding keeps a point until an abort cuts it short, or for an hour.
func holding(point string) option {
	return func(w *world) {
		w.hook = func(p string) error {
			if p == point {
				<-time.After(2 * time.Second)
			}
			return nil
		}
	}
}

func faults(on string, f fake.Fault) option {
	return func(w *world) { w.sites[on].host.Faults().Add(f) }
}

var scenarios = []scenario{
	{name: "success", args: slow, want: "completed"},
	{name: "paused guest", args: slow, paused: true, want: "completed"},
	{name: "abort while queued", args: slow, want: "cancelled", kind: fault.Cancelled, says: "aborted on request", option: configure("a", func(c *migration.Config) { c.OutboundSlots = -1 }), during: abortIn(migration.PhaseQueue)},
	{name: "abort in check", args: slow, want: "cancelled", kind: fault.Cancelled, option: holding("a ⇒ b check"), during: abortIn(migration.PhaseCheck)},
	{name: "abort in prepare", args: slow, want: "cancelled", kind: fault.Cancelled, option: holding("b plug"), during: abortIn(migration.PhasePrepare)},
	{name: "abort in perform", args: slow, want: "cancelled", kind: fault.Cancelled, during: abortIn(migration.PhasePerform)},
	{name: "abort late in perform", args: slow, want: "cancelled", kind: fault.Cancelled, during: func(w *world, inst instance.Instance) {
		w.reach("a", migration.PhasePerform)
		<-time.After(4 * time.Second)
		abortIn(migration.PhasePerform)(w, inst)
	}},
	{name: "abort too late", args: slow, want: "completed", during: func(w *world, inst instance.Instance) {
		w.setHook(func(p string) error {
			if p != "a ⇒ b post" {
				return nil
			}
			err := w.sites["a"].living().source.Abort(w.ctx, inst.UUID, migrationID)
			if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "too late") {
				w.t.Errorf("abort after the switch: %v, want a conflict that says too late", err)
			}
			return nil
		})
	}},
	{name: "abort that the job refuses at first", args: slow, want: "cancelled", kind: fault.Cancelled, option: faults("a", fake.Fault{Method: "AbortJob", Err: errNo, Times: 2}), during: abortIn(migration.PhasePerform)},
	{name: "ports can't be plugged", args: slow, want: "failed", kind: fault.Internal, says: "it does not work", option: failing("b plug", 0)},
	{name: "ports are not ready", args: slow, want: "failed", says: "it does not work", kind: fault.Internal, option: failing("b ready", 0)},
	{name: "ports are not ready, not fatal", args: slow, want: "completed", option: func(w *world) {
		failing("b ready", 0)(w)
		configure("b", func(c *migration.Config) { c.VIFNotFatal = true })(w)
	}},
	{name: "prepare hangs in the driver", args: slow, want: "failed", kind: fault.Timeout, says: "longer than 30m", option: faults("b", fake.Fault{Method: "PrepareIncoming", Hang: true})},
	{name: "the stream breaks", args: slow, want: "failed", kind: fault.Internal, says: "it does not work", option: faults("a", fake.Fault{Method: fake.PointPreCopy, Err: errNo})},
	{name: "the destination refuses the guest", args: slow, want: "failed", kind: fault.Internal, says: "it does not work", option: faults("a", fake.Fault{Method: fake.PointBegin, Err: errNo})},
	{name: "the call is refused", args: slow, want: "failed", kind: fault.Internal, option: faults("a", fake.Fault{Method: "Migrate", Err: errNo})},
	{name: "the call's reply is lost", args: slow, want: "completed", option: faults("a", fake.Fault{Method: "Migrate", Err: errNo, After: true})},
	{name: "the finish reply is lost", args: slow, want: "completed", option: faults("a", fake.Fault{Method: fake.PointFinish, After: true, Err: fault.New(fault.Unavailable, "", "", "gone")})},
	{name: "the finish reply of a paused guest is lost", args: slow, paused: true, want: "completed", option: faults("a", fake.Fault{Method: fake.PointFinish, After: true, Err: fault.New(fault.Unavailable, "", "", "gone")})},
	{name: "the finish message is lost", args: slow, want: "failed", kind: fault.Internal, option: faults("a", fake.Fault{Method: fake.PointFinish, Err: fault.New(fault.Unavailable, "", "", "gone")})},
	{name: "the post reply is lost", args: slow, want: "completed", option: failing("a ⇒ b post reply", 3)},
	{name: "the rollback reply is lost", args: slow, want: "cancelled", kind: fault.Cancelled, option: failing("a ⇒ b rollback reply", 2), during: abortIn(migration.PhasePerform)},
	{name: "the destination's hypervisor is away at the switch", args: slow, want: "completed", during: func(w *world, _ instance.Instance) {
		w.reach("a", migration.PhasePerform)
		w.sites["b"].host.Disconnect()
		<-time.After(20 * time.Second)
		w.sites["b"].host.Reconnect()
	}},
	{name: "the source's hypervisor is away while memory moves", args: slow, want: "completed", during: func(w *world, _ instance.Instance) {
		w.reach("a", migration.PhasePerform)
		<-time.After(time.Second)
		w.sites["a"].host.Disconnect()
		<-time.After(1300 * time.Millisecond)
		w.sites["a"].host.Reconnect()
	}},
	{name: "the source's hypervisor is away over the end", args: slow, want: "completed", during: func(w *world, _ instance.Instance) {
		w.reach("a", migration.PhasePerform)
		w.sites["a"].host.Disconnect()
		<-time.After(time.Minute)
		w.sites["a"].host.Reconnect()
	}},
	{name: "the management link is cut while memory moves", args: slow, want: "completed", during: func(w *world, _ instance.Instance) {
		w.reach("a", migration.PhasePerform)
		w.sever(true)
		<-time.After(10 * time.Minute)
		w.sever(false)
	}},
	{name: "the management link is cut and the job fails", args: slow, want: "failed", kind: fault.Internal, option: faults("a", fake.Fault{Method: fake.PointPreCopy, Err: errNo}), during: func(w *world, _ instance.Instance) {
		w.reach("a", migration.PhasePerform)
		w.sever(true)
		<-time.After(20 * time.Minute)
		w.sever(false)
	}},
	{name: "the guest dies on the source", args: slow, want: "failed", kind: fault.Internal, during: func(w *world, inst instance.Instance) {
		w.reach("a", migration.PhasePerform)
		<-time.After(time.Second)
		if err := w.sites["a"].host.Crash(inst.UUID); err != nil {
			w.t.Error(err)
		}
	}},
	{name: "the destination is busy at first", args: slow, want: "completed", option: failingBusy("a ⇒ b check", 3)},
	{name: "the destination is busy all the time", args: slow, want: "failed", kind: fault.Busy, option: failingBusy("a ⇒ b check", 0)},
	{name: "a disabled destination", args: slow, want: "failed", kind: fault.PreconditionFailed, says: "for repairs", option: func(w *world) { w.sites["b"].disabled = "for repairs" }},
	{name: "to itself", args: api.MigrateArgs{Dest: "a"}, want: "failed", kind: fault.PreconditionFailed, says: "already is"},
	{name: "a local disk", args: slow, want: "completed", guest: local},
	{name: "a local disk, block migration ruled out", args: api.MigrateArgs{BlockMigration: new(false)}, want: "failed", kind: fault.PreconditionFailed, says: "InvalidSharedStorage", guest: local},
	{name: "a local disk, aborted while it is copied", args: slow, want: "cancelled", kind: fault.Cancelled, guest: local, during: abortIn(migration.PhasePerform)},
	{name: "no such host", args: api.MigrateArgs{Dest: "c"}, want: "failed", kind: fault.Unavailable},
	{name: "a busy guest, paused by policy", args: slow, guest: busy, want: "completed", option: configure("a", func(c *migration.Config) { c.OnStall = migration.StallPause })},
	{name: "a busy guest, aborted by policy", args: slow, guest: busy, want: "cancelled", kind: fault.Cancelled, says: "by policy: stalled"},
	{name: "a busy guest, aborted by timeout", args: api.MigrateArgs{BandwidthMiB: 100, Policy: "nova", CompletionTimeoutSeconds: 30}, guest: busy, want: "cancelled", kind: fault.Cancelled, says: "not complete after 30s"},
	{name: "a busy guest in post-copy", args: slow, guest: busy, want: "completed", option: configure("a", func(c *migration.Config) { c.OnStall, c.PermitPostCopy = migration.StallPostCopy, true })},
	{name: "post_copy_now", args: api.MigrateArgs{BandwidthMiB: 100, Policy: "post_copy_now"}, guest: busy, want: "completed"},
	{name: "pause_now", args: api.MigrateArgs{BandwidthMiB: 100, Policy: "pause_now"}, guest: busy, want: "completed"},
	{name: "pause_now, and the stream breaks", args: api.MigrateArgs{BandwidthMiB: 100, Policy: "pause_now"}, guest: busy, want: "failed", kind: fault.Internal, option: faults("a", fake.Fault{Method: fake.PointPreCopy, Err: errNo})},
	{name: "post-copy is refused, then paused", args: api.MigrateArgs{BandwidthMiB: 100, Policy: "post_copy_now"}, guest: busy, want: "completed", option: faults("a", fake.Fault{Method: "StartPostCopy", Err: fault.New(fault.Conflict, "", "", "no userfaultfd")})},
	{name: "force-complete", args: slow, guest: busy, want: "completed", during: forced("")},
	{name: "force-complete by post-copy", args: slow, guest: busy, want: "completed", option: configure("a", func(c *migration.Config) { c.PermitPostCopy = true }), during: forced("")},
	{name: "the source's agent restarts while memory moves", args: slow, want: "completed", during: restarted("a", migration.PhasePerform, time.Second)},
	{name: "the source's agent is away over the end", args: slow, want: "completed", during: restarted("a", migration.PhasePerform, time.Minute)},
	{name: "the source's agent restarts in prepare", args: slow, want: "failed", option: holding("b plug"), during: restarted("a", migration.PhasePrepare, time.Minute)},
	{name: "the destination's agent restarts while memory moves", args: slow, want: "completed", during: restarted("b", migration.PhasePerform, time.Second)},
	{name: "the destination's agent is away over the end", args: slow, want: "completed", during: restarted("b", migration.PhasePerform, time.Minute)},
	{name: "both agents are away over the end", args: slow, want: "completed", during: func(w *world, inst instance.Instance) {
		w.reach("a", migration.PhasePerform)
		w.sites["a"].stop(migration.ErrStopping)
		restarted("b", migration.PhasePerform, time.Minute)(w, inst)
		<-time.After(time.Second)
		w.sites["a"].start()
	}},
	{name: "the source's agent restarts after an abort", args: slow, want: "cancelled", option: failing("a ⇒ b rollback", 3), during: func(w *world, inst instance.Instance) {
		abortIn(migration.PhasePerform)(w, inst)
		<-time.After(time.Second)
		restarted("a", migration.PhasePerform, time.Second)(w, inst)
	}},
}

func failingBusy(point string, n int) option {
	return func(w *world) {
		count := 0
		w.hook = func(p string) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if p != point || n > 0 && count == n {
				return nil
			}
			count++
			return fault.New(fault.Busy, "test", "", "all slots are taken").WithDetail("retry_after_seconds", 10)
		}
	}
}

// forced asks for the end of a guest that does not converge.
func forced(want fault.Kind) func(*world, instance.Instance) {
	return func(w *world, inst instance.Instance) {
		w.reach("a", migration.PhasePerform)
		<-time.After(15 * time.Second)
		err := w.sites["a"].living().source.ForceComplete(w.ctx, inst.UUID, migrationID)
		if fault.KindOf(err) != want {
			w.t.Errorf("ForceComplete: %v, want kind %q", err, want)
		}
	}
}

// restarted stops an agent in a phase of the source and starts it again later.
func restarted(on string, p migration.Phase, away time.Duration) func(*world, instance.Instance) {
	return func(w *world, _ instance.Instance) {
		w.reach("a", p)
		<-time.After(time.Second)
		began := time.Now()
		w.sites[on].stop(migration.ErrStopping)
		if took := time.Since(began); took > 5*time.Second {
			w.t.Errorf("the agent took %v to stop", took)
		}
		<-time.After(away)
		w.sites[on].start()
	}
}

func (w *world) sever(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = on
}

// TestScenarios runs every scenario and compares its conversation with the golden one
// in testdata.
func TestScenarios(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			var talk []string
			synctest.Test(t, func(t *testing.T) { talk = s.run(t) })
			golden(t, s.name, talk)
		})
	}
}

func (s scenario) run(t *testing.T) []string {
	t.Helper()
	w := newWorld(t, append([]option{}, s.options()...)...)
	defer w.close()
	inst := w.guest("a", s.changes()...)
	if s.paused {
		if err := w.sites["a"].living().driver.Pause(w.ctx, inst.UUID); err != nil {
			t.Fatal(err)
		}
		inst.VMState = instance.VMPaused
	}
	f := w.migrate(inst, s.args)
	if s.during != nil {
		s.during(w, inst)
	}
	m := w.ended("a", migrationID)
	<-f.done
	if m.Status != s.want {
		t.Errorf("it ended as %s (%v), want %s", m.Status, m.Fault, s.want)
	}
	if s.kind != "" && (fault.KindOf(f.err) != s.kind || m.Fault == nil || m.Fault.Kind != s.kind) {
		t.Errorf("Run gave %v (%s), the record holds %+v; want kind %s", f.err, fault.KindOf(f.err), m.Fault, s.kind)
	}
	if s.want == instance.MigrationCompleted && m.Fault != nil {
		t.Errorf("it completed with a fault: %v", m.Fault)
	}
	if m.Result == nil || !strings.Contains(m.Result.Reason, s.says) {
		t.Errorf("result %+v, want a reason with %q", m.Result, s.says)
	}
	w.percent(t)
	talk := w.said()
	<-time.After(2 * time.Hour) // the claims have run out too
	if s.name == "the guest dies on the source" {
		return talk // nothing runs any more
	}
	w.check(inst, map[bool]string{true: "b", false: "a"}[s.want == instance.MigrationCompleted])
	return talk
}

func (s scenario) options() []option {
	if s.option == nil {
		return nil
	}
	return []option{s.option}
}

func (s scenario) changes() []func(*instance.Spec) {
	if s.guest == nil {
		return nil
	}
	return []func(*instance.Spec){s.guest}
}

func (w *world) said() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.talk)
}

// percent asserts that progress never fell and reached 100 only at the end.
func (w *world) percent(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	last := 0
	for _, m := range w.sites["a"].reports {
		p := m.Progress.Percent
		if p < last || p > 99 && m.Status != instance.MigrationCompleted || p < 0 || p > 100 {
			t.Errorf("percent %d after %d in status %s", p, last, m.Status)
		}
		last = p
	}
}

// golden compares a conversation with the one in testdata. Rewrite them with -update
// only when the change is meant, and read the difference.
func golden(t *testing.T, name string, talk []string) {
	t.Helper()
	path := filepath.Join("testdata", strings.NewReplacer(" ", "-", "'", "", ",", "").Replace(name)+".txt")
	got := strings.Join(talk, "\n") + "\n"
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o750), os.WriteFile(path, []byte(got), 0o600)); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; go test -run TestScenarios -update writes it", err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("the conversation changed (-want +got):\n%s", diff)
	}
}

// A guest that was paused when it was to leave, and that somebody lets go on meanwhile, is
// stopped like any other where nothing else ends its migration; then it goes on, here or there.
func TestPausedGuestThatIsLetGoOnMeanwhile(t *testing.T) {
	for name, c := range map[string]struct {
		args   api.MigrateArgs
		option option
		during func(*world, instance.Instance)
		want   instance.MigrationStatus
		on     string
	}{
		"pause_now":          {args: api.MigrateArgs{BandwidthMiB: 100, Policy: "pause_now"}, want: instance.MigrationCompleted, on: "b"},
		"force-complete":     {args: slow, during: forced(""), want: instance.MigrationCompleted, on: "b"},
		"the stream breaks":  {args: api.MigrateArgs{BandwidthMiB: 100, Policy: "pause_now"}, option: faults("a", fake.Fault{Method: fake.PointPreCopy, Err: errNo}), want: instance.MigrationFailed, on: "a"},
		"nobody stops it":    {args: slow, want: instance.MigrationCancelled, on: "a"},
		"agents restart too": {args: api.MigrateArgs{BandwidthMiB: 100, Policy: "pause_now"}, during: restarted("b", migration.PhasePerform, time.Minute), want: instance.MigrationCompleted, on: "b"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var opts []option
				if c.option != nil {
					opts = append(opts, c.option)
				}
				w := newWorld(t, opts...)
				defer w.close()
				inst := w.guest("a", busy)
				driver := w.sites["a"].living().driver
				if err := driver.Pause(w.ctx, inst.UUID); err != nil {
					t.Fatal(err)
				}
				f := w.migrate(inst, c.args)
				w.reach("a", migration.PhasePerform)
				<-time.After(20 * time.Millisecond)
				if err := driver.Unpause(w.ctx, inst.UUID); err != nil {
					t.Fatal(err)
				}
				if c.during != nil {
					c.during(w, inst)
				}
				if m, err := f.wait(t); m.Status != c.want {
					t.Errorf("it ended as %s: %v; want %s", m.Status, err, c.want)
				}
				w.check(inst, c.on)
			})
		})
	}
}
