package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

func (a *app) migrationCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "migration", Aliases: []string{"migrations"}, Short: "Live migrations: start, watch, abort",
		Long:    "Live migrations. A MIGRATION is its UUID, or an instance (UUID or name): then its newest migration is meant.",
		Example: "  compute-agent migration start web1 --to node2\n  compute-agent migration watch web1",
	}
	c.AddCommand(a.migrationStart(), a.migrationCheck(), a.migrationList(), a.migrationShow(), a.migrationWatch(), a.migrationResolve(),
		a.steer("abort", "End a migration that has not switched over yet; the guest stays", (*controller.Client).AbortMigration, "is aborted"),
		a.steer("force-complete", "Make a running migration end now, by post-copy where it is allowed, else by pausing the guest", (*controller.Client).ForceCompleteMigration, "is being completed"),
		a.steer("recover", "Take up a post-copy whose connection broke, now", (*controller.Client).RecoverMigration, "is taken up again"), a.migrationLimit())
	return c
}

// moveFlags are the arguments of a migration.
type moveFlags struct {
	args    api.MigrateArgs
	block   bool
	timeout time.Duration
}

func (a *app) moveFlags(c *cobra.Command) *moveFlags {
	m := &moveFlags{}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&m.args.Dest, "to", "", "destination host")
	f.StringVar(&m.args.Policy, "policy", "", "adaptive, nova, pause_now or post_copy_now (default: the host's)")
	f.Uint64Var(&m.args.BandwidthMiB, "bandwidth", 0, "MiB/s at most (default: the host's)")
	f.BoolVar(&m.block, "block-migration", false, "copy the disks (default: those that are not shared)")
	f.IntVar(&m.args.ParallelConnections, "parallel", 0, "connections that the memory is spread over (default: the host's)")
	f.StringVar(&m.args.Compression, "compression", "", "xbzrle, mt, zlib, zstd or none (default: the host's)")
	f.DurationVar(&m.timeout, "completion-timeout", 0, "end it after so long (default: the policy's)")
	f.StringVar(&m.args.Priority, "priority", "", "user or drain: its place in the queue (default user)")
	a.must(c.MarkFlagRequired("to"))
	a.must(c.RegisterFlagCompletionFunc("to", a.completeHosts))
	a.must(c.RegisterFlagCompletionFunc("policy", cobra.FixedCompletions(instance.Policies(), cobra.ShellCompDirectiveNoFileComp)))
	a.must(c.RegisterFlagCompletionFunc("compression", cobra.FixedCompletions(instance.CompressionWords(), cobra.ShellCompDirectiveNoFileComp)))
	a.must(c.RegisterFlagCompletionFunc("priority", cobra.FixedCompletions([]string{api.PriorityUser, api.PriorityDrain}, cobra.ShellCompDirectiveNoFileComp)))
	return m
}

func (m *moveFlags) of(cmd *cobra.Command) api.MigrateArgs {
	if cmd.Flags().Changed("block-migration") {
		m.args.BlockMigration = &m.block
	}
	m.args.CompletionTimeoutSeconds = int(m.timeout.Seconds())
	return m.args
}

func (a *app) migrationStart() *cobra.Command {
	c := &cobra.Command{
		Use: "start INSTANCE --to HOST", Short: "Move a running instance to another host", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeInstances,
		Long: "Move a running instance to another host and show how it goes: a bar on a terminal, lines elsewhere.\n" +
			"Ctrl-C ends the showing, not the migration.",
		Example: "  compute-agent migration start web1 --to node2\n  compute-agent migration start web1 --to node2 --bandwidth 500 --no-wait",
	}
	m := a.moveFlags(c)
	w := a.waitFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			t, err := s.LiveMigration(ctx, args[0], m.of(cmd))
			if err != nil {
				return err
			}
			return a.followMigration(ctx, s, t, w, args[0])
		})
	}
	return c
}

