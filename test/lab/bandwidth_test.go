package lab_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// limited waits until libvirt has a limit, in MiB/s, for a guest's migration.
func (s *stage) limited(t *testing.T, spec instance.Spec, mib string) {
	t.Helper()
	must(t, "the limit of "+spec.Name, until(t.Context(), 10*time.Second, func() error {
		got, err := s.Host(1).Virsh(t.Context(), "migrate-getspeed", spec.UUID)
		if err == nil && got != mib {
			err = fmt.Errorf("libvirt has %s MiB/s, want %s", got, mib)
		}
		return err
	}))
}

// What a host allows all migrations together is divided among them, anew whenever one begins or ends; a migration's own
// limit is changed while it runs, and survives the agent's death. The measure is what libvirt has set, and the time.
func bandwidthIsSteered(t *testing.T) {
	s := newStage(t, "[migration]\nlive_migration_total_bandwidth = 16\nlive_migration_completion_timeout = \"0s\"\n")
	ctx := t.Context()
	one, two := s.boot(t, 10, "h1", "ca.dirty=24"), s.boot(t, 11, "h1", "ca.dirty=24") // they never end by themselves
	first := s.begin(t, one, api.MigrateArgs{Dest: "h2"}, moving)
	s.limited(t, one, "16")
	second := s.begin(t, two, api.MigrateArgs{Dest: "h2"}, moving)
	s.limited(t, one, "8")
	s.limited(t, two, "8")

	limit, err := s.c.LimitMigration(ctx, first.Migration(), 4)
	s.do(t, limit, err)
	s.limited(t, one, "4") // before the answer
	s.limited(t, two, "12")
	must(t, "the measured bandwidth", until(ctx, 20*time.Second, func() error {
		m, err := s.c.ShowMigration(ctx, first.Migration())
		if err == nil && (m.Progress.Bandwidth == 0 || m.Progress.Bandwidth > 6<<20) {
			err = fmt.Errorf("%d bytes/s", m.Progress.Bandwidth)
		}
		return err
	}))
	s.agent(1).Kill()
	must(t, "start", s.agent(1).Start(ctx))
	abort, err := s.c.AbortMigration(ctx, second.Migration())
	s.do(t, abort, err)
	s.limited(t, one, "4") // its own limit, which the agent remembers
	limit, err = s.c.LimitMigration(ctx, first.Migration(), 0)
	s.do(t, limit, err)
	s.limited(t, one, "16")
	abort, err = s.c.AbortMigration(ctx, first.Migration())
	s.do(t, abort, err)
	for _, task := range []interface {
		Wait(context.Context) (api.TaskEvent, error)
	}{first, second} {
		if _, err := task.Wait(ctx); err == nil {
			t.Error("an aborted migration has completed")
		}
	}
}
