package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

func (a *app) migrationResolve() *cobra.Command {
	var how string
	var yes bool
	c := &cobra.Command{
		Use: "resolve MIGRATION", Short: "Decide on a migration whose outcome is unknown", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeMigrations,
		Long: "Decide on a migration whose outcome is unknown (status error). Without --as it shows what both hosts see and changes\n" +
			"nothing. completed: the guest is the destination's; what the source has left is removed. failed: the guest is still the\n" +
			"source's; the destination undoes what it made. What a host sees of a running guest can't be overruled.",
		Example: "  compute-agent migration resolve web1\n  compute-agent migration resolve web1 --as completed",
	}
	c.Flags().StringVar(&how, "as", "", "completed or failed")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	a.must(c.RegisterFlagCompletionFunc("as", cobra.FixedCompletions([]string{api.ResolveCompleted, api.ResolveFailed}, cobra.ShellCompDirectiveNoFileComp)))
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := (api.ResolveArgs{Migration: "00000000-0000-4000-8000-000000000000", As: how}).Check(); err != nil {
			return err
		}
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			found, err := s.ResolveMigration(ctx, args[0], "")
			if err != nil {
				return err
			}
			if how == "" {
				return a.show(found, func(w io.Writer) { resolveFacts(w, found) })
			}
			if !yes {
				resolveFacts(a.err, found)
				if err := a.confirm(fmt.Sprintf("Take it as %s?", how)); err != nil {
					return err
				}
			}
			done, err := s.ResolveMigration(ctx, found.Migration.UUID, how)
			if err != nil {
				return err
			}
			return a.show(done, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "the migration goes on as %s; compute-agent migration watch %s\n", how, done.Migration.UUID)
			})
		})
	}
	return c
}

// resolveFacts shows what a person decides by.
func resolveFacts(w io.Writer, r api.ResolveResult) {
	owned := "no"
	if r.Owned {
		owned = "yes"
	}
	m := r.Migration
	facts(w, "Migration", m.UUID, "Instance", m.Instance, "Unknown since", stamp(m.UpdatedAt), "Why", text(m.Fault),
		"On "+m.Source, "the guest is "+r.Source, "On "+m.Dest, "the guest is "+r.Dest, m.Dest+" owns it", owned, "The facts prove", r.Outcome)
}

// confirm asks on the terminal; anything but yes is no.
func (a *app) confirm(question string) error {
	_, _ = fmt.Fprintf(a.err, "%s [y/N] ", question)
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return fault.New(fault.Cancelled, "", "", "nothing was done").WithHint("answer y, or say --yes")
}
