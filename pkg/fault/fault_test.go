package fault_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

func TestKindOf(t *testing.T) {
	cases := []struct {
		name string
		err  error
		want fault.Kind
	}{
		{"nil", nil, ""},
		{"own", fault.New(fault.Conflict, "op", "x", "m"), fault.Conflict},
		{"wrapped by fmt", fmt.Errorf("while: %w", fault.New(fault.Busy, "", "", "m")), fault.Busy},
		{"bare kind", fmt.Errorf("while: %w", fault.NotFound), fault.NotFound},
		{"deadline", fmt.Errorf("call: %w", context.DeadlineExceeded), fault.Timeout},
		{"cancelled", context.Canceled, fault.Cancelled},
		{"foreign", errors.New("boom"), fault.Internal},
		{"wrap keeps the kind", fault.Wrap(fault.New(fault.Expired, "a", "b", "m"), "op", "x"), fault.Expired},
		{"wrap as replaces it", fault.WrapAs(fault.Unavailable, errors.New("eof"), "op", "x"), fault.Unavailable},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := fault.KindOf(c.err); got != c.want {
				t.Errorf("KindOf(%v) = %q, want %q", c.err, got, c.want)
			}
			if c.want != "" && c.want != fault.Internal && !errors.Is(fault.Wire(c.err), c.want) {
				t.Errorf("errors.Is(Wire(%v), %q) = false", c.err, c.want)
			}
		})
	}
}

func TestWireRoundTrip(t *testing.T) {
	inner := fault.New(fault.PreconditionFailed, "check", "h2", "2 reasons").
		WithHint("free some memory").WithDetail("reasons", []any{"no room", "no bridge"})
	err := fault.Wrap(inner, "live_migration", "i-1")
	raw, jerr := json.Marshal(fault.Wire(err))
	if jerr != nil {
		t.Fatal(jerr)
	}
	var got fault.Error
	if jerr := json.Unmarshal(raw, &got); jerr != nil {
		t.Fatal(jerr)
	}
	want := fault.Error{
		Kind: fault.PreconditionFailed, Op: "live_migration", Subject: "i-1", Message: "check h2: 2 reasons",
		Hint: "free some memory", Details: map[string]any{"reasons": []any{"no room", "no bridge"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("wire form (-want +got):\n%s", d)
	}
	if fault.Wire(nil) != nil || fault.Wrap(nil, "a", "b") != nil {
		t.Error("nil must stay nil")
	}
}

func TestWrapSaysAPlaceOnce(t *testing.T) {
	inner := fault.New(fault.Conflict, "start_instance", "i-1", "it is paused")
	for want, err := range map[string]error{
		"start_instance i-1: it is paused":                    fault.Wrap(inner, "start_instance", "i-1"),
		"stop_instance i-1: start_instance i-1: it is paused": fault.Wrap(inner, "stop_instance", "i-1"),
		"start_instance: start_instance i-1: it is paused":    fault.Wrap(inner, "start_instance", ""),
	} {
		if err.Error() != want || fault.KindOf(err) != fault.Conflict {
			t.Errorf("Wrap = %v, want %s", err, want)
		}
	}
}

func TestWireSaysAPlaceOnce(t *testing.T) {
	inner := fault.New(fault.Conflict, "start_instance", "i-1", "it is paused")
	for _, err := range []error{inner, fault.Wrap(inner, "", ""), fault.WrapAs(fault.Conflict, inner, "start_instance", "i-1")} {
		if got := fault.Wire(err); got.Error() != "start_instance i-1: it is paused" || got.Op != "start_instance" {
			t.Errorf("Wire(%v) = %v", err, got)
		}
	}
}

func TestCodes(t *testing.T) {
	seen := map[int]fault.Kind{}
	for _, k := range []fault.Kind{
		fault.InvalidArgument, fault.Unauthorized, fault.NotFound, fault.Conflict, fault.PreconditionFailed, fault.UnsupportedMethod,
		fault.UnsupportedVersion, fault.Busy, fault.Expired, fault.Timeout, fault.Unavailable, fault.Internal, fault.Cancelled,
	} {
		if !k.Known() {
			t.Errorf("%q is not known", k)
		}
		if other, dup := seen[k.Code()]; dup {
			t.Errorf("%q and %q share code %d", k, other, k.Code())
		}
		seen[k.Code()] = k
	}
	if got := fault.Kind("new_kind_of_a_later_version").Code(); got != 500 {
		t.Errorf("code of an unknown kind = %d, want 500", got)
	}
}

func ExampleNew() {
	err := fault.New(fault.NotFound, "start_instance", "6f1b", "no such instance on this host").
		WithHint("compute-agent instance list shows what is here")
	fmt.Println(err)
	fmt.Println(errors.Is(err, fault.NotFound), fault.HintOf(err))
	// Output:
	// start_instance 6f1b: no such instance on this host
	// true compute-agent instance list shows what is here
}
