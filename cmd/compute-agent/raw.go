package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/internal/near"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

const rawArgsHelp = `Arguments are key=value, with dots for members of members (spec.vcpus=2); a value is taken as what the
method wants there, else as JSON if it is JSON, else as text. Or one @FILE or - with a JSON object. An
instance may be named by its name. docs/rpc.md lists the methods and their arguments.`

func (a *app) callCommand() *cobra.Command {
	return &cobra.Command{
		Use: "call HOST METHOD [key=value … | @FILE | -]", Short: "Call any method of an agent and print its answer", Args: cobra.MinimumNArgs(2),
		Long: "Call any method of an agent and print its answer, one JSON object.\n\n" + rawArgsHelp, ValidArgsFunction: a.completeMethods(api.Call),
		Example: "  compute-agent call node1 show_instance instance=web1\n  compute-agent call node1 get_available_resource",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
				raw, err := a.requestBody(ctx, s, args[1], args[2:])
				if err != nil {
					return err
				}
				var reply json.RawMessage
				if err := s.Call(ctx, args[0], args[1], raw, &reply); err != nil {
					return knownMethod(err, args[1], api.Call)
				}
				if a.output == outputTable {
					a.output = outputJSON
				}
				return a.encode(a.out, reply)
			})
		},
	}
}

func (a *app) castCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "cast HOST METHOD [key=value … | @FILE | -]", Short: "Cast any method to an agent and follow its task", Args: cobra.MinimumNArgs(2),
		Long: "Cast any method to an agent and follow its task.\n\n" + rawArgsHelp, ValidArgsFunction: a.completeMethods(api.Cast),
		Example: "  compute-agent cast node1 reboot_instance instance=web1 reboot_type=HARD\n  compute-agent cast node1 build_and_run_instance @spec.json --no-wait",
	}
	w := a.waitFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			raw, err := a.requestBody(ctx, s, args[1], args[2:])
			if err != nil {
				return err
			}
			t, err := s.Cast(ctx, args[0], args[1], raw)
			if err != nil {
				return err
			}
			return knownMethod(a.carryOut(ctx, t, w, args[1]+" succeeded on "+args[0]), args[1], api.Cast)
		})
	}
	return c
}

// knownMethod adds near names to the error of a method that the agent doesn't know.
func knownMethod(err error, method string, style api.Style) error {
	var e *fault.Error
	if !errors.Is(err, fault.UnsupportedMethod) || !errors.As(err, &e) || e.Hint != "" {
		return err
	}
	if m, ok := api.Find(method); ok && m.Style != style {
		return e.WithHint("it is a %s: compute-agent %s HOST %s", m.Style, m.Style, method)
	}
	return e.WithHint("%s", near.Hint(method, methodNames(style)))
}

func methodNames(style api.Style) []string {
	var names []string
	for _, m := range api.Methods() {
		if m.Style == style && !m.Peer {
			names = append(names, m.Name)
		}
	}
	return names
}

// requestBody makes the JSON object of a request from the command line.
func (a *app) requestBody(ctx context.Context, s *session, method string, args []string) (json.RawMessage, error) {
	if len(args) == 1 && (args[0] == "-" || strings.HasPrefix(args[0], "@")) {
		raw, err := a.readInput(strings.TrimPrefix(args[0], "@"))
		if err == nil && !json.Valid(raw) {
			err = fault.New(fault.InvalidArgument, method, args[0], "it is not JSON")
		}
		return raw, err
	}
	var want reflect.Type
	if m, ok := api.Find(method); ok {
		want = reflect.TypeOf(m.Args()).Elem()
	}
	object := map[string]any{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, usage("%q: write key=value, @FILE or -", arg)
		}
		value, err := named(ctx, s, key, value)
		if err != nil {
			return nil, err
		}
		if err := put(object, key, typed(want, key, value)); err != nil {
			return nil, err
		}
	}
	return json.Marshal(object)
}

// named turns the name of an instance into its UUID where a UUID is asked for.
func named(ctx context.Context, s *session, key, value string) (string, error) {
	if key != "instance" || instance.CheckUUID("", value) == nil {
		return value, nil
	}
	i, err := s.FindInstance(ctx, value)
	return i.UUID, err
}

// put stores a value under a dotted key.
func put(object map[string]any, key string, value any) error {
	head, rest, nested := strings.Cut(key, ".")
	if !nested {
		object[head] = value
		return nil
	}
	if object[head] == nil {
		object[head] = map[string]any{}
	}
	inner, ok := object[head].(map[string]any)
	if !ok {
		return usage("%s is a value and an object at once", head)
	}
	return put(inner, rest, value)
}

// typed reads a value as the field of that key wants it.
func typed(want reflect.Type, key, value string) any {
	if t := fieldType(want, key); t != nil && t.Kind() == reflect.String {
		return value
	}
	var v any
	dec := json.NewDecoder(strings.NewReader(value))
	dec.UseNumber()
	if dec.Decode(&v) == nil {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			return v
		}
	}
	return value
}

// fieldType finds the type of a dotted JSON key; nil if there is none.
func fieldType(t reflect.Type, key string) reflect.Type {
	head, rest, nested := strings.Cut(key, ".")
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	for f := range t.Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != head {
			continue
		}
		if nested {
			return fieldType(f.Type, rest)
		}
		for f.Type.Kind() == reflect.Pointer {
			f.Type = f.Type.Elem()
		}
		return f.Type
	}
	return nil
}
