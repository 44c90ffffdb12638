package rpc

import (
	"errors"
	"strings"
	"testing"
	"testing/quick"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

func FuzzEscapeHost(f *testing.F) {
	for _, host := range []string{"", "node1", "node1.example", "Nöde 1", "a=2Eb", "=", "\x00\xff"} {
		f.Add(host)
	}
	f.Fuzz(func(t *testing.T, host string) {
		token := EscapeHost(host)
		if strings.ContainsAny(token, ".*> \t\r\n%/\\") {
			t.Errorf("EscapeHost(%q) = %q is not one subject token", host, token)
		}
		back, err := UnescapeHost(token)
		if err != nil || back != host {
			t.Errorf("UnescapeHost(EscapeHost(%q)) = %q, %v", host, back, err)
		}
	})
}

func FuzzUnescapeHost(f *testing.F) {
	for _, token := range []string{"node1=2Eexample", "a=2eb", "a=", "a=+5", "a=4", "a=41", "a.b", "=  "} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		host, err := UnescapeHost(token)
		if err != nil {
			if !errors.Is(err, fault.InvalidArgument) {
				t.Errorf("UnescapeHost(%q) = %v, want invalid_argument", token, err)
			}
			return
		}
		if again := EscapeHost(host); again != token {
			t.Errorf("%q and %q are one host: %q", token, again, host)
		}
	})
}

