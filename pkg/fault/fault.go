// Package fault holds the one error shape of compute-agent: a kind that crosses
// the wire, what was being done, to what, in one sentence, with a hint for the
// operator.
//
// Make one with [New] or [Wrap], ask with [errors.Is] against a [Kind]:
//
//	return fault.New(fault.NotFound, "show_instance", id, "no such instance on this host").
//		WithHint("compute-agent instance list shows what is here")
//	...
//	if errors.Is(err, fault.NotFound) { ... }
//
// Kinds are append-only: a name or a code never changes its meaning.
package fault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kind classifies an error for programs. The zero Kind means "no error".
// A Kind is itself an error, so that it can be the target of errors.Is.
type Kind string

// The kinds of design section 4. Append only.
const (
	InvalidArgument    Kind = "invalid_argument"    // the request can't be understood or is not lawful
	Unauthorized       Kind = "unauthorized"        // the caller may not do this
	NotFound           Kind = "not_found"           // the thing named does not exist here
	Conflict           Kind = "conflict"            // the state of the thing is in the way
	PreconditionFailed Kind = "precondition_failed" // a pre-check said no; details.reasons lists all
	UnsupportedMethod  Kind = "unsupported_method"  // no such method
	UnsupportedVersion Kind = "unsupported_version" // newer than this agent, or another major
	Busy               Kind = "busy"                // try again after details.retry_after_seconds
	Expired            Kind = "expired"             // read after its expiry; not carried out
	Timeout            Kind = "timeout"             // a bounded wait ended
	Unavailable        Kind = "unavailable"         // the hypervisor, host or bus is away
	Internal           Kind = "internal"            // anything else: a defect or an unmapped failure
	Cancelled          Kind = "cancelled"           // ended on request
)

// codes follow HTTP where a code fits; they travel in Nats-Service-Error-Code.
var codes = map[Kind]int{
	InvalidArgument: 400, Unauthorized: 401, NotFound: 404, Conflict: 409, Expired: 410,
	PreconditionFailed: 412, Busy: 429, Cancelled: 499, Internal: 500, UnsupportedMethod: 501,
	Unavailable: 503, Timeout: 504, UnsupportedVersion: 505,
}

// Error makes a Kind usable as an errors.Is target; the text is the kind's name.
func (k Kind) Error() string { return string(k) }

// Code is the number that travels beside the kind; 500 for an unknown kind.
func (k Kind) Code() int {
	if c, ok := codes[k]; ok {
		return c
	}
	return codes[Internal]
}

// Known reports whether k is one of the kinds of this version.
func (k Kind) Known() bool { _, ok := codes[k]; return ok }

// Error is the error body of the wire (design section 4) and of the journal.
type Error struct {
	Kind    Kind           `json:"kind"`
	Op      string         `json:"op,omitempty"`      // the method or step, e.g. "live_migration" or "check_destination"
	Subject string         `json:"subject,omitempty"` // what it was done to: an instance UUID, a host, an option
	Message string         `json:"message"`           // one sentence, lower case, without the subject's kind repeated
	Hint    string         `json:"hint,omitempty"`    // what the reader can do about it
	Details map[string]any `json:"details,omitempty"` // machine-readable facts: reasons, retry_after_seconds, libvirt_code
	Err     error          `json:"-"`                 // the cause on this host; its text is part of Message on the wire
}

// New makes an Error of a kind. op and subject may be empty.
func New(k Kind, op, subject, message string) *Error {
	return &Error{Kind: k, Op: op, Subject: subject, Message: message}
}

// Newf is New with a formatted message.
func Newf(k Kind, op, subject, format string, args ...any) *Error {
	return New(k, op, subject, fmt.Sprintf(format, args...))
}

// Wrap gives err a place: op and subject. Its kind is kept ([KindOf]). An *Error that
// has this place already, or is given none, stays as it is: no sentence says it twice.
// Wrap of nil is nil.
func Wrap(err error, op, subject string) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*Error); ok && (op == "" && subject == "" || e.Op == op && e.Subject == subject) { //nolint:errorlint // the outermost place only
		return err
	}
	return &Error{Kind: KindOf(err), Op: op, Subject: subject, Hint: HintOf(err), Details: DetailsOf(err), Err: err}
}

// WrapAs is Wrap with a kind of the caller's choice. WrapAs of nil is nil.
func WrapAs(k Kind, err error, op, subject string) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: k, Op: op, Subject: subject, Hint: HintOf(err), Details: DetailsOf(err), Err: err}
}

// WithHint sets what the reader can do and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// WithDetail adds one machine-readable fact and returns e.
func (e *Error) WithDetail(key string, value any) *Error {
	if e.Details == nil {
		e.Details = map[string]any{}
	}
	e.Details[key] = value
	return e
}

// Because sets the cause and returns e.
func (e *Error) Because(err error) *Error {
	e.Err = err
	return e
}

// Error renders "op subject: message: cause".
func (e *Error) Error() string {
	var parts []string
	if place := strings.TrimSpace(e.Op + " " + e.Subject); place != "" {
		parts = append(parts, place)
	}
	if e.Message != "" {
		parts = append(parts, e.Message)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	if len(parts) == 0 {
		return string(e.Kind)
	}
	return strings.Join(parts, ": ")
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, fault.NotFound) work.
func (e *Error) Is(target error) bool {
	var k Kind
	return errors.As(target, &k) && k == e.Kind
}

// KindOf finds the kind of any error: the outermost *Error's, Timeout for a
// passed deadline, Cancelled for a cancelled context, else Internal. Of nil: "".
func KindOf(err error) Kind {
	var e *Error
	var k Kind
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Kind
	case errors.As(err, &k):
		return k
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled):
		return Cancelled
	default:
		return Internal
	}
}

// HintOf finds the first hint in the chain.
func HintOf(err error) string {
	for {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
}

// DetailsOf finds the first details in the chain.
func DetailsOf(err error) map[string]any {
	for {
		var e *Error
		if !errors.As(err, &e) {
			return nil
		}
		if len(e.Details) > 0 {
			return e.Details
		}
		err = e.Err
	}
}

// Wire turns any error into the body that travels and is stored: one flat
// Error without a cause, whose message holds the whole chain. Of nil: nil.
func Wire(err error) *Error {
	if err == nil {
		return nil
	}
	w := &Error{Kind: KindOf(err), Hint: HintOf(err), Details: DetailsOf(err), Message: err.Error()}
	if e, ok := errors.AsType[*Error](err); ok {
		w.Op, w.Subject = e.Op, e.Subject
		if place := strings.TrimSpace(e.Op + " " + e.Subject); place != "" && w.Message != place {
			for strings.HasPrefix(w.Message, place+": ") { // each floor may have said it
				w.Message = strings.TrimPrefix(w.Message, place+": ")
			}
		}
	}
	return w
}

// Retryable reports whether the same request may succeed later without anybody
// changing anything: busy, timeout and unavailable.
func Retryable(err error) bool {
	return slices.Contains([]Kind{Busy, Timeout, Unavailable}, KindOf(err))
}
