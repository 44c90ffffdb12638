// Package jsonkit writes JSON of the few records that are written thousands of times a
// second. Everything else, and all reading, is encoding/json's: a record that writes
// itself has a test that encoding/json reads the same from it.
package jsonkit

import (
	"bytes"
	"encoding/json"
	"strconv"
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

func (o *Object) name(name string) {
	c := byte(',')
	if !o.some {
		o.some, c = true, '{'
	}
	o.Buf = append(append(append(o.Buf, c, '"'), name...), '"', ':')
}

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