func FuzzDecodeMessage(f *testing.F) {
	f.Add("start_instance", "5f1b", "1.0", "2026-01-02T03:04:05.6Z", "00-ab-cd-01", []byte("{}"))
	f.Add("a.b", "", "", "tomorrow", "\r\n", []byte(nil))
	f.Add("m", strings.Repeat("x", 300), "\x00", "0000-00-00T00:00:00Z", " ", []byte("\xff"))
	f.Fuzz(func(t *testing.T, method, id, version, expires, trace string, body []byte) {
		h := header{headerRequestID: {id}, headerVersion: {version}, headerExpires: {expires}, headerTrace: {trace}}
		m, bad := decodeMessage(method, h, body, true)
		if bad != nil {
			if bad.Kind != fault.InvalidArgument || len(bad.Message) > 2*maxHeaderValue {
				t.Errorf("decodeMessage = %v, want a short invalid_argument", bad)
			}
			return
		}
		if m.RequestID == "" || m.Method == "" {
			t.Errorf("decodeMessage accepts %+v", m)
		}
		again, err := encodeMessage(m)
		if err != nil {
			t.Fatalf("encodeMessage refuses what decodeMessage accepts: %v", err)
		}
		if back, bad := decodeMessage(m.Method, again, body, true); bad != nil || !back.Expires.Equal(m.Expires) || back.RequestID != m.RequestID {
			t.Errorf("decodeMessage(encodeMessage(%+v)) = %+v, %v", m, back, bad)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	f.Add("404", "gone", []byte(`{"kind":"not_found","message":"x"}`))
	f.Add("503", "", []byte("no body of ours"))
	f.Add("", "", []byte("result"))
	f.Fuzz(func(t *testing.T, code, text string, body []byte) {
		got, err := decodeReply(header{headerErrorCode: {code}, headerError: {text}}, body)
		if (code == "") != (err == nil) {
			t.Errorf("decodeReply(%q) = %q, %v", code, got, err)
		}
	})
}

func TestDecodeReplyOfOthers(t *testing.T) {
	for code, want := range map[string]fault.Kind{"404": fault.NotFound, "503": fault.Unavailable, "500": fault.Internal, "whatever": fault.Internal} {
		if _, err := decodeReply(header{headerErrorCode: {code}, headerError: {"text"}}, []byte("plain")); fault.KindOf(err) != want {
			t.Errorf("code %s = %v, want %s", code, err, want)
		}
	}
}

func TestEncodeReplyStrangeDetails(t *testing.T) {
	h, body := encodeReply(Reply{Err: fault.New(fault.Busy, "m", "", "two\nlines").WithDetail("fn", func() {})})
	_, err := decodeReply(h, body)
	if !errors.Is(err, fault.Busy) || strings.Contains(headerGet(h, headerError), "\n") {
		t.Errorf("decodeReply = %v, header %q, want busy and one line", err, h[headerError])
	}
}

func TestSubjects(t *testing.T) {
	n := names{"compute"}
	for want, got := range map[string]string{
		"compute.call.node1=2Eexample.show_instance": n.call("node1.example", "show_instance"),
		"compute.cast.node1=2Eexample.*":             n.cast("node1.example", "*"),
		"compute.event.*.task.*":                     n.event(EventFilter{Kind: "task"}),
		"compute.event.n=2Ee.task.a-b":               n.event(EventFilter{Host: "n.e", Kind: "task", ID: "a-b"}),
		"COMPUTE_CASTS":                              n.castStream(),
		"COMPUTE_EVENTS":                             n.eventStream(),
		"COMPUTE_HOSTS":                              n.bucket(Hosts),
		"node1=2Eexample/r1":                         msgID("node1.example", "r1"),
	} {
		if got != want {
			t.Errorf("%q, want %q: the name is fixed by design", got, want)
		}
	}
	for _, subject := range []string{"", "compute.cast", "compute.cast.", "compute.cast.a", "other.cast.a.b", "compute.cast.a=2eb.m", "compute.event.a.b"} {
		if host, rest, ok := n.subjectTokens("cast", subject); ok {
			t.Errorf("subjectTokens(%q) = %q, %q, want it refused", subject, host, rest)
		}
	}
}

func TestSubjectMatches(t *testing.T) {
	cases := []struct {
		pattern, subject string
		want             bool
	}{
		{"a.b", "a.b", true},
		{"a.*", "a.b", true},
		{"*.b", "a.b", true},
		{"a", "a.b", false},
		{"a.b", "a", false},
		{"a.*", "a", false},
		{"a.*", "b.a", false},
	}
	for _, c := range cases {
		if got := subjectMatches(c.pattern, c.subject); got != c.want {
			t.Errorf("subjectMatches(%q, %q) = %v", c.pattern, c.subject, got)
		}
	}
}

func TestKeysRoundTrip(t *testing.T) {
	check := func(a, b string) bool {
		if a == "" || b == "" {
			return true
		}
		encoded, err := encodeKey("put", []string{a, b}, false)
		back, ok := decodeKey(encoded)
		return err == nil && ok && cmp.Equal(back, []string{a, b})
	}
	if err := quick.Check(check, nil); err != nil {
		t.Error(err)
	}
	if got, err := encodeKey("list", []string{"*", "a*"}, true); err != nil || got != "*.a=2A" {
		t.Errorf("encodeKey = %q, %v, want only a lone * to stand for any", got, err)
	}
}

func TestDedupWindow(t *testing.T) {
	d, now := newDedup(time.Minute), time.Unix(1000, 0)
	if d.seen("a", now) || !d.seen("a", now.Add(59*time.Second)) || d.seen("a", now.Add(time.Minute)) {
		t.Error("an id is known for exactly the window after it was first seen")
	}
	d.seen("", now)
	if d.seen("", now) {
		t.Error("no id is never a repetition")
	}
}

func TestJittered(t *testing.T) {
	for n := range 100 {
		if d := jittered(50*time.Millisecond, n, time.Second); d < 25*time.Millisecond || d > time.Second {
			t.Fatalf("jittered(%d) = %s", n, d)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	for name, cfg := range map[string]Config{
		"prefix":      {Prefix: "a.b"},
		"tls":         {TLSCertFile: "x"},
		"credentials": {CredsFile: "a", NKeyFile: "b"},
		"replicas":    {Replicas: 9},
		"ack_wait":    {AckWait: -1},
	} {
		if _, err := Dial(t.Context(), cfg); !errors.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), name) {
			t.Errorf("Dial with a bad %s = %v, want invalid_argument that names it", name, err)
		}
	}
}