func (a *app) migrationCheck() *cobra.Command {
	c := &cobra.Command{
		Use: "check INSTANCE --to HOST", Short: "Ask both hosts for every reason against a migration", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeInstances,
		Long:    "Ask both hosts for every reason against a migration. Nothing is changed. With a reason the exit code is 4.",
		Example: "  compute-agent migration check web1 --to node2",
	}
	m := a.moveFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			reasons, err := s.CheckMigration(ctx, args[0], m.of(cmd))
			if err != nil {
				return err
			}
			if len(reasons) > 0 {
				return fault.Newf(fault.PreconditionFailed, "", args[0], "it can't move to %s", m.args.Dest).WithDetail("reasons", reasons)
			}
			return a.show(api.CheckResult{Reasons: []string{}}, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%s can move to %s\n", args[0], m.args.Dest) })
		})
	}
	return c
}

func (a *app) steer(use, short string, do func(*controller.Client, context.Context, string) (*controller.Task, error), done string) *cobra.Command {
	c := &cobra.Command{
		Use: use + " MIGRATION", Short: short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeMigrations,
		Example: "  compute-agent migration " + use + " web1",
	}
	w := a.waitFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			t, err := do(s.Client, ctx, args[0])
			if err != nil {
				return err
			}
			return a.carryOut(ctx, t, w, "migration of "+args[0]+" "+done)
		})
	}
	return c
}

func (a *app) migrationLimit() *cobra.Command {
	c := &cobra.Command{
		Use: "set-bandwidth MIGRATION MIB", Short: "Change the bandwidth of a migration that is under way, in MiB/s", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeMigrations,
		Long: "Change the bandwidth of a migration that is under way, in MiB/s; 0 lifts the limit. What the host allows all migrations\n" +
			"together (migration.live_migration_total_bandwidth) stays as it is.",
		Example: "  compute-agent migration set-bandwidth web1 200\n  compute-agent migration set-bandwidth web1 0",
	}
	w := a.waitFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		mib, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return fault.Newf(fault.InvalidArgument, "", "MIB", "%q is no whole number of MiB/s", args[1])
		}
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			t, err := s.LimitMigration(ctx, args[0], mib)
			if err != nil {
				return err
			}
			return a.carryOut(ctx, t, w, fmt.Sprintf("bandwidth of %s is changed", args[0]))
		})
	}
	return c
}

func (a *app) migrationList() *cobra.Command {
	var active, history bool
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List migrations, the oldest first", Args: cobra.NoArgs,
		Long: "List the migrations that the hosts publish: those in progress, and those that ended as long as their source keeps\n" +
			"them. With --history also those that only events tell of any more (a day, unless configured otherwise).",
		Example: "  compute-agent migration list\n  compute-agent migration list --active\n  compute-agent migration list --history",
	}
	c.Flags().BoolVar(&active, "active", false, "only those in progress")
	c.Flags().BoolVar(&history, "history", false, "also those that no host keeps any more")
	c.MarkFlagsMutuallyExclusive("active", "history")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			all, err := s.Migrations(ctx)
			if err == nil && history {
				all, err = pastMigrations(ctx, s, all)
			}
			if err != nil {
				return err
			}
			some := make([]instance.Migration, 0, len(all))
			for _, m := range all {
				if !active || !m.Status.Ended() {
					some = append(some, m)
				}
			}
			names := namesOf(ctx, s)
			return a.show(some, func(w io.Writer) { migrationTable(w, some, names) })
		})
	}
	return c
}

func migrationTable(w io.Writer, all []instance.Migration, names map[string]string) {
	t := newTable(w, "UUID", "INSTANCE", "FROM", "TO", "STATUS", "PHASE", "DONE", "TOOK", "STARTED")
	for _, m := range all {
		name := names[m.Instance]
		if name == "" {
			name = m.Instance
		}
		t.row(m.UUID, name, m.Source, m.Dest, statusText(m), m.Phase, percent(m), short(took(m)), ago(m.StartedAt, time.Now()))
	}
	t.flush("No migrations.")
}

// statusText marks what waits for a person.
func statusText(m instance.Migration) string {
	if m.Status == instance.MigrationError {
		return "error (resolve it)"
	}
	return string(m.Status)
}

// took is how long a migration ran, or has been running.
func took(m instance.Migration) time.Duration {
	switch {
	case m.Result != nil && m.Result.TotalMS > 0:
		return time.Duration(m.Result.TotalMS) * time.Millisecond
	case m.Status.Ended() && !m.EndedAt.IsZero():
		return m.EndedAt.Sub(m.StartedAt)
	default:
		return time.Since(m.StartedAt)
	}
}

