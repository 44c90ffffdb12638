package config

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/compute-agent/compute-agent/internal/near"
)

// parseFile reads TOML: values by go-toml's decoder, positions by its parser.
func parseFile(path string, raw []byte, options []Option, found *problems) layer {
	l := newLayer()
	var tree map[string]any
	if err := toml.Unmarshal(raw, &tree); err != nil {
		where := path
		if at, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := at.Position()
			where = fmt.Sprintf("%s:%d:%d", path, line, column)
		}
		found.add(where, strings.TrimPrefix(err.Error(), "toml: "), "")
		return l
	}
	at := positions(raw)
	byKey := map[string]Option{}
	for _, o := range options {
		byKey[o.Key] = o
	}
	for _, e := range flatten("", tree) {
		where := fmt.Sprintf("%s:%s", path, at[e.key])
		o, ok := byKey[e.key]
		if !ok {
			found.add(where, fmt.Sprintf("there is no option %q", e.key), keyHint(e.key, options))
			continue
		}
		v, err := o.take(e.value)
		l.put(o, v, where, err, found)
	}
	return l
}

type entry struct {
	key   string
	value any
}

// flatten lists the leaves of a document, and sections that don't exist as a whole.
func flatten(prefix string, tree map[string]any) []entry {
	var all []entry
	for _, name := range sortedKeys(tree) {
		key := name
		if prefix != "" {
			key = prefix + "." + name
		}
		if table, ok := tree[name].(map[string]any); ok && prefix == "" && isSection(name) {
			all = append(all, flatten(key, table)...)
			continue
		}
		all = append(all, entry{key, tree[name]})
	}
	return all
}

func isSection(name string) bool {
	for _, s := range Sections() {
		if s.Name == name {
			return true
		}
	}
	return false
}

// keyHint finds the key that was meant: a like one, or the same name in another section.
func keyHint(key string, options []Option) string {
	section, name, dotted := strings.Cut(key, ".")
	var keys, moved []string
	for _, o := range options {
		if o.Section == section {
			keys = append(keys, o.Key)
		}
		if o.Name == name || o.Name == key {
			moved = append(moved, o.Key)
		}
	}
	switch {
	case len(moved) > 0:
		return "did you mean " + strings.Join(moved, " or ") + "?"
	case dotted && isSection(section):
		return near.Hint(key, keys)
	}
	names := make([]string, 0, len(Sections()))
	for _, s := range Sections() {
		names = append(names, s.Name)
	}
	if hint := near.Hint(section, names); hint != "" {
		return hint
	}
	return "the sections are " + strings.Join(names, ", ")
}

// positions finds where each key of a document stands, as line:column.
func positions(raw []byte) map[string]string {
	at := map[string]string{}
	var p unstable.Parser
	p.Reset(raw)
	table := ""
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind { //nolint:exhaustive // only these kinds have keys
		case unstable.Table, unstable.ArrayTable:
			table = keyOf(&p, e, "", at) + "."
		case unstable.KeyValue:
			inside(&p, e, table, at)
		}
	}
	return at
}

// inside notes a key and, for an inline table, the keys in it.
func inside(p *unstable.Parser, e *unstable.Node, prefix string, at map[string]string) {
	key := keyOf(p, e, prefix, at)
	if e.Value().Kind != unstable.InlineTable {
		return
	}
	for it := e.Value().Children(); it.Next(); {
		inside(p, it.Node(), key+".", at)
	}
}

// keyOf notes the position of a key and of each table that its dots open.
func keyOf(p *unstable.Parser, e *unstable.Node, prefix string, at map[string]string) string {
	key := strings.TrimSuffix(prefix, ".")
	for it := e.Key(); it.Next(); {
		if key != "" {
			key += "."
		}
		key += string(it.Node().Data)
		if _, seen := at[key]; !seen {
			start := p.Shape(it.Node().Raw).Start
			at[key] = fmt.Sprintf("%d:%d", start.Line, start.Column)
		}
	}
	return key
}

// redact leaves the passwords and tokens out of URLs.
func redact(value string) string {
	if !strings.Contains(value, "@") {
		return value
	}
	parts := strings.Split(value, ",")
	for i, part := range parts {
		if u, err := url.Parse(strings.TrimSpace(part)); err == nil && u.User != nil {
			parts[i] = u.Scheme + "://…@" + u.Host + u.Path
		}
	}
	return strings.Join(parts, ",")
}
