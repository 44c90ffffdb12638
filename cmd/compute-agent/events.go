package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// How long the stream may be quiet before its end is taken as reached.
const (
	firstEvent = 2 * time.Second
	nextEvent  = 300 * time.Millisecond
)

// eventFlags select events.
type eventFlags struct {
	follow, all              bool
	host, kind, id, instance string
	since                    time.Duration
}

func (a *app) eventsCommand() *cobra.Command {
	var e eventFlags
	c := &cobra.Command{
		Use: "events", Short: "Print what agents tell: tasks, instances, migrations, ports, hosts", Args: cobra.NoArgs,
		Long: "Print the events that the stream holds (a day, unless configured otherwise), or --follow what happens\n" +
			"from now on. With -o json each event is one object on one line.",
		Example: "  compute-agent events --since 10m\n  compute-agent events --follow --instance web1\n  compute-agent events --follow --kind task -o json",
	}
	f := c.Flags()
	f.SortFlags = false
	f.BoolVarP(&e.follow, "follow", "f", false, "go on with what happens from now")
	f.BoolVar(&e.all, "all", false, "with --follow: begin with what the stream holds")
	f.StringVar(&e.host, "host", "", "only of this host")
	f.StringVar(&e.kind, "kind", "", "only task, instance, migration, vif or host")
	f.StringVar(&e.instance, "instance", "", "only of this instance")
	f.StringVar(&e.id, "id", "", "only of this request, migration or port")
	f.DurationVar(&e.since, "since", 0, "only those younger than this")
	a.must(c.RegisterFlagCompletionFunc("host", a.completeHosts))
	a.must(c.RegisterFlagCompletionFunc("instance", a.completeInstances))
	a.must(c.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(eventKinds(), cobra.ShellCompDirectiveNoFileComp)))
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error { return a.events(ctx, s, e) })
	}
	return c
}

func eventKinds() []string {
	return []string{api.EventTask, api.EventInstance, api.EventMigration, api.EventVIF, api.EventHost}
}

func (a *app) events(ctx context.Context, s *session, e eventFlags) error {
	if e.instance != "" {
		id, err := named(ctx, s, "instance", e.instance)
		if err != nil {
			return err
		}
		e.instance = id
	}
	f := rpc.EventFilter{Host: e.host, Kind: e.kind, ID: e.id, From: rpc.FromAll}
	if e.follow && !e.all && e.since == 0 {
		f.From = rpc.FromNow
	}
	p := &eventPrinter{app: a, of: e.instance, names: namesOf(ctx, s), phases: map[string]string{}}
	show := func(event rpc.Event) error {
		if e.since > 0 && time.Since(event.At) > e.since {
			return nil
		}
		return p.print(event)
	}
	if e.follow {
		err := s.WatchEvents(ctx, f, show)
		if ctx.Err() != nil && errors.Is(err, context.Canceled) { // Ctrl-C is how following ends
			return nil
		}
		return err
	}
	return upToNow(ctx, s.bus, f, show)
}

// namesOf are the names of the instances that are published, by UUID: a comfort, so
// none is no error.
func namesOf(ctx context.Context, s *session) map[string]string {
	names := map[string]string{}
	if all, err := s.Instances(ctx); err == nil {
		for _, i := range all {
			names[i.UUID] = i.Name
		}
	}
	return names
}

// upToNow reads until the stream is quiet.
func upToNow(ctx context.Context, bus rpc.Client, f rpc.EventFilter, show func(rpc.Event) error) (err error) {
	events, err := bus.Events(ctx, f)
	if err != nil {
		return fault.Wrap(err, "read events", "")
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	for quiet := firstEvent; ; quiet = nextEvent {
		wait, cancel := context.WithTimeout(ctx, quiet)
		event, err := events.Next(wait)
		over := wait.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil {
			if over {
				return nil
			}
			return err
		}
		if err := show(event); err != nil {
			return err
		}
	}
}

// eventBody is what all bodies have in common, and what each says in one line.
type eventBody struct {
	Instance  json.RawMessage `json:"instance"`
	Method    string          `json:"method"`
	State     string          `json:"state"`
	Event     string          `json:"event"`
	Detail    string          `json:"detail"`
	VMState   string          `json:"vm_state"`
	Error     *fault.Error    `json:"error"`
	Migration json.RawMessage `json:"migration"`
}

// eventPrinter prints events as lines.
type eventPrinter struct {
	app    *app
	of     string            // only of this instance, and its UUID is not repeated
	names  map[string]string // of instances
	phases map[string]string // what was last told of each migration
}

// print prints one event if it is of the instance that is asked for, and new.
func (p *eventPrinter) print(e rpc.Event) error {
	var b eventBody
	_ = json.Unmarshal(e.Body, &b) // a body of a later version is shown without its line
	var m instance.Migration
	var id string
	if json.Unmarshal(b.Migration, &m) == nil {
		id = m.Instance
	}
	if id == "" {
		_ = json.Unmarshal(b.Instance, &id)
	}
	if p.of != "" && id != p.of {
		return nil
	}
	if p.app.output != outputTable {
		return p.app.printEventObject(e)
	}
	if m.UUID != "" {
		step := string(m.Status) + " " + m.Phase
		if p.phases[m.UUID] == step {
			return nil
		}
		p.phases[m.UUID] = step
	}
	_, err := fmt.Fprintf(p.app.out, "%s  %-16s  %-9s  %-36s  %s\n", e.At.Local().Format("15:04:05.000"), e.Host, e.Kind, e.ID, p.sentence(e, b, m, id))
	return err
}

// sentence says what happened.
func (p *eventPrinter) sentence(e rpc.Event, b eventBody, m instance.Migration, id string) string {
	line := b.Event
	switch {
	case m.UUID != "":
		line = fmt.Sprintf("%s (%s), %s to %s", m.Status, m.Phase, m.Source, m.Dest)
		b.Error = m.Fault
	case b.State != "" && b.Method != "":
		line = b.Method + " " + b.State
	case b.Event != "" && b.Detail != "":
		line += ": " + b.Detail
	}
	if name := p.names[id]; p.of == "" && id != "" {
		switch {
		case name != "" && name != id:
			line += ", instance " + name
		case id != e.ID:
			line += ", instance " + id
		}
	}
	if b.Error != nil {
		line += ": " + b.Error.Error()
	}
	return line
}

func (a *app) printEventObject(e rpc.Event) error {
	object := struct {
		Sequence uint64          `json:"sequence"`
		At       time.Time       `json:"at"`
		Host     string          `json:"host"`
		Kind     string          `json:"kind"`
		ID       string          `json:"id"`
		Body     json.RawMessage `json:"body"`
	}{e.Sequence, e.At, e.Host, e.Kind, e.ID, e.Body}
	return a.line(object)
}
