package migration_test

import (
	"testing"
	"testing/synctest"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

func TestSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		inst := w.guest("a")
		m, err := w.migrate(inst, api.MigrateArgs{}).wait(t)
		if err != nil || m.Status != instance.MigrationCompleted {
			t.Fatalf("migration %+v, %v, want completed", m, err)
		}
		for _, l := range w.talk {
			t.Log(l)
		}
		t.Logf("%+v %+v", m, m.Result)
		w.check(inst, "b")
	})
}
