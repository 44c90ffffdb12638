package rpctest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// oddHosts are host names that are no subject token as they stand.
func oddHosts() []string {
	return []string{"node1", "node1.example.org", "Nöde 1", "a*b>c=d", "x\x00\xff/y", "100%"}
}

func callCases() []testCase {
	return []testCase{
		{"call/reply", callReply},
		{"call/message travels whole", callTravels},
		{"call/odd hosts", callOddHosts},
		{"call/error kinds", callErrors},
		{"call/no agent", callNoAgent},
		{"call/deadline passes", callDeadline},
		{"call/deadline travels", callDeadlineTravels},
		{"call/default deadline", callDefaultDeadline},
		{"call/cancelled", callCancelled},
		{"call/concurrent", callConcurrent},
		{"call/respond once", callRespondOnce},
		{"call/stop ends contexts", callStop},
		{"call/bad method", callBadMethod},
		{"call/big body", callBig},
		{"serve/second agent", serveConflict},
		{"serve/former self", serveFormerSelf},
		{"serve/many hosts on one connection", serveMany},
	}
}

func callReply(t *testing.T, rig *Rig) {
	serve(t, rig.Connect(t, "agent"), "node1", answer(echo))
	got, err := rig.Connect(t, "ctl").Call(within(t), "node1", rpc.Message{Method: "show_instance", Args: []byte(`{"a":1}`)})
	if err != nil || string(got) != `{"a":1}` {
		t.Errorf("Call = %q, %v, want the arguments back", got, err)
	}
}

func callTravels(t *testing.T, rig *Rig) {
	got := make(chan rpc.Message, 1)
	serve(t, rig.Connect(t, "agent"), "node1", answer(func(_ context.Context, m rpc.Message) rpc.Reply {
		got <- m
		return rpc.Reply{Body: []byte("{}")}
	}))
	want := rpc.Message{
		Method: "show_instance", RequestID: "5f1b", Version: "1.0", Trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Expires: time.Now().Add(Patience).UTC(), Args: []byte(`{"x":"ü"}`),
	}
	_, err := rig.Connect(t, "ctl").Call(within(t), "node1", want)
	must(t, "Call", err)
	if diff := cmp.Diff(want, <-got, cmp.Transformer("instant", func(t time.Time) int64 { return t.UnixMicro() / 1000 / 1000 / 60 })); diff != "" {
		t.Errorf("the message changed on its way (-sent +received):\n%s", diff)
	}
}

func callOddHosts(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	for _, host := range oddHosts() {
		serve(t, agent, host, answer(func(context.Context, rpc.Message) rpc.Reply { return rpc.Reply{Body: []byte(host)} }))
	}
	for _, host := range oddHosts() {
		got, err := ctl.Call(within(t), host, rpc.Message{Method: "get_host_info"})
		if err != nil || string(got) != host {
			t.Errorf("Call to %q = %q, %v, want its name", host, got, err)
		}
	}
	_, err := ctl.Call(within(t), "", rpc.Message{Method: "get_host_info"})
	wantKind(t, "Call to no host", err, fault.InvalidArgument)
}

