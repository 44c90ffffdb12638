package rpctest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

func castCases() []testCase {
	return []testCase{
		{"cast/order", castOrder},
		{"cast/travels whole", castTravels},
		{"cast/stored while nobody reads", castStored},
		{"cast/wakes a waiting reader", castWakes},
		{"cast/redelivery without ack", castRedelivery},
		{"cast/no redelivery after ack", castAcked},
		{"cast/duplicate request id", castDuplicate},
		{"cast/same id to two hosts", castTwoHosts},
		{"cast/odd hosts", castOddHosts},
		{"cast/malformed", castMalformed},
		{"cast/refused by the sender", castRefused},
		{"cast/reader reopened", castReopened},
		{"cast/batch sizes", castBatches},
		{"cast/next gives up with its context", castContext},
	}
}

func castOrder(t *testing.T, rig *Rig) {
	ctl, agent := rig.Connect(t, "ctl"), rig.Connect(t, "agent")
	r := reader(t, agent, "node1")
	for i := range 100 {
		cast(t, ctl, "node1", fmt.Sprint(i), "{}")
	}
	last := uint64(0)
	for i, d := range read(t, r, 100) {
		if d.RequestID != fmt.Sprint(i) || d.Sequence <= last || d.Delivered != 1 {
			t.Fatalf("cast %d is %s with sequence %d after %d, delivered %d times", i, d.RequestID, d.Sequence, last, d.Delivered)
		}
		last = d.Sequence
		ack(t, d)
	}
	unacked(t, r, 0)
}

func castTravels(t *testing.T, rig *Rig) {
	ctl := rig.Connect(t, "ctl")
	r := reader(t, rig.Connect(t, "agent"), "node1")
	sent := rpc.Message{
		Method: "reboot_instance", RequestID: "5f1b", Version: "1.0", Trace: "00-ab-cd-01",
		Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond), Args: []byte(`{"instance":"ü"}`),
	}
	before := time.Now().Add(-time.Second)
	must(t, "Cast", ctl.Cast(within(t), "node1", sent))
	d := read(t, r, 1)[0]
	if d.Method != sent.Method || d.RequestID != sent.RequestID || d.Version != sent.Version || d.Trace != sent.Trace ||
		!d.Expires.Equal(sent.Expires) || string(d.Args) != string(sent.Args) || d.Malformed != nil {
		t.Errorf("the cast changed on its way: %+v, want %+v", d.Message, sent)
	}
	if d.Sent.Before(before) || d.Sent.After(time.Now().Add(time.Second)) {
		t.Errorf("Sent = %v, want about now", d.Sent)
	}
	ack(t, d)
}

func castStored(t *testing.T, rig *Rig) {
	ctl := rig.Connect(t, "ctl")
	must(t, "Close", reader(t, rig.Connect(t, "agent"), "node1").Close())
	cast(t, ctl, "node1", "a", "{}")
	cast(t, ctl, "node1", "b", "{}")
	got := read(t, reader(t, rig.Connect(t, "agent again"), "node1"), 2)
	if got[0].RequestID != "a" || got[1].RequestID != "b" {
		t.Errorf("read %v, want a, b", ids(got))
	}
	ack(t, got...)
}

func castWakes(t *testing.T, rig *Rig) {
	ctl, ctx := rig.Connect(t, "ctl"), within(t)
	r := reader(t, rig.Connect(t, "agent"), "node1")
	seen := make(chan struct{}, 20)
	together(2, func(i int) {
		if i == 0 {
			for n := range 20 {
				got, err := r.Next(ctx, 10)
				if err != nil || len(got) != 1 || got[0].RequestID != fmt.Sprint(n) {
					t.Errorf("Next %d = %v, %v", n, ids(got), err)
					return
				}
				if err := got[0].Ack(); err != nil {
					t.Errorf("Ack = %v", err)
				}
				seen <- struct{}{}
			}
			return
		}
		for n := range 20 {
			if err := ctl.Cast(ctx, "node1", rpc.Message{Method: "m", RequestID: fmt.Sprint(n)}); err != nil {
				t.Errorf("Cast = %v", err)
			}
			select {
			case <-seen:
			case <-ctx.Done():
				return
			}
		}
	})
}

