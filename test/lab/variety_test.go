package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

// boot builds a guest on a host and waits until it answers; options go to its kernel command line.
func (s *stage) boot(t *testing.T, n int, host string, options ...string) instance.Spec {
	t.Helper()
	spec, address := s.guest(n)
	spec.Boot.Cmdline = strings.Join(append([]string{spec.Boot.Cmdline}, options...), " ")
	task, err := s.c.BuildAndRunInstance(t.Context(), host, spec)
	s.do(t, task, err)
	must(t, "ping", lab.WaitPing(t.Context(), address, 30*time.Second))
	return spec
}

// begin starts a migration and waits until it is as wanted.
func (s *stage) begin(t *testing.T, spec instance.Spec, args api.MigrateArgs, there func(instance.Migration) bool) *controller.Task {
	t.Helper()
	task, err := s.c.LiveMigration(t.Context(), spec.UUID, args)
	must(t, "live_migration", err)
	t.Cleanup(func() { _ = task.Close() })
	must(t, "the migration", until(t.Context(), 20*time.Second, func() error {
		m, err := s.c.ShowMigration(t.Context(), task.Migration())
		if err == nil && !there(m) {
			err = fmt.Errorf("it is %s in phase %s", m.Status, m.Phase)
		}
		return err
	}))
	return task
}

func moving(m instance.Migration) bool {
	return m.Phase == "perform" && m.Progress.Memory.Processed > 0
}

// end waits for a migration's end and wants it to be completed.
func (s *stage) end(t *testing.T, task *controller.Task) instance.Migration {
	t.Helper()
	s.do(t, task, nil)
	m, err := s.c.ShowMigration(t.Context(), task.Migration())
	if err != nil || m.Status != instance.MigrationCompleted || m.Result == nil {
		t.Fatalf("the migration ended as %s, %+v, %v", m.Status, m.Result, err)
	}
	t.Logf("%s: %d ms, downtime %d ms, %d MiB, %d iterations", m.Mode, m.Result.TotalMS, m.Result.DowntimeMS, m.Result.Bytes>>20, m.Result.Iterations)
	return m
}

// A guest that its user paused moves, and stays paused until the user wants it to go on.
func TestPausedGuestMoves(t *testing.T) {
	s := newStage(t)
	ctx := t.Context()
	spec := s.boot(t, 10, "h1")
	task, err := s.c.PauseInstance(ctx, spec.UUID)
	s.do(t, task, err)
	task, err = s.c.LiveMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h2"})
	must(t, "live_migration", err)
	s.end(t, task)
	if got := virsh(t, s.Host(2), "domstate", "--reason", spec.UUID); got != "paused (user)" && got != "paused (migrated)" {
		t.Errorf("the guest is %q on the destination, want it paused", got)
	}
	if i, err := s.c.ShowInstance(ctx, spec.UUID); err != nil || i.VMState != instance.VMPaused || i.Host != "h2" {
		t.Errorf("show: %s on %s, %v; want it paused on h2", i.VMState, i.Host, err)
	}
	task, err = s.c.UnpauseInstance(ctx, spec.UUID)
	s.do(t, task, err)
	must(t, "ping", lab.WaitPing(ctx, s.GuestAddress(10).Addr(), 5*time.Second))
	s.only(t, spec, 2)
}

// A guest that its user paused lies so on both hosts when the reply of the finishing step is lost, and no libvirt says
// what the job came to: nothing is decided while the destination's can't be asked, and then the guest is the
// destination's, with no copy left, and goes on there when its user wants it to.
func pausedGuestsReplyIsLost(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(map[bool]string{false: "the destination answers", true: "the destination's libvirtd is away"}[away], func(t *testing.T) {
			s := newStage(t, matrixOptions)
			spec := s.boot(t, 10, "h1")
			task, err := s.c.PauseInstance(t.Context(), spec.UUID)
			s.do(t, task, err)
			task = s.begin(t, spec, api.MigrateArgs{Dest: "h2", BandwidthMiB: 3 * slowMiB}, func(m instance.Migration) bool {
				return moving(m) && m.Progress.Memory.Remaining < lateBytes
			})
			must(t, "the reply of finish", s.loseReply(t.Context(), 1, spec, "paused (user)"))
			if away {
				s.undecided(t, spec, task.Migration())
			}
			must(t, "repair", errors.Join(s.Host(1).Unfilter(t.Context()), s.Host(2).Unfilter(t.Context())))
			s.end(t, task)
			if i, err := s.c.ShowInstance(t.Context(), spec.UUID); err != nil || i.VMState != instance.VMPaused || i.Host != "h2" {
				t.Errorf("show: %s on %s, %v; want it paused on h2", i.VMState, i.Host, err)
			}
			task, err = s.c.UnpauseInstance(t.Context(), spec.UUID)
			s.do(t, task, err)
			must(t, "ping", lab.WaitPing(t.Context(), lab.AddressOf(spec.Ports[0].MAC), 5*time.Second))
			s.only(t, spec, 2)
		})
	}
}

