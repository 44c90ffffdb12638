package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

const drainHelp = `Move every running instance of a host to others while it runs, some at a time, and tell what could
not be moved and why. Before each migration both hosts are asked for every reason against it; among the
destinations that have none the one with the most room is taken. A destination that is busy is asked
again when it said, and one on which a migration failed is left out for that instance.

The host is disabled first, so that nothing new comes to it; "compute-agent host enable" opens it again.
Instances that are off can't be moved live: they are listed and stay.

Run it again to go on with what is left: migrations that are in progress are followed. After Ctrl-C no
new one begins, and you are asked whether those in progress go on; a second Ctrl-C leaves them alone.
The exit code is 0 when the host is empty, and 4 when something stayed.`

// drainFlags are the flags of a drain.
type drainFlags struct {
	controller.DrainOptions
	disable    bool
	completion time.Duration
}

func (a *app) hostDrain() *cobra.Command {
	f := &drainFlags{}
	c := &cobra.Command{
		Use: "drain HOST --to HOST[,HOST …]", Short: "Move every running instance to other hosts", Long: drainHelp,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeHosts,
		Example: "  compute-agent host drain node1 --to node2,node3\n  compute-agent host drain node1 --to node2 --parallel 4 --timeout 1h -o json",
	}
	a.drainFlags(c, f)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		f.StayOpen = !f.disable
		f.Migrate.CompletionTimeoutSeconds = int(f.completion.Seconds())
		if f.Reason == "" {
			f.Reason = "drained by " + a.env("USER", "an operator")
		}
		if f.Parallel < 1 {
			return usage("--parallel %d: at least 1", f.Parallel)
		}
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error { return a.drain(ctx, s, args[0], f.DrainOptions) })
	}
	return c
}

func (a *app) drainFlags(c *cobra.Command, f *drainFlags) {
	flags := c.Flags()
	flags.SortFlags = false
	flags.StringSliceVar(&f.To, "to", nil, "destinations, with commas or given again")
	flags.IntVar(&f.Parallel, "parallel", 2, "migrations at a time; more than the host's max_concurrent_live_migrations wait in its queue")
	flags.DurationVar(&f.Timeout, "timeout", 24*time.Hour, "begin no migration later than this; those in progress are followed")
	flags.BoolVar(&f.disable, "disable", true, "disable the host first; it stays disabled")
	flags.StringVar(&f.Reason, "reason", "", "why it is disabled (default \"drained by $USER\")")
	flags.DurationVar(&f.BusyTimeout, "busy-timeout", 10*time.Minute, "how long an instance comes back to destinations that are busy or away")
	flags.StringVar(&f.Migrate.Policy, "policy", "", "adaptive, nova, pause_now or post_copy_now (default: the host's)")
	flags.Uint64Var(&f.Migrate.BandwidthMiB, "bandwidth", 0, "MiB/s of each migration at most (default: the host's)")
	flags.DurationVar(&f.completion, "completion-timeout", 0, "end a migration after so long (default: the policy's)")
	a.must(c.MarkFlagRequired("to"))
	a.must(c.RegisterFlagCompletionFunc("to", a.completeHostList))
	a.must(c.RegisterFlagCompletionFunc("policy", cobra.FixedCompletions(instance.Policies(), cobra.ShellCompDirectiveNoFileComp)))
}

// drain empties a host while somebody watches. The first Ctrl-C ends the beginning of
// migrations, the second one the watching.
func (a *app) drain(ctx context.Context, s *session, host string, o controller.DrainOptions) error {
	view := a.newDrainView(host, o)
	o.Report = view.report
	d := s.Drain(host, o)
	signals, quiet := a.interrupts()
	defer quiet()
	work, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	begun := time.Now()
	run := green.Spawn(work, d.Run)
	interrupts := 0
	for ended := false; !ended; {
		select {
		case <-run.Done():
			ended = true
		case <-signals:
			if interrupts++; interrupts > 1 {
				view.leave()
				leave()
				continue
			}
			d.Stop()
			view.pause()
			green.SpawnN(work, func(ctx context.Context) error { return a.whether(ctx, d, view) })
		}
	}
	res, err := run.Wait(work)
	view.close()
	switch {
	case interrupts > 1 && errors.Is(err, context.Canceled):
		return &interrupted{whatGoesOn(host, o)}
	case err != nil:
		return err
	}
	if err := a.drained(res, time.Since(begun)); err != nil {
		return err
	}
	if err := res.Err(); interrupts > 0 && err != nil {
		return &interrupted{err.Error() + ".\n  " + again(host, o) + "   goes on"}
	}
	return hintedErr(res.Err(), "to go on: "+again(host, o))
}

