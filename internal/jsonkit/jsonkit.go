// Package jsonkit writes JSON of the few records that are written thousands of times a
// second. Everything else, and all reading, is encoding/json's: a record that writes
// itself has a test that encoding/json reads the same from it.
package jsonkit

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Appender is a value that writes its own JSON: one valid value behind b.
type Appender interface {
	AppendJSON(b []byte) ([]byte, error)
}

// Append writes v behind b, by its own AppendJSON where it has one.
func Append(b []byte, v any) ([]byte, error) {
	if a, ok := v.(Appender); ok {
		return a.AppendJSON(b)
	}
	w := bytes.NewBuffer(b)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(w.Bytes(), []byte("\n")), nil
}

// scratch is memory for Marshal; what is bigger than it ever needs is left to the collector.
var scratch = sync.Pool{New: func() any { b := make([]byte, 0, firstScratch); return &b }}

const (
	firstScratch = 1 << 10
	lastScratch  = 1 << 16
)

// Marshal gives v's JSON, in memory of its own.
func Marshal(v any) ([]byte, error) {
	room, _ := scratch.Get().(*[]byte)
	raw, err := Append((*room)[:0], v)
	if err != nil {
		return nil, err
	}
	out := bytes.Clone(raw)
	if cap(raw) <= lastScratch {
		*room = raw
		scratch.Put(room)
	}
	return out, nil
}

// AppendString writes a JSON string.
func AppendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(s) //nolint:errchkjson // a string never fails
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// Object writes the members of one JSON object in the order of its calls. The zero
// Object with Buf set to what stands before it is ready; Close gives the whole.
type Object struct {
	Buf  []byte
	err  error
	some bool
}

// name begins a member whose name needs no escape.
func (o *Object) name(name string) {
	o.key(append(append(append(o.open(), '"'), name...), '"'))
}

// open is what stands before a member's name.
func (o *Object) open() []byte {
	c := byte(',')
	if !o.some {
		o.some, c = true, '{'
	}
	return append(o.Buf, c)
}

// key takes what ends with a member's name.
func (o *Object) key(b []byte) { o.Buf = append(b, ':') }

// String writes a member.
func (o *Object) String(name, value string) {
	o.name(name)
	o.Buf = AppendString(o.Buf, value)
}

// Some writes a member that is left out when it is empty.
func (o *Object) Some(name, value string) {
	if value != "" {
		o.String(name, value)
	}
}

// Uint writes a member.
func (o *Object) Uint(name string, value uint64) {
	o.name(name)
	o.Buf = strconv.AppendUint(o.Buf, value, 10)
}

// Int writes a member.
func (o *Object) Int(name string, value int) {
	o.name(name)
	o.Buf = strconv.AppendInt(o.Buf, int64(value), 10)
}

// SomeInt writes a member that is left out when it is 0.
func (o *Object) SomeInt(name string, value int) {
	if value != 0 {
		o.Int(name, value)
	}
}

// True writes a member that is left out when it is false.
func (o *Object) True(name string, value bool) {
	if value {
		o.name(name)
		o.Buf = append(o.Buf, "true"...)
	}
}

// Texts writes a member that is an object of texts, by name, and is left out when it is empty.
func (o *Object) Texts(name string, values map[string]string) {
	if len(values) == 0 {
		return
	}
	o.name(name)
	few := [16]string{} // more than most have
	keys := slices.AppendSeq(few[:0], maps.Keys(values))
	slices.Sort(keys)
	inner := Object{Buf: o.Buf}
	for _, key := range keys {
		inner.key(AppendString(inner.open(), key))
		inner.Buf = AppendString(inner.Buf, values[key])
	}
	o.Buf, _ = inner.Close()
}

// One writes a member that writes itself.
func One[T Appender](o *Object, name string, value T) {
	o.name(name)
	b, err := value.AppendJSON(o.Buf)
	if err != nil {
		o.fail(err)
		return
	}
	o.Buf = b
}

// Each writes a member that is a list; a nil one is null.
func Each[T Appender](o *Object, name string, list []T) {
	o.name(name)
	if list == nil {
		o.Buf = append(o.Buf, "null"...)
		return
	}
	o.Buf = append(o.Buf, '[')
	for i := range list {
		if i > 0 {
			o.Buf = append(o.Buf, ',')
		}
		b, err := list[i].AppendJSON(o.Buf)
		if err != nil {
			o.fail(err)
			return
		}
		o.Buf = b
	}
	o.Buf = append(o.Buf, ']')
}

// Time writes a member, in RFC 3339.
func (o *Object) Time(name string, at time.Time) {
	o.name(name)
	b, err := at.AppendText(append(o.Buf, '"'))
	if err != nil {
		o.fail(err)
		return
	}
	o.Buf = append(b, '"')
}

// Raw writes a member whose value is JSON already and is not looked at again; an empty
// one is null.
func (o *Object) Raw(name string, value json.RawMessage) {
	o.name(name)
	if len(value) == 0 {
		value = json.RawMessage("null")
	}
	o.Buf = append(o.Buf, value...)
}

// Any writes a member by encoding/json, or by the value's own AppendJSON.
func (o *Object) Any(name string, value any) {
	o.name(name)
	b, err := Append(o.Buf, value)
	if err != nil {
		o.fail(err)
		return
	}
	o.Buf = b
}

func (o *Object) fail(err error) {
	if o.err == nil {
		o.err = err
	}
}

// Close ends the object. The error is the first of its members'.
func (o *Object) Close() ([]byte, error) {
	if o.err != nil {
		return nil, o.err
	}
	if !o.some {
		o.Buf = append(o.Buf, '{')
	}
	return append(o.Buf, '}'), nil
}