// undecided freezes the second host's libvirtd until the first one's says that the migration is over, and a while longer:
// the guest stays as it is on the first, and its migration has no end.
func (s *stage) undecided(t *testing.T, spec instance.Spec, id string) {
	t.Helper()
	ctx := t.Context()
	s.Host(2).FreezeLibvirt(true)
	defer s.Host(2).FreezeLibvirt(false)
	must(t, "the end of libvirt's job", until(ctx, 40*time.Second, func() error {
		out, err := s.Host(1).Virsh(ctx, "domjobinfo", spec.UUID)
		if err == nil && !strings.Contains(out, "None") {
			err = fmt.Errorf("libvirt's job: %s", out)
		}
		return err
	}))
	wait(ctx, 5*time.Second)
	if got := virsh(t, s.Host(1), "domstate", "--reason", spec.UUID); got != "paused (user)" {
		t.Errorf("on the source the guest is %q, want it as it was: paused", got)
	}
	if m, err := s.c.ShowMigration(ctx, id); err != nil || m.Status.Ended() {
		t.Errorf("the migration is %s, %v, while the destination could not be asked", m.Status, err)
	}
}

// A guest that writes memory faster than the stream carries it: the adaptive policy permits longer pauses until it ends;
// force-complete pauses a guest where post-copy is not permitted; an abort leaves it where it is, early and in the middle,
// and comes too late afterwards.
func TestBusyGuestMoves(t *testing.T) {
	s := newStage(t)
	ctx := t.Context()
	spec := s.boot(t, 10, "h1", "ca.dirty=12")
	slow := api.MigrateArgs{Dest: "h2", BandwidthMiB: 8}

	task := s.begin(t, spec, slow, moving)
	force, err := s.c.ForceCompleteMigration(ctx, task.Migration())
	s.do(t, force, err)
	if m := s.end(t, task); m.Mode != instance.ModePaused {
		t.Errorf("a forced migration without post-copy ended in mode %s, want paused", m.Mode)
	}
	must(t, "ping", lab.WaitPing(ctx, s.GuestAddress(10).Addr(), 5*time.Second))
	s.only(t, spec, 2)

	task, err = s.c.LiveMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h1", BandwidthMiB: 24})
	must(t, "live_migration", err)
	s.end(t, task)
	s.only(t, spec, 1)

	late, err := s.c.AbortMigration(ctx, task.Migration())
	must(t, "abort", err)
	if _, err := late.Wait(ctx); fault.KindOf(err) != fault.NotFound && fault.KindOf(err) != fault.Conflict {
		t.Errorf("an abort after the end answers %v, want not_found or conflict", err)
	}
}

// phasesToday are three phases, others each day; all of them where every rare scenario is wanted.
func phasesToday() []string {
	if os.Getenv("COMPUTE_AGENT_LAB_RARE") == "all" {
		return phases
	}
	day := time.Now().YearDay()
	return []string{phases[day%3], phases[3+day%3], phases[6+day%3]}
}

