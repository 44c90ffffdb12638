// Package api is the wire contract of compute-agent, version 1.0: the names of
// the methods, the bodies of their arguments and results, the bodies of events
// and views. It imports nothing but nouns, so that any caller may use it.
//
// A body is one JSON object. Members that a reader does not know are ignored;
// members of the wrong type are refused by name ([Decode]). Names and meanings
// never change within a major version; new members and methods raise the minor.
package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strconv"
	"strings"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Version is the wire version this code speaks: major.minor.
const Version = "1.0"

// CheckVersion refuses a message of another major version, or of a minor one
// above ours (kind unsupported_version). own and theirs are major.minor; an empty
// theirs counts as 1.0, the first version.
func CheckVersion(own, theirs string) error {
	if theirs == "" {
		theirs = "1.0"
	}
	ownMajor, ownMinor, ok1 := splitVersion(own)
	major, minor, ok2 := splitVersion(theirs)
	if !ok1 || !ok2 {
		return fault.Newf(fault.InvalidArgument, "", "Compute-Version", "%q is not of the form major.minor", theirs)
	}
	if major != ownMajor || minor > ownMinor {
		return fault.Newf(fault.UnsupportedVersion, "", "", "the message is of version %s, this agent speaks %s", theirs, own).
			WithHint("upgrade the agent, or send version %s or older of the same major", own).
			WithDetail("supported", own)
	}
	return nil
}

func splitVersion(v string) (major, minor int, ok bool) {
	a, b, found := strings.Cut(v, ".")
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(b)
	return major, minor, found && err1 == nil && err2 == nil && major >= 0 && minor >= 0
}

// Checker is implemented by arguments that have rules beyond their types.
type Checker interface{ Check() error }

// Decode reads one JSON object into args, a pointer to one of this package's
// argument types, and checks it. Errors are invalid_argument, naming the member.
func Decode(method string, body []byte, args any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		body = []byte("{}")
	}
	if err := json.Unmarshal(body, args); err != nil {
		return decodeFault(method, body, err)
	}
	if c, ok := args.(Checker); ok {
		if err := c.Check(); err != nil {
			return fault.Wrap(err, method, "")
		}
	}
	return nil
}

func decodeFault(method string, body []byte, err error) error {
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		field := wrong.Field
		if field == "" {
			field = "the body"
		}
		return fault.Newf(fault.InvalidArgument, method, field, "%s is %s, want %s", field, gotten(wrong.Value), wanted(wrong.Type)).
			WithHint("see docs/rpc.md for the arguments of %s", method)
	}
	var first json.RawMessage
	if json.NewDecoder(bytes.NewReader(body)).Decode(&first) == nil {
		return fault.New(fault.InvalidArgument, method, "", "the body holds more than one JSON object")
	}
	return fault.New(fault.InvalidArgument, method, "", "the body is not a JSON object").Because(err)
}

// gotten says what encoding/json found, with its article. A number comes with its
// digits when it does not fit.
func gotten(value string) string {
	if strings.ContainsAny(value[:min(1, len(value))], "aeiou") {
		return "an " + value
	}
	return "a " + value
}

// wanted says in JSON's words what a Go type is read from.
func wanted(t reflect.Type) string {
	switch t.Kind() { //nolint:exhaustive // the others are not read from JSON
	case reflect.Pointer:
		return wanted(t.Elem())
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "an integer"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "an integer that is not negative"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Struct, reflect.Map:
		return "an object"
	default:
		return t.String()
	}
}
