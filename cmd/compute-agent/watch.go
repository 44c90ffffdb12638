package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

func (a *app) instanceWatch() *cobra.Command {
	return &cobra.Command{
		Use: "watch [INSTANCE]", Short: "Print a line whenever an instance changes", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeInstances,
		Long: "Print how all instances, or one, are now, and then a line for each change of host, state, task or power,\n" +
			"until Ctrl-C. With -o json each record is one object on one line; one with \"gone\" has left its host.",
		Example: "  compute-agent instance watch\n  compute-agent instance watch web1 -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, s *session) error { return a.watchInstances(ctx, s, args) })
		},
	}
}

func (a *app) watchInstances(ctx context.Context, s *session, args []string) error {
	id := "*"
	if len(args) > 0 {
		i, err := s.FindInstance(ctx, args[0])
		if err != nil {
			return err
		}
		id = i.UUID
	}
	w := instanceLines{shown: map[string]string{}, names: map[string]string{}}
	err := s.WatchInstances(ctx, "*", id, func(i instance.Instance, gone bool) error {
		if a.output != outputTable {
			return a.line(watched{i, gone})
		}
		line := w.of(i, gone)
		if line == "" {
			return nil
		}
		_, err := fmt.Fprintf(a.out, "%s  %s\n", time.Now().Format("15:04:05"), line)
		return err
	})
	if ctx.Err() != nil && errors.Is(err, context.Canceled) { // Ctrl-C is how watching ends
		return nil
	}
	return err
}

// watched is a record as programs get it.
type watched struct {
	instance.Instance
	Gone bool `json:"gone,omitempty"`
}

// instanceLines tell what is new of instances.
type instanceLines struct {
	shown map[string]string // the last line of each record, by host and UUID
	names map[string]string // by UUID: a record that is gone has no name
}

// of is the line of a record; empty when nothing in it that people look at has changed.
func (w *instanceLines) of(i instance.Instance, gone bool) string {
	key := i.Host + " " + i.UUID
	if gone {
		delete(w.shown, key)
		return fmt.Sprintf("%-20s  %-16s  gone", cmp.Or(w.names[i.UUID], i.UUID), i.Host)
	}
	w.names[i.UUID] = cmp.Or(i.Name, i.UUID)
	line := fmt.Sprintf("%-20s  %-16s  %-9s  %-9s  %s", w.names[i.UUID], i.Host, i.VMState, i.PowerState, i.TaskState)
	if i.Fault != nil {
		line += "  fault: " + i.Fault.Error()
	}
	line = strings.TrimRight(line, " ")
	if w.shown[key] == line {
		return ""
	}
	w.shown[key] = line
	return line
}

// pastMigrations are the migrations that events tell of: also those whose source
// keeps no record any more.
func pastMigrations(ctx context.Context, s *session, present []instance.Migration) ([]instance.Migration, error) {
	known := map[string]bool{}
	for _, m := range present {
		known[m.UUID] = true
	}
	all := slices.Clone(present)
	f := rpc.EventFilter{Kind: api.EventMigration, From: rpc.FromLast}
	err := upToNow(ctx, s.bus, f, func(e rpc.Event) error {
		if m, ok := migrationOf(e); ok && !known[m.UUID] {
			known[m.UUID] = true
			all = append(all, m)
		}
		return nil
	})
	slices.SortStableFunc(all, func(a, b instance.Migration) int { return a.StartedAt.Compare(b.StartedAt) })
	return all, err
}

func migrationOf(e rpc.Event) (instance.Migration, bool) {
	var body api.MigrationEvent
	err := json.Unmarshal(e.Body, &body)
	return body.Migration, err == nil && body.Migration.UUID != ""
}

// migrationSteps are the changes of one migration, as its events tell them.
func migrationSteps(ctx context.Context, s *session, id string) ([]api.MigrationEvent, error) {
	steps := []api.MigrationEvent{}
	f := rpc.EventFilter{Kind: api.EventMigration, ID: id, From: rpc.FromAll}
	err := upToNow(ctx, s.bus, f, func(e rpc.Event) error {
		if m, ok := migrationOf(e); ok {
			steps = append(steps, api.MigrationEvent{Migration: m, At: e.At})
		}
		return nil
	})
	return steps, err
}

func stepTable(w io.Writer, steps []api.MigrationEvent) {
	t := newTable(w, "AT", "AFTER", "STATUS", "PHASE", "MODE", "DONE", "FAULT")
	for _, e := range steps {
		m := e.Migration
		t.row(e.At.Local().Format("15:04:05.000"), short(max(0, e.At.Sub(steps[0].At))), string(m.Status), m.Phase, string(m.Mode), percent(m), text(m.Fault))
	}
	t.flush("The stream has no event of it any more.")
}
