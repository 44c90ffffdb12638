package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strings"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"

	"github.com/compute-agent/compute-agent/internal/near"
	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Sources say where options are read from; later ones win: file, environment, flags.
type Sources struct {
	File    string                            // optional; a file that must exist. Empty: DefaultFile if it exists
	Environ []string                          // as os.Environ gives it
	Flags   map[string]Flag                   // by key, the flags that were given
	ReadAll func(path string) ([]byte, error) // optional; default os.ReadFile
}

// Flag is the value of a flag as it was given.
type Flag struct{ Name, Value string }

// Setting is one option with the value it has and where that came from.
type Setting struct {
	Option
	Value  string // as text; a password in a URL is left out
	Origin string // default, file:line:column, the environment variable or the flag
}

// Loaded is a configuration and where each value of it came from.
type Loaded struct {
	Config
	File     string // that was read; empty: none
	settings []Setting
}

// Settings lists every option with its value and its origin, in the file's order.
func (l *Loaded) Settings() []Setting { return l.settings }

// layer is what one source says: typed values and where each stands.
type layer struct {
	values  map[string]any
	origins map[string]string
}

// Load reads all sources. Its error (invalid_argument) names every problem at
// once, each with its position; not_found means that the named file is missing.
func Load(s Sources) (*Loaded, error) {
	if s.ReadAll == nil {
		s.ReadAll = os.ReadFile
	}
	options := Options()
	var found problems
	file, path, err := fileLayer(s, options, &found)
	if err != nil {
		return nil, err
	}
	layers := []layer{defaultLayer(options, &found), file, envLayer(s.Environ, options, &found), flagLayer(s.Flags, options, &found)}
	l, err := merge(layers, options)
	if err != nil {
		return nil, err
	}
	l.File = path
	if len(found) == 0 {
		l.cross(&found)
	}
	if len(found) > 0 {
		return nil, found.fault()
	}
	return l, nil
}

// merge lays the layers over each other.
func merge(layers []layer, options []Option) (*Loaded, error) {
	k := koanf.New(".")
	origins := map[string]string{}
	for _, layer := range layers {
		if err := k.Load(confmap.Provider(layer.values, "."), nil); err != nil {
			return nil, fault.WrapAs(fault.Internal, err, "config", "")
		}
		maps.Copy(origins, layer.origins)
	}
	l := &Loaded{}
	if err := k.UnmarshalWithConf("", &l.Config, koanf.UnmarshalConf{Tag: "key"}); err != nil {
		return nil, fault.WrapAs(fault.Internal, err, "config", "")
	}
	for _, o := range options {
		l.settings = append(l.settings, Setting{Option: o, Value: redact(format(k.Get(o.Key))), Origin: origins[o.Key]})
	}
	return l, nil
}

func defaultLayer(options []Option, found *problems) layer {
	l := newLayer()
	for _, o := range options {
		v, err := o.parse(o.zero())
		l.put(o, v, "default", err, found)
	}
	return l
}

// zero is the default, also of an option without one.
func (o Option) zero() string {
	switch {
	case o.Default != "" || o.kind == text:
		return o.Default
	case o.kind == truth:
		return "false"
	default:
		return "0"
	}
}

func envLayer(environ []string, options []Option, found *problems) layer {
	l := newLayer()
	byName := map[string]Option{}
	names := make([]string, 0, len(options))
	for _, o := range options {
		byName[o.Env] = o
		names = append(names, o.Env)
	}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, EnvPrefix) || isTools(name) {
			continue
		}
		o, ok := byName[name]
		if !ok {
			found.add(name, "no option has this name", near.Hint(name, names))
			continue
		}
		v, err := o.parse(value)
		l.put(o, v, name, err, found)
	}
	return l
}

// isTools reports names with our prefix that configure commands and not the agent.
func isTools(name string) bool {
	switch strings.TrimPrefix(name, EnvPrefix) {
	case "CONFIG", "ACTIVE_HELP":
		return true
	}
	return false
}

func flagLayer(flags map[string]Flag, options []Option, found *problems) layer {
	l := newLayer()
	for _, o := range options {
		if f, ok := flags[o.Key]; ok {
			v, err := o.parse(f.Value)
			l.put(o, v, "--"+f.Name, err, found)
		}
	}
	return l
}

func newLayer() layer { return layer{values: map[string]any{}, origins: map[string]string{}} }

// put stores a value that could be read and is lawful, else the problem with it.
func (l layer) put(o Option, v any, origin string, err error, found *problems) {
	if err == nil {
		err = o.check(v)
	}
	if err != nil {
		found.add(origin, o.Key+": "+err.Error(), "")
		return
	}
	l.values[o.Key] = v
	l.origins[o.Key] = origin
}

// fileLayer reads the file, if there is one.
func fileLayer(s Sources, options []Option, found *problems) (layer, string, error) {
	path := s.File
	if path == "" {
		path = DefaultFile
	}
	raw, err := s.ReadAll(path)
	switch {
	case err == nil:
		return parseFile(path, raw, options, found), path, nil
	case s.File == "" && errors.Is(err, fs.ErrNotExist):
		return newLayer(), "", nil
	case errors.Is(err, fs.ErrNotExist):
		return layer{}, "", fault.New(fault.NotFound, "config", path, "there is no such file").
			WithHint("`compute-agent config example` prints one with every option in it")
	default:
		return layer{}, "", fault.WrapAs(fault.InvalidArgument, err, "config", path)
	}
}

// problems are what is wrong with the sources, with positions.
type problems []problem

type problem struct{ where, what, hint string }

func (p *problems) add(where, what, hint string) { *p = append(*p, problem{where, what, hint}) }

// fault is one error that tells all of them.
func (p *problems) fault() error {
	all := *p
	if len(all) == 1 {
		e := fault.New(fault.InvalidArgument, "", all[0].where, all[0].what)
		e.Hint = all[0].hint
		return e
	}
	lines := make([]string, 0, len(all))
	for _, each := range all {
		line := each.where + ": " + each.what
		if each.hint != "" {
			line += " (" + each.hint + ")"
		}
		lines = append(lines, line)
	}
	return fault.New(fault.InvalidArgument, "config", "", fmt.Sprintf("%d problems\n  ", len(lines))+strings.Join(lines, "\n  ")).
		WithDetail("reasons", lines)
}