// An abort in each phase, early, in the middle and late; an ordinary run does three of them: the guest stays, nothing is left on the destination, and it can move afterwards. Once the guest
// has switched over the answer is that it is too late.
func TestAbortInEachPhase(t *testing.T) {
	m := newMatrix(t)
	ctx := t.Context()
	for _, phase := range phasesToday() {
		c := &cell{matrix: m, blow: blow{name: "nothing"}, phase: phase, spec: m.free, address: m.freeAddr}
		if phase == "prepare" {
			c.spec, c.address = m.waiting, m.waitingAddr
		}
		var err error
		c.source, err = m.where(ctx, c.spec.UUID)
		must(t, "where", err)
		c.dest = other(c.source)
		must(t, "hold "+phase, c.hold(ctx))
		id := c.moves[len(c.moves)-1]
		ref := id
		if phase == "accept" { // nobody but its host knows of it, and it leaves nothing but its task's end
			ref, c.moves = c.spec.UUID, nil
		} else {
			must(t, "the view", until(ctx, 5*time.Second, func() error { _, err := m.c.FindMigration(ctx, id); return err }))
		}
		began := time.Now()
		abort, err := m.c.AbortMigration(ctx, ref)
		must(t, "abort", err)
		_, err = abort.Wait(ctx)
		answered := time.Since(began)
		must(t, "repair", c.repair(ctx))
		tooLate := phase == "switch" || phase == "clean"
		if (fault.KindOf(err) == fault.Conflict) != tooLate || err != nil && !tooLate {
			t.Errorf("abort in %s: %v; too late is right: %t", phase, err, tooLate)
		}
		must(t, "after the abort in "+phase, until(ctx, matrixPatience, func() error {
			if phase == "queue" {
				m.plugged(ctx)
			}
			return c.inOrder(ctx)
		}))
		got, err := c.migration(ctx, c.source, id)
		if phase == "accept" && fault.KindOf(err) == fault.NotFound {
			got.Status, err = instance.MigrationCancelled, nil
		}
		if want := map[bool]instance.MigrationStatus{true: instance.MigrationCompleted, false: instance.MigrationCancelled}[tooLate]; err != nil || got.Status != want {
			t.Errorf("aborted in %s it ended as %s, %v; want %s", phase, got.Status, err, want)
		}
		t.Logf("abort in %-8s answered after %s, in order after %s", phase, answered.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}
}

// Post-copy, where it is permitted: force-complete switches a guest over that pre-copy would never bring across in time.
func TestPostCopy(t *testing.T) {
	s := newStage(t, "[migration]", "live_migration_permit_post_copy = true")
	ctx := t.Context()
	spec := s.boot(t, 10, "h1", "ca.dirty=12")
	task := s.begin(t, spec, api.MigrateArgs{Dest: "h2", BandwidthMiB: 8}, moving)
	force, err := s.c.ForceCompleteMigration(ctx, task.Migration())
	s.do(t, force, err)
	if abort, err := s.c.AbortMigration(ctx, task.Migration()); err != nil {
		t.Error(err)
	} else if _, err := abort.Wait(ctx); !errors.Is(err, fault.Conflict) && !errors.Is(err, fault.NotFound) {
		t.Errorf("an abort in post-copy answers %v, want conflict", err)
	}
	if m := s.end(t, task); m.Mode != instance.ModePostCopy {
		t.Errorf("it ended in mode %s, want post-copy", m.Mode)
	}
	must(t, "ping", lab.WaitPing(ctx, s.GuestAddress(10).Addr(), 5*time.Second))
	s.only(t, spec, 2)
}

// A second agent of the same host name refuses to start; the first one, stopped or killed and started again, leaves the
// guests alone; a deaf guest's soft reboot becomes a hard one.
func TestAgentComesBack(t *testing.T) {
	s := newStage(t, "[reboot]", `wait_soft_reboot_seconds = "3s"`)
	ctx := t.Context()
	spec := s.boot(t, 10, "h1", "ca.deaf=1")
	qemu, err := s.Host(1).QEMU(ctx, spec.UUID)
	must(t, "QEMU", err)

	if err := s.double(t); err == nil || !strings.Contains(err.Error(), "another agent serves this host") {
		t.Errorf("a second agent of h1 started, or did not say why not: %v", err)
	}
	for _, end := range []struct {
		how string
		do  func()
	}{{"SIGTERM", s.agent(1).Stop}, {"SIGKILL", s.agent(1).Kill}} {
		began := time.Now()
		end.do()
		gone := time.Since(began)
		must(t, "start", s.agent(1).Start(ctx))
		t.Logf("after %s, which took %s, the agent is ready in %s", end.how, gone.Round(time.Millisecond), s.agent(1).Ready.Round(time.Millisecond))
		if now, err := s.Host(1).QEMU(ctx, spec.UUID); err != nil || now != qemu {
			t.Errorf("after %s the guest's QEMU is process %d (%v), it was %d", end.how, now, err, qemu)
		}
		s.only(t, spec, 1)
	}

	began := time.Now()
	task, err := s.c.RebootInstance(ctx, spec.UUID, api.RebootSoft)
	ev, _ := s.do(t, task, err)
	if took := time.Since(began); !strings.Contains(string(ev.Result), `"`+api.RebootHard+`"`) || took < 3*time.Second {
		t.Errorf("the soft reboot of a deaf guest answers %s after %s, want a hard one after 3 s", ev.Result, took)
	}
	must(t, "ping", lab.WaitPing(ctx, s.GuestAddress(10).Addr(), 30*time.Second))
	s.only(t, spec, 1)
}

// double starts another agent under the first one's name, with a journal of its own, and gives why it refused.
func (s *stage) double(t *testing.T) error {
	t.Helper()
	a := s.agent(1)
	dir, err := s.Dir("double")
	must(t, "folder", err)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second) // or one that starts would stay
	defer cancel()
	cmd := s.Host(1).Command(ctx, "env", "-i", "PATH="+os.Getenv("PATH"), a.Binary(), "run", "--config", filepath.Join(filepath.Dir(a.Log()), "compute-agent.toml"),
		"--state-dir", filepath.Join(dir, "state"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w", out, err)
	}
	return nil
}
