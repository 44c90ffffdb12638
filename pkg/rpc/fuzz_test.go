package rpc

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// headersOf makes headers of lines "Name: value", as a fuzzer writes them; no line
// is refused, for a sender can write anything.
func headersOf(lines string) header {
	h := header{}
	for line := range strings.SplitSeq(lines, "\n") {
		name, value, _ := strings.Cut(line, ": ")
		h[name] = append(h[name], value)
	}
	return h
}

// FuzzCast reads a cast as an agent does. Whatever comes is either refused, with an
// error that can be told by event, or is a request that says the same when it is
// sent again.
func FuzzCast(f *testing.F) {
	n := names{DefaultPrefix}
	f.Fuzz(func(t *testing.T, subject, lines string, body []byte) {
		d := decodeCast(n, subject, headersOf(lines), body)
		if d.Malformed != nil {
			if k := d.Malformed.Kind; k != fault.InvalidArgument && k != fault.Unauthorized {
				t.Fatalf("refused with %s: %v", k, d.Malformed)
			}
			if _, err := JSON(fault.Wire(d.Malformed)); err != nil {
				t.Fatalf("the refusal can't be sent: %v", err)
			}
			return
		}
		if d.RequestID == "" || d.Method == "" {
			t.Fatalf("a cast without id or method was taken: %+v", d)
		}
		h, err := encodeMessage(d.Message)
		if err != nil {
			t.Fatalf("what was read can't be sent: %v", err)
		}
		again, bad := decodeMessage(d.Method, h, body, true)
		if bad != nil {
			t.Fatalf("what was sent is refused: %v", bad)
		}
		if diff := cmp.Diff(d.Message, again); diff != "" {
			t.Fatalf("read again it differs: %s", diff)
		}
	})
}

// FuzzCall hands a call to a handler: it gets exactly one answer, and the answer can
// be read.
func FuzzCall(f *testing.F) {
	f.Fuzz(func(t *testing.T, method, lines string, body []byte) {
		answers := 0
		send := func(r Reply) {
			answers++
			h, raw := encodeReply(r)
			for name, values := range h {
				for _, v := range values {
					if strings.ContainsAny(name+v, "\r\n") {
						t.Fatalf("header %q: %q breaks a line", name, v)
					}
				}
			}
			got, err := decodeReply(h, raw)
			var kind *fault.Error
			if (err != nil) != (r.Err != nil) || err != nil && !errors.As(err, &kind) || err == nil && string(got) != string(r.Body) {
				t.Fatalf("answer %+v is read as %q, %v", r, got, err)
			}
		}
		dispatch(t.Context(), method, headersOf(lines), body, outlet{send, func() {}}, func(ctx context.Context, m Message, respond func(Reply)) {
			if until, ok := ctx.Deadline(); ok != !m.Expires.IsZero() || ok && !until.Equal(m.Expires) {
				t.Fatalf("deadline %v, the message says %v", until, m.Expires)
			}
			respond(Reply{Body: m.Args})
			respond(Reply{Err: fault.New(fault.Internal, "m", "", "a second answer")})
		})
		if answers != 1 {
			t.Fatalf("%d answers", answers)
		}
	})
}

// FuzzReply reads what a server, or somebody else, answers.
func FuzzReply(f *testing.F) {
	f.Fuzz(func(t *testing.T, lines string, body []byte) {
		if _, err := decodeReply(headersOf(lines), body); err != nil && (err.Error() == "" || fault.KindOf(err) == "") {
			t.Fatalf("an error without words or kind: %#v", err)
		}
	})
}

// FuzzHost writes any host name as a token and reads it back; only what was written
// so is read.
func FuzzHost(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		token := EscapeHost(s)
		if back, err := UnescapeHost(token); err != nil || back != s || s != "" && !matchesOneToken(token) {
			t.Fatalf("%q is written %q and read %q, %v", s, token, back, err)
		}
		if host, err := UnescapeHost(s); err == nil && EscapeHost(host) != s && !isToken(s) {
			t.Fatalf("%q is read as %q, which is written %q", s, host, EscapeHost(host))
		}
	})
}

func matchesOneToken(s string) bool { return !strings.ContainsAny(s, ".*> \t\r\n") && s != "" }

// FuzzSubject reads subjects of events, and keys of views.
func FuzzSubject(f *testing.F) {
	n := names{DefaultPrefix}
	f.Fuzz(func(t *testing.T, subject string) {
		if e, ok := n.decodeEvent(subject); ok && checkToken("kind", e.Kind) == nil && e.ID != "" {
			e.At = time.Time{}
			if again, err := n.encodeEvent(e); err == nil && again != subject {
				t.Fatalf("%q is read as %+v, which is written %q", subject, e, again)
			}
		}
		if key, ok := decodeKey(subject); ok {
			if again, err := encodeKey("fuzz", key, false); err != nil || again != subject {
				t.Fatalf("key %q is read as %q, which is written %q, %v", subject, key, again, err)
			}
		}
	})
}
