package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// The generated part of docs/rpc.md stands between these lines.
const (
	docBegin = "<!-- begin: generated from pkg/rpc/api by make generate -->\n"
	docEnd   = "<!-- end: generated -->\n"
)

// methodsInto replaces the generated part of docs/rpc.md; the rest is written by hand.
func methodsInto(root string, old []byte) ([]byte, error) {
	said, err := readComments(root, "pkg/rpc/api", "pkg/instance", "pkg/fault")
	if err != nil {
		return nil, err
	}
	head, rest, ok := bytes.Cut(old, []byte(docBegin))
	_, tail, ended := bytes.Cut(rest, []byte(docEnd))
	if !ok || !ended {
		return nil, fault.Newf(fault.PreconditionFailed, "", "", "the lines %q and %q are missing", strings.TrimSpace(docBegin), strings.TrimSpace(docEnd))
	}
	d := &rpcDoc{said: said, named: map[reflect.Type]bool{}}
	d.methods()
	d.bodies()
	d.kinds()
	return slices.Concat(head, []byte(docBegin), calm(d.b.Bytes()), []byte(docEnd), tail), nil
}

// calm leaves one empty line where there are more.
func calm(text []byte) []byte { return bytes.ReplaceAll(text, []byte("\n\n\n"), []byte("\n\n")) }

// rpcDoc writes the methods and every object that they name.
type rpcDoc struct {
	said  comments
	b     bytes.Buffer
	named map[reflect.Type]bool
	queue []reflect.Type
}

func (d *rpcDoc) methods() {
	fmt.Fprintf(&d.b, "\n## Methods, version %s\n", api.Version)
	for _, m := range api.Methods() {
		style := string(m.Style)
		if m.Peer {
			style += ", between agents"
		}
		fmt.Fprintf(&d.b, "\n### `%s`\n\n%s. %s\n\n", m.Name, strings.ToUpper(style[:1])+style[1:], m.Doc)
		d.members("Arguments", reflect.TypeOf(m.Args()).Elem())
		switch {
		case m.Reply != nil:
			d.members("Result", reflect.TypeOf(m.Reply()).Elem())
		case m.Style == api.Call:
			d.b.WriteString("Result: an empty object.\n\n")
		}
	}
}

// bodies are the events and the values of views, then every object named so far.
func (d *rpcDoc) bodies() {
	d.b.WriteString("\n## Bodies of events and views\n")
	for _, each := range []struct {
		where string
		t     reflect.Type
	}{
		{"event `task`", reflect.TypeFor[api.TaskEvent]()},
		{"event `instance`", reflect.TypeFor[api.InstanceEvent]()},
		{"event `migration`", reflect.TypeFor[api.MigrationEvent]()},
		{"view `COMPUTE_HOSTS`", reflect.TypeFor[api.HostView]()},
		{"view `COMPUTE_INSTANCES`", reflect.TypeFor[instance.Instance]()},
		{"view `COMPUTE_MIGRATIONS`", reflect.TypeFor[instance.Migration]()},
	} {
		d.name(each.t)
		fmt.Fprintf(&d.b, "\n* %s: %s", each.where, link(each.t))
	}
	d.b.WriteString("\n\n## Objects\n")
	for len(d.queue) > 0 {
		t := d.queue[0]
		d.queue = d.queue[1:]
		fmt.Fprintf(&d.b, "\n### %s\n\n", t.Name())
		d.table(t)
	}
}

func (d *rpcDoc) kinds() {
	d.b.WriteString("\n## Kinds of error\n\n| kind | code |\n|---|---|\n")
	kinds := []fault.Kind{
		fault.InvalidArgument, fault.Unauthorized, fault.NotFound, fault.Conflict, fault.Expired, fault.PreconditionFailed, fault.Busy,
		fault.Cancelled, fault.Internal, fault.UnsupportedMethod, fault.Unavailable, fault.Timeout, fault.UnsupportedVersion,
	}
	for _, k := range kinds {
		fmt.Fprintf(&d.b, "| `%s` | %d |\n", k, k.Code())
	}
}

func (d *rpcDoc) members(title string, t reflect.Type) {
	if t.NumField() == 0 {
		fmt.Fprintf(&d.b, "%s: an empty object.\n\n", title)
		return
	}
	if t.NumField() > 8 { // big enough to be an object of its own
		d.name(t)
		fmt.Fprintf(&d.b, "%s: %s\n\n", title, link(t))
		return
	}
	fmt.Fprintf(&d.b, "%s:\n\n", title)
	d.table(t)
	d.b.WriteString("\n")
}

func (d *rpcDoc) table(t reflect.Type) {
	d.b.WriteString("| member | type | meaning |\n|---|---|---|\n")
	d.rows(t)
}

func (d *rpcDoc) rows(t reflect.Type) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			d.rows(f.Type)
			continue
		case name == "-" || !f.IsExported():
			continue
		}
		kind := d.typeName(f.Type)
		if strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero") {
			kind += ", optional"
		}
		fmt.Fprintf(&d.b, "| `%s` | %s | %s |\n", name, kind, strings.ReplaceAll(d.said[t.Name()+"."+f.Name], "|", "\\|"))
	}
}

// typeName is the JSON type of a member; objects are described further down.
func (d *rpcDoc) typeName(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "time (RFC 3339)"
	case t == reflect.TypeFor[json.RawMessage]():
		return "object"
	case t.Kind() == reflect.Pointer:
		return d.typeName(t.Elem())
	case t.Kind() == reflect.Slice:
		return "array of " + d.typeName(t.Elem())
	case t.Kind() == reflect.Map:
		return "object of " + d.typeName(t.Elem())
	case t.Kind() == reflect.Struct:
		d.name(t)
		return link(t)
	}
	return scalar(t.Kind())
}

func scalar(k reflect.Kind) string {
	switch k { //nolint:exhaustive // what the wire has
	case reflect.Bool:
		return "boolean"
	case reflect.String:
		return "string"
	case reflect.Float64:
		return "number"
	case reflect.Interface:
		return "any"
	case reflect.Uint64, reflect.Uint:
		return "integer, not negative"
	default:
		return "integer"
	}
}

func (d *rpcDoc) name(t reflect.Type) {
	if !d.named[t] {
		d.named[t] = true
		d.queue = append(d.queue, t)
	}
}

func link(t reflect.Type) string {
	return fmt.Sprintf("[%s](#%s)", t.Name(), strings.ToLower(t.Name()))
}
