package config

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Option is one thing that can be configured.
type Option struct {
	Key     string   // section.key
	Section string   // its section
	Name    string   // its key in the section
	Default string   // as text
	Doc     string   // one sentence without a dot
	Nova    string   // nova's option, if it has the same meaning under another name
	OneOf   []string // the words it may be; empty: any
	Min     string   // the least it may be; empty: any
	Env     string   // the environment variable
	kind    kind
}

// Section is a group of options.
type Section struct{ Name, Doc string }

// kind is the type of an option.
type kind int

const (
	text kind = iota
	number
	truth
	duration
	ratio
)

func (k kind) String() string {
	switch k {
	case number:
		return "integer"
	case truth:
		return "boolean"
	case duration:
		return "duration"
	case ratio:
		return "number"
	case text:
	}
	return "string"
}

// Type is the option's type in words: string, integer, number, boolean or duration.
func (o Option) Type() string { return o.kind.String() }

// Sections lists the sections in the order of the file.
func Sections() []Section {
	t := reflect.TypeFor[Config]()
	all := make([]Section, 0, t.NumField())
	for f := range t.Fields() {
		all = append(all, Section{Name: f.Tag.Get("key"), Doc: f.Tag.Get("doc")})
	}
	return all
}

// Options lists every option in the order of the file.
func Options() []Option {
	var all []Option
	for section := range reflect.TypeFor[Config]().Fields() {
		for f := range section.Type.Fields() {
			all = append(all, option(section.Tag.Get("key"), f))
		}
	}
	return all
}

func option(section string, f reflect.StructField) Option {
	tag := f.Tag.Get
	name := tag("key")
	return Option{
		Key: section + "." + name, Section: section, Name: name,
		Default: tag("default"), Doc: tag("doc"), Nova: tag("nova"),
		OneOf: strings.Fields(tag("oneof")), Min: tag("min"),
		Env:  EnvPrefix + strings.ToUpper(section+"_"+name),
		kind: kindOf(f.Type),
	}
}

func kindOf(t reflect.Type) kind {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return duration
	case t.Kind() == reflect.Int:
		return number
	case t.Kind() == reflect.Bool:
		return truth
	case t.Kind() == reflect.Float64:
		return ratio
	default:
		return text
	}
}

// parse reads an option's value from the environment, a flag or its default.
func (o Option) parse(s string) (any, error) {
	switch o.kind {
	case number:
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, fmt.Errorf("%q is not an integer", s)
		}
		return n, nil
	case truth:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", s)
		}
		return b, nil
	case duration:
		return parseDuration(s)
	case ratio:
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%q is not a number", s)
		}
		return v, nil
	case text:
	}
	return s, nil
}

// parseDuration reads "1m30s", or a number of seconds, as nova's options have them.
func parseDuration(s string) (time.Duration, error) {
	if seconds, err := strconv.ParseFloat(s, 64); err == nil {
		return time.Duration(seconds * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration; write it like 90s, 1m30s or 500ms, or as a number of seconds", s)
	}
	return d, nil
}

// take turns a value of the TOML file into the option's type.
func (o Option) take(v any) (any, error) {
	switch v := v.(type) {
	case string:
		if o.kind == text || o.kind == duration {
			return o.parse(v)
		}
	case int64:
		if whole, ok := o.takeWhole(v); ok {
			return whole, nil
		}
	case float64:
		if o.kind == duration || o.kind == ratio {
			return o.parse(strconv.FormatFloat(v, 'g', -1, 64))
		}
	case bool:
		if o.kind == truth {
			return v, nil
		}
	}
	return nil, fmt.Errorf("it is %s, want %s", tomlType(v), withArticle(o.kind.String()))
}

// takeWhole turns a whole number of the TOML file into the option's type.
func (o Option) takeWhole(v int64) (any, bool) {
	switch o.kind {
	case number:
		return int(v), true
	case duration:
		return time.Duration(v) * time.Second, true
	case ratio:
		return float64(v), true
	case text, truth:
	}
	return nil, false
}

func tomlType(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case bool:
		return "a boolean"
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	default:
		return "a date or time"
	}
}

func withArticle(noun string) string {
	if strings.ContainsAny(noun[:1], "aeiou") {
		return "an " + noun
	}
	return "a " + noun
}

// check holds a value to oneof and min.
func (o Option) check(v any) error {
	if len(o.OneOf) > 0 {
		for _, word := range o.OneOf {
			if v == word {
				return nil
			}
		}
		return fmt.Errorf("%q is not one of %s", v, strings.Join(o.OneOf, ", "))
	}
	if o.Min == "" {
		return nil
	}
	least, err := o.parse(o.Min)
	if err != nil {
		return err
	}
	if less(v, least) {
		return fmt.Errorf("%v is less than %s", v, o.Min)
	}
	return nil
}

func less(a, b any) bool {
	switch a := a.(type) {
	case int:
		least, ok := b.(int)
		return ok && a < least
	case time.Duration:
		least, ok := b.(time.Duration)
		return ok && a < least
	case float64:
		least, ok := b.(float64)
		return ok && a < least
	default:
		return false
	}
}

// format writes a value as it would stand in the environment.
func format(v any) string {
	if d, ok := v.(time.Duration); ok {
		return shortDuration(d)
	}
	return fmt.Sprint(v)
}

// shortDuration is "10m" where Go writes "10m0s".
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