func callErrors(t *testing.T, rig *Rig) {
	kinds := []fault.Kind{
		fault.InvalidArgument, fault.Unauthorized, fault.NotFound, fault.Conflict, fault.PreconditionFailed, fault.UnsupportedMethod,
		fault.UnsupportedVersion, fault.Busy, fault.Expired, fault.Timeout, fault.Unavailable, fault.Internal, fault.Cancelled,
	}
	serve(t, rig.Connect(t, "agent"), "node1", answer(func(_ context.Context, m rpc.Message) rpc.Reply {
		return rpc.Reply{Err: fault.New(fault.Kind(m.Args), "show_instance", "a1", "it is\nnot so").
			Because(errors.New("the cause")).WithHint("try\nthat").WithDetail("retry_after_seconds", 3).WithDetail("reasons", []string{"a", "b"})}
	}))
	ctl := rig.Connect(t, "ctl")
	for _, kind := range kinds {
		_, err := ctl.Call(within(t), "node1", rpc.Message{Method: "show_instance", Args: []byte(kind)})
		wantKind(t, "Call", err, kind)
		var got *fault.Error
		if !errors.As(err, &got) {
			t.Fatalf("Call = %T, want a *fault.Error", err)
		}
		want := &fault.Error{
			Kind: kind, Op: "show_instance", Subject: "a1", Message: "it is\nnot so: the cause", Hint: "try\nthat",
			Details: map[string]any{"retry_after_seconds": 3.0, "reasons": []any{"a", "b"}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s changed on its way (-sent +received):\n%s", kind, diff)
		}
	}
}

func callNoAgent(t *testing.T, rig *Rig) {
	ctl := rig.Connect(t, "ctl")
	start := time.Now()
	_, err := ctl.Call(within(t), "nowhere", rpc.Message{Method: "get_host_info"})
	wantKind(t, "Call", err, fault.Unavailable)
	if fault.HintOf(err) == "" {
		t.Errorf("Call = %v, want a hint", err)
	}
	if took := time.Since(start); took > Patience/4 {
		t.Errorf("it took %s to learn that nobody is there, want at once", took)
	}
	stop, err := rig.Connect(t, "agent").Serve(within(t), info("node1", "m"), answer(echo))
	must(t, "Serve", err)
	must(t, "stop", stop())
	if _, err = ctl.Call(within(t), "node1", rpc.Message{Method: "get_host_info"}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("Call after the agent stopped = %v, want unavailable", err)
	}
}

func callDeadline(t *testing.T, rig *Rig) {
	serve(t, rig.Connect(t, "agent"), "node1", func(context.Context, rpc.Message, func(rpc.Reply)) {})
	ctl := rig.Connect(t, "ctl")
	_, err := ctl.Call(withinTime(t, 100*time.Millisecond), "node1", rpc.Message{Method: "show_instance"})
	wantKind(t, "Call with a context", err, fault.Timeout)
	_, err = ctl.Call(within(t), "node1", rpc.Message{Method: "show_instance", Expires: time.Now().Add(100 * time.Millisecond)})
	wantKind(t, "Call with an expiry", err, fault.Timeout)
}

func callDeadlineTravels(t *testing.T, rig *Rig) {
	ended := make(chan error, 1)
	serve(t, rig.Connect(t, "agent"), "node1", func(ctx context.Context, m rpc.Message, _ func(rpc.Reply)) {
		at, ok := ctx.Deadline()
		if !ok || at.Sub(m.Expires).Abs() > time.Millisecond {
			ended <- fmt.Errorf("the handler's deadline is %v (%v), the message's %v", at, ok, m.Expires)
			return
		}
		context.AfterFunc(ctx, func() { ended <- context.Cause(ctx) })
	})
	_, err := rig.Connect(t, "ctl").Call(withinTime(t, 200*time.Millisecond), "node1", rpc.Message{Method: "show_instance"})
	wantKind(t, "Call", err, fault.Timeout)
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the handler's context ended with %v, want its deadline", err)
	}
}

func callDefaultDeadline(t *testing.T, rig *Rig) {
	got := make(chan time.Time, 1)
	serve(t, rig.Connect(t, "agent"), "node1", answer(func(_ context.Context, m rpc.Message) rpc.Reply {
		got <- m.Expires
		return rpc.Reply{}
	}))
	_, err := rig.Connect(t, "ctl").Call(t.Context(), "node1", rpc.Message{Method: "show_instance"})
	must(t, "Call", err)
	if at := <-got; at.IsZero() || time.Until(at) > 2*time.Minute {
		t.Errorf("a call without a deadline expires at %v, want a default", at)
	}
}

func callCancelled(t *testing.T, rig *Rig) {
	ctx, cancel := context.WithCancelCause(within(t))
	cause := errors.New("changed my mind")
	serve(t, rig.Connect(t, "agent"), "node1", func(context.Context, rpc.Message, func(rpc.Reply)) { cancel(cause) })
	_, err := rig.Connect(t, "ctl").Call(ctx, "node1", rpc.Message{Method: "show_instance"})
	if !errors.Is(err, cause) {
		t.Errorf("Call = %v, want the cause of its context's end", err)
	}
}

func callConcurrent(t *testing.T, rig *Rig) {
	serve(t, rig.Connect(t, "agent"), "node1", func(_ context.Context, m rpc.Message, respond func(rpc.Reply)) {
		time.AfterFunc(time.Millisecond, func() { respond(rpc.Reply{Body: m.Args}) })
	})
	ctl, ctx := rig.Connect(t, "ctl"), within(t)
	together(200, func(i int) {
		want := fmt.Sprintf(`{"i":%d}`, i)
		got, err := ctl.Call(ctx, "node1", rpc.Message{Method: "show_instance", Args: []byte(want)})
		if err != nil || string(got) != want {
			t.Errorf("Call %d = %q, %v, want %q", i, got, err, want)
		}
	})
}