// hintedErr adds a hint to an error, if there is one.
func hintedErr(err error, hint string) error {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e.WithHint("%s", hint)
	}
	return err
}

// again is the command that goes on.
func again(host string, o controller.DrainOptions) string {
	return "compute-agent host drain " + host + " --to " + strings.Join(o.To, ",")
}

func whatGoesOn(host string, o controller.DrainOptions) string {
	return "Migrations that are in progress go on.\n  compute-agent migration list --active   shows them\n  " + again(host, o) + "   follows them and goes on"
}

// whether asks a person what becomes of the migrations in progress. Where nobody can
// be asked they go on.
func (a *app) whether(ctx context.Context, d *controller.Drain, view *drainView) error {
	defer view.resume()
	n := len(d.Moving())
	switch {
	case n == 0:
		_, err := fmt.Fprintln(a.err, "\nNo new migration begins.")
		return err
	case !a.asks:
		_, err := fmt.Fprintf(a.err, "\nNo new migration begins; %s to its end. Ctrl-C again leaves them to their hosts.\n", goes(n))
		return err
	}
	_, _ = fmt.Fprintf(a.err, "\nNo new migration begins; %d in progress (%s). Let them go on to their end? [Y/n] ", n, view.names(slices.Sorted(maps.Keys(d.Moving()))))
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if answer := strings.ToLower(strings.TrimSpace(line)); err != nil && !errors.Is(err, io.EOF) || !strings.HasPrefix(answer, "n") {
		return nil
	}
	if err := d.Abort(ctx); err != nil {
		_, _ = fmt.Fprintln(a.err, "Not every one could be aborted: "+err.Error())
	}
	return nil
}

func goes(n int) string {
	if n == 1 {
		return "the one in progress is followed"
	}
	return fmt.Sprintf("the %d in progress are each followed", n)
}

// drained prints what became of the host.
func (a *app) drained(res controller.DrainResult, took time.Duration) error {
	if a.output != outputTable {
		return a.line(map[string]controller.DrainResult{"summary": res})
	}
	var counts []string
	for _, c := range []struct {
		n    int
		what string
	}{{len(res.Moved), "moved"}, {len(res.Gone), "gone by themselves"}, {len(res.Stayed), "stayed"}} {
		if c.n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	text := "nothing ran on it"
	if len(counts) > 0 {
		text = strings.Join(counts, ", ") + ", in " + short(took)
	}
	state := "is empty"
	if len(res.Stayed) > 0 {
		state = "is not empty"
	}
	_, err := fmt.Fprintf(a.out, "%s %s: %s\n", res.Host, state, text)
	if res.Disabled && err == nil {
		_, err = fmt.Fprintf(a.out, "It is disabled; `compute-agent host enable %s` opens it again\n", res.Host)
	}
	return err
}

// completeHostList completes the last host of a list with commas.
func (a *app) completeHostList(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	had, last := "", prefix
	if i := strings.LastIndex(prefix, ","); i >= 0 {
		had, last = prefix[:i+1], prefix[i+1:]
	}
	taken := append(strings.Split(had, ","), args...)
	words, directive := a.completeHosts(cmd, nil, last)
	var free []string
	for _, w := range words {
		if host, _, _ := strings.Cut(w, "\t"); !slices.Contains(taken, host) {
			free = append(free, had+w)
		}
	}
	return free, directive | cobra.ShellCompDirectiveNoSpace
}

// interrupts are the signals that end a program, for a command that has something to
// say to each of them.
func interrupts() (signals <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 4)
	notify(c)
	return c, func() { silence(c) }
}
