package main

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// object is a JSON object; the encoder writes its members in alphabetical order.
type object map[string]any

const asyncHead = "# Generated from pkg/rpc/api by make generate. docs/rpc.md says the same to people.\n"

// asyncapi is the wire as an AsyncAPI 3.0 document, from the agent's side: it receives
// calls and casts, and sends replies, events and the entries of views.
func asyncapi(root string, _ []byte) ([]byte, error) {
	said, err := readComments(root, "pkg/rpc/api", "pkg/instance", "pkg/fault")
	if err != nil {
		return nil, err
	}
	d := &asyncDoc{said: said, schemas: object{}, messages: object{}, channels: object{}, operations: object{}}
	d.errors()
	d.heartbeat()
	for _, m := range api.Methods() {
		d.method(m)
	}
	d.publications()
	var b bytes.Buffer
	b.WriteString(asyncHead)
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(d.document()); err != nil {
		return nil, fault.WrapAs(fault.Internal, err, "yaml", "")
	}
	return b.Bytes(), nil
}

type asyncDoc struct {
	said                                    comments
	schemas, messages, channels, operations object
}

func (d *asyncDoc) document() any {
	return struct {
		AsyncAPI   string `yaml:"asyncapi"`
		Info       object `yaml:"info"`
		Default    string `yaml:"defaultContentType"`
		Servers    object `yaml:"servers"`
		Channels   object `yaml:"channels"`
		Operations object `yaml:"operations"`
		Components object `yaml:"components"`
	}{
		"3.0.0",
		object{
			"title": "compute-agent", "version": api.Version, "license": object{"name": "Apache-2.0"},
			"description": "Calls, casts, events and views of compute-agent over NATS. `compute` is the configurable prefix. " +
				"Members that a reader does not know are ignored.",
		},
		"application/json",
		object{"nats": object{"host": "127.0.0.1:4222", "protocol": "nats", "description": "nats-server 2.9.10 or newer, with JetStream"}},
		d.channels, d.operations,
		object{"schemas": d.schemas, "messages": d.messages, "parameters": parameters()},
	}
}

func parameters() object {
	return object{
		"host":   object{"description": "the agent's host name; every byte outside [A-Za-z0-9_-] written =XX"},
		"source": object{"description": "the host that conducts the migration, written as host"},
		"id":     object{"description": "request id of a task, UUID of an instance or migration"},
	}
}

func ref(path ...string) object { return object{"$ref": "#/" + strings.Join(path, "/")} }

// errors is the reply that any call may get.
func (d *asyncDoc) errors() {
	d.messages["error"] = object{
		"title": "Error", "summary": "The reply to a call that failed.", "payload": d.schema(reflect.TypeFor[fault.Error]()),
		"headers": object{"type": "object", "required": []string{"Nats-Service-Error", "Nats-Service-Error-Code"}, "properties": object{
			"Nats-Service-Error": text("the message"), "Nats-Service-Error-Code": text("the code of the kind, e.g. 404"),
		}},
	}
}

func text(description string) object { return object{"type": "string", "description": description} }

// heartbeat is what comes before the reply to a call that asks for it.
func (d *asyncDoc) heartbeat() {
	d.messages["heartbeat"] = object{
		"title": "Heartbeat", "summary": "The agent is still at it: an empty message, as often as the call asked for, until its reply.",
		"headers": object{"type": "object", "required": []string{"Compute-Heartbeat"}, "properties": object{
			"Compute-Heartbeat": text("as in the call; a message with this header is no reply"),
		}},
	}
}

// headers are those of a request.
func headers(style api.Style) object {
	said := object{
		"Compute-Request-Id": object{"type": "string", "format": "uuid", "description": "of the request; it may span several hosts"},
		"Compute-Version":    text("the sender's version, major.minor; without it 1.0"),
		"Compute-Expires":    object{"type": "string", "format": "date-time", "description": "a cast that is read later is refused; a call's caller waits no longer"},
		"Nats-Msg-Id":        text("<host>/<request id>: NATS stores a cast that is sent twice once"),
		"traceparent":        text("W3C trace context"),
	}
	if style == api.Call {
		said["Compute-Heartbeat"] = text("a duration such as 5s, 100ms to 1h: until its reply the agent sends a heartbeat so often; after two that did not come the caller may give up")
		return object{"type": "object", "properties": said}
	}
	return object{"type": "object", "properties": said, "required": []string{"Compute-Request-Id", "Nats-Msg-Id"}}
}