func castRedelivery(t *testing.T, rig *Rig) {
	ctl := rig.Connect(t, "ctl")
	r := reader(t, rig.Connect(t, "agent"), "node1")
	for _, id := range []string{"a", "b", "c"} {
		cast(t, ctl, "node1", id, "{}")
	}
	first := read(t, r, 3)
	ack(t, first[1])
	unacked(t, r, 2)
	start := time.Now()
	again := read(t, r, 2)
	if took := time.Since(start); took < rig.AckWait/2 || took > 5*rig.AckWait {
		t.Errorf("the casts came again after %s, want about %s", took, rig.AckWait)
	}
	if again[0].RequestID != "a" || again[1].RequestID != "c" || again[0].Delivered != 2 || again[0].Sequence != first[0].Sequence {
		t.Errorf("read %v, want a(2), c(2) with their sequences", ids(again))
	}
	ack(t, again...)
	unacked(t, r, 0)
	quiet(t, r, 2*rig.AckWait)
}

func castAcked(t *testing.T, rig *Rig) {
	r := reader(t, rig.Connect(t, "agent"), "node1")
	cast(t, rig.Connect(t, "ctl"), "node1", "a", "{}")
	ack(t, read(t, r, 1)...)
	unacked(t, r, 0)
	quiet(t, r, 3*rig.AckWait)
}

func castDuplicate(t *testing.T, rig *Rig) {
	ctl := rig.Connect(t, "ctl")
	r := reader(t, rig.Connect(t, "agent"), "node1")
	cast(t, ctl, "node1", "a", "{}")
	cast(t, ctl, "node1", "a", "{}")
	cast(t, ctl, "node1", "b", "{}")
	got := read(t, r, 2)
	if got[0].RequestID != "a" || got[1].RequestID != "b" {
		t.Errorf("read %v, want a, b: the second a is a repetition", ids(got))
	}
	ack(t, got...)
	// after the window the same id is stored again: the journal tells it apart
	quiet(t, r, 4*rig.AckWait)
	cast(t, ctl, "node1", "a", "{}")
	ack(t, read(t, r, 1)...)
}

func castTwoHosts(t *testing.T, rig *Rig) {
	ctl, agent := rig.Connect(t, "ctl"), rig.Connect(t, "agent")
	one, two := reader(t, agent, "node1"), reader(t, agent, "node2")
	cast(t, ctl, "node1", "a", `{"n":1}`)
	cast(t, ctl, "node2", "a", `{"n":2}`)
	a, b := read(t, one, 1)[0], read(t, two, 1)[0]
	if string(a.Args) != `{"n":1}` || string(b.Args) != `{"n":2}` {
		t.Errorf("node1 read %s, node2 %s: one request may span many hosts", a.Args, b.Args)
	}
	ack(t, a, b)
}

func castOddHosts(t *testing.T, rig *Rig) {
	ctl, agent := rig.Connect(t, "ctl"), rig.Connect(t, "agent")
	for i, host := range oddHosts() {
		r := reader(t, agent, host)
		cast(t, ctl, host, fmt.Sprint(i), "{}")
		got := read(t, r, 1)
		if got[0].RequestID != fmt.Sprint(i) || got[0].Malformed != nil {
			t.Errorf("host %q read %v, %v", host, ids(got), got[0].Malformed)
		}
		ack(t, got...)
	}
}

func castMalformed(t *testing.T, rig *Rig) {
	r := reader(t, rig.Connect(t, "agent"), "node1")
	subject := rig.Prefix + ".cast.node1."
	rig.Inject(t, subject+"m", nil, []byte("no headers"))
	rig.Inject(t, subject+"m", map[string][]string{"Compute-Request-Id": {"x"}, "Compute-Expires": {"tomorrow"}}, []byte("bad expiry"))
	rig.Inject(t, subject+"m$", map[string][]string{"Compute-Request-Id": {"y"}}, []byte("bad method"))
	cast(t, rig.Connect(t, "ctl"), "node1", "good", "{}")
	got := read(t, r, 4)
	for _, d := range got[:3] {
		if d.Malformed == nil || !errors.Is(d.Malformed, fault.InvalidArgument) || len(d.Args) == 0 {
			t.Errorf("%q: Malformed = %v, want invalid_argument and the body kept", d.Args, d.Malformed)
		}
	}
	if got[1].RequestID != "x" || got[2].RequestID != "y" {
		t.Errorf("read %v, want the request ids where they could be read", ids(got))
	}
	if got[3].RequestID != "good" || got[3].Malformed != nil {
		t.Errorf("read %v, want the good one behind the bad", ids(got))
	}
	ack(t, got...)
	quiet(t, r, 2*rig.AckWait)
}