func callRespondOnce(t *testing.T, rig *Rig) {
	serve(t, rig.Connect(t, "agent"), "node1", func(_ context.Context, m rpc.Message, respond func(rpc.Reply)) {
		respond(rpc.Reply{Body: m.Args})
		respond(rpc.Reply{Body: []byte("again")})
	})
	ctl := rig.Connect(t, "ctl")
	for i := range 20 {
		want := fmt.Sprint(i)
		if got, err := ctl.Call(within(t), "node1", rpc.Message{Method: "m", Args: []byte(want)}); err != nil || string(got) != want {
			t.Fatalf("Call %d = %q, %v, want its own first reply", i, got, err)
		}
	}
}

func callStop(t *testing.T, rig *Rig) {
	began, ended := make(chan struct{}), make(chan struct{})
	stop, err := rig.Connect(t, "agent").Serve(within(t), info("node1", "m"), func(ctx context.Context, _ rpc.Message, respond func(rpc.Reply)) {
		close(began)
		context.AfterFunc(ctx, func() {
			respond(rpc.Reply{Err: fault.Wire(context.Cause(ctx))})
			close(ended)
		})
	})
	must(t, "Serve", err)
	ctl, ctx := rig.Connect(t, "ctl"), within(t)
	together(2, func(i int) {
		if i == 0 {
			_, err := ctl.Call(ctx, "node1", rpc.Message{Method: "show_instance"})
			if !errors.Is(err, fault.Unavailable) {
				t.Errorf("Call to an agent that stops = %v, want unavailable", err)
			}
			return
		}
		<-began
		if err := stop(); err != nil {
			t.Errorf("stop = %v, want nil", err)
		}
		<-ended
	})
	must(t, "stop again", stop())
}

func callBadMethod(t *testing.T, rig *Rig) {
	serve(t, rig.Connect(t, "agent"), "node1", answer(echo))
	ctl := rig.Connect(t, "ctl")
	for _, method := range []string{"", "a.b", "*", ">", "a b", "a\r\nb"} {
		_, err := ctl.Call(within(t), "node1", rpc.Message{Method: method})
		wantKind(t, fmt.Sprintf("Call %q", method), err, fault.InvalidArgument)
	}
	for _, id := range []string{"a\r\nb", "\x00"} {
		_, err := ctl.Call(within(t), "node1", rpc.Message{Method: "m", RequestID: id})
		wantKind(t, fmt.Sprintf("Call with request id %q", id), err, fault.InvalidArgument)
	}
}

func callBig(t *testing.T, rig *Rig) {
	serve(t, rig.Connect(t, "agent"), "node1", answer(echo))
	body := bytes.Repeat([]byte("x"), 500_000)
	got, err := rig.Connect(t, "ctl").Call(within(t), "node1", rpc.Message{Method: "m", Args: body})
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("Call = %d bytes, %v, want %d back", len(got), err, len(body))
	}
}

func serveConflict(t *testing.T, rig *Rig) {
	serve(t, rig.Connect(t, "one"), "node1.example", answer(echo))
	_, err := rig.Connect(t, "two").Serve(within(t), info("node1.example", "other"), answer(echo))
	wantKind(t, "Serve of a second agent", err, fault.Conflict)
	if got := fault.DetailsOf(err)["machine_id"]; got != "machine-node1.example" || fault.HintOf(err) == "" {
		t.Errorf("the refusal names %v with hint %q, want the agent that runs and what to do", got, fault.HintOf(err))
	}
	if _, err := rig.Connect(t, "ctl").Call(within(t), "node1.example", rpc.Message{Method: "m"}); err != nil {
		t.Errorf("Call to the first agent = %v, want nil", err)
	}
}

func serveFormerSelf(t *testing.T, rig *Rig) {
	one, two := rig.Connect(t, "one"), rig.Connect(t, "two")
	stop, err := one.Serve(within(t), info("node1", "m"), answer(echo))
	must(t, "Serve", err)
	again, err := two.Serve(within(t), info("node1", "m"), answer(echo))
	must(t, "Serve of the same agent started again", err)
	must(t, "stop", stop())
	_, err = rig.Connect(t, "ctl").Call(within(t), "node1", rpc.Message{Method: "m"})
	must(t, "Call to the one that stayed", err)
	must(t, "stop", again())
}

func serveMany(t *testing.T, rig *Rig) {
	agents, ctl := rig.Connect(t, "agents"), rig.Connect(t, "ctl")
	for i := range 50 {
		host := fmt.Sprintf("node%d", i)
		serve(t, agents, host, answer(func(context.Context, rpc.Message) rpc.Reply { return rpc.Reply{Body: []byte(host)} }))
	}
	for i := range 50 {
		host := fmt.Sprintf("node%d", i)
		if got, err := ctl.Call(within(t), host, rpc.Message{Method: "m"}); err != nil || string(got) != host {
			t.Fatalf("Call to %s = %q, %v", host, got, err)
		}
	}
}