func percent(m instance.Migration) string {
	if m.Status == instance.MigrationCompleted {
		return "100%"
	}
	return fmt.Sprintf("%d%%", m.Progress.Percent)
}

func (a *app) migrationShow() *cobra.Command {
	var history bool
	c := &cobra.Command{
		Use: "show MIGRATION", Short: "Show one migration", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeMigrations,
		Example: "  compute-agent migration show web1\n  compute-agent migration show web1 --history\n  compute-agent migration show web1 -o yaml",
	}
	c.Flags().BoolVar(&history, "history", false, "its steps, and when each began")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			m, err := s.FindMigration(ctx, args[0])
			if err != nil && (!history || instance.CheckUUID("", args[0]) != nil) {
				return err
			}
			if !history {
				return a.show(m, func(w io.Writer) {
					migrationFacts(w, m, a.called(m.Instance))
					if m.Result != nil {
						migrationPlot(w, m.Result.Timeline, a.ramp())
					}
				})
			}
			steps, err := migrationSteps(ctx, s, cmp.Or(m.UUID, args[0]))
			if err != nil {
				return err
			}
			return a.show(steps, func(w io.Writer) { stepTable(w, steps) })
		})
	}
	return c
}

func migrationFacts(w io.Writer, m instance.Migration, of string) {
	pairs := []string{
		"Migration", m.UUID, "Instance", of, "From", m.Source, "To", m.Dest, "Status", string(m.Status), "Phase", m.Phase, "Mode", string(m.Mode), "Policy", m.Policy,
		"Fault", text(m.Fault), "Done", percent(m),
	}
	if p := m.Progress; !m.Status.Ended() {
		pairs = append(pairs, "Memory", amount(p.Memory), "Disk", amount(p.Disk), "Rate", rate(p.Bandwidth), "Dirty rate", rate(p.DirtyRate),
			"Iteration", count(p.Iteration), "Permitted pause", milliseconds(p.PermittedDowntimeMS), "Implied pause", milliseconds(p.ImpliedDowntimeMS))
	}
	if r := m.Result; r != nil {
		pairs = append(pairs, "Took", milliseconds(r.TotalMS), "Guest paused", milliseconds(r.DowntimeMS), "Moved", moved(*r),
			"Guest throttled", throttle(r.ThrottlePercent), "Compressed", compressed(*r), "Reason", r.Reason)
	}
	facts(w, append(pairs, "Started", stamp(m.StartedAt), "Ended", stamp(m.EndedAt), "Request id", m.RequestID)...)
}

func throttle(percent int) string {
	if percent == 0 {
		return ""
	}
	return fmt.Sprintf("%d%% at most", percent)
}

func compressed(r instance.Result) string {
	if r.CompressedPages == 0 {
		return ""
	}
	return fmt.Sprintf("%d pages to %s", r.CompressedPages, size(r.CompressedBytes))
}

func amount(n instance.Amount) string {
	if n.Total == 0 {
		return ""
	}
	return fmt.Sprintf("%s of %s moved, %s remain", size(n.Processed), size(n.Total), size(n.Remaining))
}

func rate(n uint64) string {
	if n == 0 {
		return ""
	}
	return size(n) + "/s"
}

func count(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func milliseconds(n int64) string {
	if n == 0 {
		return ""
	}
	return short(time.Duration(n) * time.Millisecond)
}

func (a *app) migrationWatch() *cobra.Command {
	return &cobra.Command{
		Use: "watch MIGRATION", Short: "Show how a migration goes until it has ended", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeMigrations,
		Long: "Show how a migration goes until it has ended. Of an instance the newest one is meant, also one that its host has\n" +
			"accepted and not begun. The exit code tells how it ended: 0 completed, 8 cancelled, else what was in the way.",
		Example: "  compute-agent migration watch web1",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
				m, err := s.FindMigration(ctx, args[0])
				if err != nil && !errors.Is(err, fault.NotFound) {
					return err
				}
				if err == nil && (m.UUID == args[0] || !m.Status.Ended()) {
					return a.watchMigration(ctx, s, m, args[0])
				}
				t, pending := s.PendingMigration(ctx, args[0])
				switch {
				case pending == nil:
					return a.followMigration(ctx, s, t, &waiting{wait: true}, args[0])
				case err != nil:
					return err
				}
				return a.watchMigration(ctx, s, m, args[0])
			})
		},
	}
}
