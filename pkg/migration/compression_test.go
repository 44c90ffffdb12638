package migration_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// What is asked for and can't be combined is refused at check, with every other reason;
// the host's own compression is no reason.
func TestCompressionIsChecked(t *testing.T) {
	inWorld(t, func(w *world, inst instance.Instance) {
		w.sites["b"].disabled = "for repairs"
		check := func(args api.MigrateArgs) []string {
			args.Instance, args.Dest = inst.UUID, "b"
			reasons, err := w.sites["a"].living().source.Check(w.ctx, inst, args)
			wantKind(t, "Check", err, "")
			return reasons
		}
		disabled := "on b: the host is disabled: for repairs"
		for _, c := range []struct {
			args api.MigrateArgs
			want []string
		}{
			{api.MigrateArgs{}, []string{disabled}},
			{api.MigrateArgs{ParallelConnections: 4}, []string{disabled}},
			{api.MigrateArgs{Compression: "mt", ParallelConnections: 4, Policy: instance.PolicyPostCopyNow}, []string{
				"on a: compression mt and parallel connections don't go together", "on a: compression mt and post-copy don't go together", disabled,
			}},
		} {
			if diff := cmp.Diff(c.want, check(c.args)); diff != "" {
				t.Errorf("%+v: reasons (-want +got):\n%s", c.args, diff)
			}
		}
		w.sites["b"].disabled = ""
		if m, err := w.migrate(inst, api.MigrateArgs{Compression: "xbzrle"}).wait(t); err != nil {
			t.Errorf("it ended as %s: %v", m.Status, err)
		}
		w.check(inst, "b")
	}, configure("a", func(c *migration.Config) { c.Compression = "xbzrle" }))
}
