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
	c := &cobra.Command{
		Use: "call HOST METHOD [key=value … | @FILE | -]", Short: "Call any method of an agent and print its answer", Args: cobra.MinimumNArgs(2),
		Long: "Call any method of an agent and print its answer, one JSON object.\n\n" + rawArgsHelp, ValidArgsFunction: a.completeMethods(api.Call),
		Example: "  compute-agent call node1 show_instance instance=web1\n  compute-agent call node1 get_available_resource\n" +
			"  compute-agent call node1 check_can_live_migrate_source instance=web1 dest=node2 --heartbeat 5s",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
				raw, err := a.requestBody(ctx, s, api.Call, args[1:])
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
	c.Flags().DurationVar(&a.heartbeat, "heartbeat", 0,
		"the agent says so often that it is still at it: the call may take as long as it takes, and is given up after two that don't come")
	return c
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
			raw, err := a.requestBody(ctx, s, api.Cast, args[1:])
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
	e, ok := errors.AsType[*fault.Error](err)
	if hint := near.Hint(method, methodNames(style)); ok && hint != "" && errors.Is(err, fault.UnsupportedMethod) {
		return e.WithHint("%s", hint)
	}
	return err
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

// requestBody makes the JSON object of a request from the command line: the method,
// and its arguments. What this version knows to be wrong is not sent; a method that it
// doesn't know is, for the agent may.
func (a *app) requestBody(ctx context.Context, s *session, style api.Style, words []string) (json.RawMessage, error) {
	method, args := words[0], words[1:]
	m, known := api.Find(method)
	if known && m.Style != style {
		return nil, fault.Newf(fault.UnsupportedMethod, "", method, "it is a %s", m.Style).WithHint("compute-agent %s HOST %s", m.Style, method)
	}
	if len(args) == 1 && (args[0] == "-" || strings.HasPrefix(args[0], "@")) {
		return a.readObject(method, args[0])
	}
	var want reflect.Type
	if known {
		want = reflect.TypeOf(m.Args()).Elem()
	}
	object, err := objectOf(ctx, s, want, words)
	if err == nil {
		err = enough(want, method, object)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(object)
}

// readObject reads the JSON object of @FILE or -.
func (a *app) readObject(method, from string) (json.RawMessage, error) {
	raw, err := a.readInput(strings.TrimPrefix(from, "@"))
	if err == nil && json.Unmarshal(raw, &map[string]any{}) != nil {
		err = fault.New(fault.InvalidArgument, method, from, "it is not a JSON object")
	}
	return raw, err
}

// objectOf makes an object of a method's key=value words.
func objectOf(ctx context.Context, s *session, want reflect.Type, words []string) (map[string]any, error) {
	method, args := words[0], words[1:]
	object := map[string]any{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, usage("%q: write key=value, @FILE or -", arg)
		}
		if err := member(want, method, key); err != nil {
			return nil, err
		}
		value, err := named(ctx, s, key, value)
		if err != nil {
			return nil, err
		}
		if err := put(object, key, typed(want, key, value)); err != nil {
			return nil, err
		}
	}
	return object, nil
}

// member refuses a key that a method of this version does not have: an agent ignores
// what it doesn't know, and a slip of the finger would go unseen.
func member(want reflect.Type, method, key string) error {
	head, _, nested := strings.Cut(key, ".")
	if want == nil || nested && fieldType(want, head) != nil || fieldType(want, key) != nil {
		return nil
	}
	hint := near.Hint(head, argumentNames(want, false))
	if hint == "" {
		hint = "it has " + strings.Join(argumentNames(want, false), ", ") + "; what a later version has can be sent with @FILE or -"
	}
	return fault.Newf(fault.InvalidArgument, "", method, "it has no argument %s", key).WithHint("%s", hint)
}

// enough refuses a request without what its method can't do without.
func enough(want reflect.Type, method string, object map[string]any) error {
	var missing []string
	for _, name := range argumentNames(want, true) {
		if object[name] == nil {
			missing = append(missing, name+"=…")
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fault.New(fault.InvalidArgument, "", method, "it also wants "+strings.Join(missing, " "))
}

// argumentNames are the names of a method's arguments, or of those that it must have.
func argumentNames(want reflect.Type, required bool) []string {
	var names []string
	if want == nil {
		return nil
	}
	for f := range want.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" && (!required || !strings.Contains(options, "omit")) {
			names = append(names, name)
		}
	}
	return names
}

// named turns the name of an instance into its UUID where a UUID is asked for.
func named(ctx context.Context, s *session, key, value string) (string, error) {
	if key != "instance" || instance.CheckUUID("", value) == nil {
		return value, nil
	}
	if value == "" {
		return "", usage("instance= is empty: write its name or its UUID")
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