func castRefused(t *testing.T, rig *Rig) {
	ctl := rig.Connect(t, "ctl")
	wantKind(t, "Cast without an id", ctl.Cast(within(t), "node1", rpc.Message{Method: "m"}), fault.InvalidArgument)
	wantKind(t, "Cast without a host", ctl.Cast(within(t), "", rpc.Message{Method: "m", RequestID: "a"}), fault.InvalidArgument)
	wantKind(t, "Cast with a bad method", ctl.Cast(within(t), "node1", rpc.Message{Method: "m.n", RequestID: "a"}), fault.InvalidArgument)
	wantKind(t, "Cast with a bad id", ctl.Cast(within(t), "node1", rpc.Message{Method: "m", RequestID: "a\n"}), fault.InvalidArgument)
}

func castReopened(t *testing.T, rig *Rig) {
	ctl, agent := rig.Connect(t, "ctl"), rig.Connect(t, "agent")
	for i := range 6 {
		cast(t, ctl, "node1", fmt.Sprint(i), "{}")
	}
	first, err := agent.Casts(within(t), "node1")
	must(t, "Casts", err)
	got := read(t, first, 3)
	ack(t, got[0])
	unacked(t, first, 2)
	must(t, "Close", first.Close())
	if _, err := first.Next(within(t), 1); err == nil {
		t.Error("Next of a closed reader = nil, want an error")
	}
	r := reader(t, rig.Connect(t, "agent again"), "node1")
	seen := map[string]int{}
	for len(seen) < 5 {
		for _, d := range read(t, r, 1) {
			seen[d.RequestID] = d.Delivered
			ack(t, d)
		}
	}
	for id, want := range map[string]int{"1": 2, "2": 2, "3": 1, "4": 1, "5": 1} {
		if seen[id] < want {
			t.Errorf("cast %s was delivered %d times, want %d or more; all: %v", id, seen[id], want, seen)
		}
	}
	unacked(t, r, 0)
}

func castBatches(t *testing.T, rig *Rig) {
	ctl := rig.Connect(t, "ctl")
	r := reader(t, rig.Connect(t, "agent"), "node1")
	for i := range 50 {
		cast(t, ctl, "node1", fmt.Sprint(i), "{}")
	}
	ctx, n := within(t), 0
	for _, size := range []int{1, 7, 100, 3, 0, 100} {
		batch, err := r.Next(ctx, size)
		must(t, "Next", err)
		if len(batch) == 0 || len(batch) > max(size, 1) {
			t.Fatalf("Next(%d) gave %d casts", size, len(batch))
		}
		for _, d := range batch {
			if d.RequestID != fmt.Sprint(n) {
				t.Fatalf("cast %d is %s", n, d.RequestID)
			}
			n++
		}
		ack(t, batch...)
		if n == 50 {
			return
		}
	}
}

func castContext(t *testing.T, rig *Rig) {
	r := reader(t, rig.Connect(t, "agent"), "node1")
	ctx, cancel := context.WithCancelCause(within(t))
	cause := errors.New("enough")
	time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
	if _, err := r.Next(ctx, 1); !errors.Is(err, cause) {
		t.Errorf("Next = %v, want the cause of its context's end", err)
	}
	cast(t, rig.Connect(t, "ctl"), "node1", "a", "{}")
	got := read(t, r, 1)
	if got[0].Delivered != 1 {
		t.Errorf("read %v, want a(1): a Next that gave up loses nothing", ids(got))
	}
	ack(t, got...)
}
