package lab_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

// quietly cuts the guests of all hosts off their network before something is done, or joins them again afterwards; a moment
// later no packet for them is on its way any more.
func quietly(ctx context.Context, l *lab.Lab, cut bool, do func(context.Context) error) error {
	var errs []error
	for _, h := range l.Hosts() {
		if cut {
			errs = append(errs, h.CutGuests(ctx, true))
		}
	}
	if cut {
		wait(ctx, settled)
	}
	errs = append(errs, do(ctx))
	for _, h := range l.Hosts() {
		if !cut {
			errs = append(errs, h.CutGuests(ctx, false))
		}
	}
	return errors.Join(errs...)
}

// slowPostCopy keeps an idle guest of 128 MiB in post-copy for about 15 s.
const slowPostCopy = "[migration]\nlive_migration_permit_post_copy = true\nlive_migration_post_copy_bandwidth = 4\n"

// settled is after how long in post-copy an idle guest has the pages that it always needs. Under TCG an interrupt that finds
// its page missing keeps QEMU from telling anybody anything.
const settled = 4 * time.Second

// rush starts a migration of a guest to h2 and brings it into post-copy.
func (s *stage) rush(t *testing.T, spec instance.Spec) *controller.Task {
	t.Helper()
	task := s.begin(t, spec, api.MigrateArgs{Dest: "h2", BandwidthMiB: 8}, moving)
	force, err := s.c.ForceCompleteMigration(t.Context(), task.Migration())
	s.do(t, force, err)
	must(t, "post-copy", until(t.Context(), 20*time.Second, func() error {
		state, err := s.Host(2).Virsh(t.Context(), "domstate", "--reason", spec.UUID)
		if err == nil && state != "running (post-copy)" {
			err = fmt.Errorf("on h2 the guest is %s", state)
		}
		return err
	}))
	return task
}

// broken waits until both hosts say that post-copy is broken.
func (s *stage) broken(t *testing.T, spec instance.Spec) {
	t.Helper()
	must(t, "both ends to notice", until(t.Context(), 30*time.Second, func() error {
		for n, want := range map[int]string{1: "paused (post-copy failed)", 2: "running (post-copy failed)"} {
			if state, err := s.Host(n).Virsh(t.Context(), "domstate", "--reason", spec.UUID); err != nil || state != want {
				return errors.Join(err, fmt.Errorf("on h%d the guest is %s", n, state))
			}
		}
		return nil
	}))
}

// The network breaks in post-copy, when there is no way back: the guest's memory is on two hosts. The agent takes the
// migration up until it holds, by itself, on request, and over its own death; then the guest is whole.
func brokenPostCopyIsTakenUp(t *testing.T) {
	s := newStage(t, slowPostCopy)
	ctx := t.Context()
	for n, c := range []struct {
		name   string
		during func()
	}{
		{"by itself", func() {}},
		{"over the agent's death", func() {
			s.agent(1).Kill()
			must(t, "start", s.agent(1).Start(ctx))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := s.boot(t, 10+n, "h1")
			for _, h := range s.Hosts() { // see BreakStream
				must(t, "cut", h.CutGuests(ctx, true))
			}
			task := s.rush(t, spec)
			wait(ctx, settled)
			must(t, "break", s.Host(1).BreakStream(ctx))
			s.broken(t, spec)
			c.during()
			wait(ctx, 3*time.Second) // the agent tries, and fails
			if m, err := s.c.ShowMigration(ctx, task.Migration()); err != nil || m.Status != instance.MigrationRunning {
				t.Errorf("while it is broken the migration is %s (%v), %v; want running", m.Status, m.Fault, err)
			}
			if abort, err := s.c.AbortMigration(ctx, task.Migration()); err != nil {
				t.Error(err)
			} else if _, err := abort.Wait(ctx); !errors.Is(err, fault.Conflict) {
				t.Errorf("an abort of a broken post-copy answers %v, want conflict", err)
			}
			must(t, "heal", s.Host(1).Unfilter(ctx))
			healed := time.Now()
			again, err := s.c.RecoverMigration(ctx, task.Migration())
			s.do(t, again, err)
			if m := s.end(t, task); m.Mode != instance.ModePostCopy {
				t.Errorf("it ended in mode %s, want post-copy", m.Mode)
			}
			t.Logf("whole %s after the network was", time.Since(healed).Round(100*time.Millisecond))
			for _, h := range s.Hosts() {
				must(t, "join", h.CutGuests(ctx, false))
			}
			must(t, "ping", lab.WaitPing(ctx, s.GuestAddress(10+n).Addr(), 5*time.Second))
			s.only(t, spec, 2)
			gone, err := s.c.TerminateInstance(ctx, spec.UUID)
			s.do(t, gone, err)
		})
	}
}