// method adds the channel, the operation and the messages of one method.
func (d *asyncDoc) method(m api.Method) {
	name := string(m.Style) + "_" + m.Name
	d.messages[m.Name] = object{"title": m.Name, "summary": m.Doc, "headers": headers(m.Style), "payload": d.schema(reflect.TypeOf(m.Args()).Elem())}
	d.channels[name] = object{
		"address": "compute." + string(m.Style) + ".{host}." + m.Name, "parameters": object{"host": ref("components", "parameters", "host")},
		"messages": object{"request": ref("components", "messages", m.Name)},
	}
	summary := m.Doc
	if m.Peer {
		summary += " Between agents."
	}
	op := object{"action": "receive", "summary": summary, "channel": ref("channels", name), "messages": []object{ref("channels", name, "messages", "request")}}
	if m.Style == api.Call {
		payload := object{"type": "object"}
		if m.Reply != nil {
			payload = d.schema(reflect.TypeOf(m.Reply()).Elem())
		}
		d.messages[m.Name+"_result"] = object{"title": "Result of " + m.Name, "payload": payload}
		d.channels[name+"_reply"] = object{"address": nil, "messages": object{
			"result": ref("components", "messages", m.Name+"_result"), "error": ref("components", "messages", "error"),
			"heartbeat": ref("components", "messages", "heartbeat"),
		}}
		op["reply"] = object{
			"address": object{"location": "$message.header#/reply", "description": "the reply subject of the NATS request"},
			"channel": ref("channels", name+"_reply"),
		}
	}
	d.operations[name] = op
}

// publications are what agents send without being asked: events, and entries of views.
func (d *asyncDoc) publications() {
	for _, p := range []struct {
		name, address, summary string
		body                   reflect.Type
	}{
		{"event_task", "compute.event.{host}.task.{id}", "A step of a task: accepted, running, succeeded, failed or refused.", reflect.TypeFor[api.TaskEvent]()},
		{"event_instance", "compute.event.{host}.instance.{id}", "Something happened to an instance.", reflect.TypeFor[api.InstanceEvent]()},
		{"event_migration", "compute.event.{host}.migration.{id}", "A migration has a new status, phase or mode.", reflect.TypeFor[api.MigrationEvent]()},
		{"view_hosts", "$KV.COMPUTE_HOSTS.{host}", "A host as it reported last.", reflect.TypeFor[api.HostView]()},
		{"view_instances", "$KV.COMPUTE_INSTANCES.{host}.{id}", "An instance; where two hosts have it the higher generation is right.", reflect.TypeFor[instance.Instance]()},
		{"view_migrations", "$KV.COMPUTE_MIGRATIONS.{source}.{id}", "A migration with its progress.", reflect.TypeFor[instance.Migration]()},
	} {
		named := object{}
		for name := range parameters() {
			if strings.Contains(p.address, "{"+name+"}") {
				named[name] = ref("components", "parameters", name)
			}
		}
		d.messages[p.name] = object{"title": p.name, "summary": p.summary, "payload": d.schema(p.body)}
		d.channels[p.name] = object{"address": p.address, "parameters": named, "messages": object{"body": ref("components", "messages", p.name)}}
		d.operations[p.name] = object{
			"action": "send", "summary": p.summary, "channel": ref("channels", p.name), "messages": []object{ref("channels", p.name, "messages", "body")},
		}
	}
}

// schema is the JSON schema of a type; a struct is described once, by its name.
func (d *asyncDoc) schema(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[json.RawMessage]():
		return object{"type": "object"}
	}
	switch t.Kind() { //nolint:exhaustive // what the wire has
	case reflect.Pointer:
		return d.schema(t.Elem())
	case reflect.Slice:
		return object{"type": "array", "items": d.schema(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": d.schema(t.Elem())}
	case reflect.Struct:
		if d.schemas[t.Name()] == nil {
			body := object{"type": "object"}
			d.schemas[t.Name()] = body
			d.properties(t, body)
		}
		return ref("components", "schemas", t.Name())
	case reflect.Interface:
		return object{}
	case reflect.Uint, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	default:
		return object{"type": scalar(t.Kind())}
	}
}

// properties adds the members of a struct.
func (d *asyncDoc) properties(t reflect.Type, body object) {
	properties, required := object{}, []string{}
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || name == "" || !f.IsExported() {
			continue
		}
		s := d.schema(f.Type)
		if about := d.said[t.Name()+"."+f.Name]; about != "" && s["$ref"] == nil {
			s["description"] = about
		}
		properties[name] = s
		if !strings.Contains(options, "omit") {
			required = append(required, name)
		}
	}
	if len(properties) > 0 {
		body["properties"] = properties
	}
	if len(required) > 0 {
		body["required"] = required
	}
}
