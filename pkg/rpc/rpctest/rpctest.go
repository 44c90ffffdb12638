// Package rpctest is the contract of [rpc.Transport] as tests: what a transport
// must do to carry calls, casts, events and views. NATS and the bus in memory
// both pass it.
package rpctest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// Rig is one bus under test, fresh for each test.
type Rig struct {
	// Connect opens a connection that ends with the test.
	Connect func(t *testing.T, name string) rpc.Transport
	// Inject puts a message into the cast stream as it is.
	Inject func(t *testing.T, subject string, header map[string][]string, body []byte)
	// Restart takes the server away, calls while, and brings it back with its store.
	Restart func(t *testing.T, while func())
	// AckWait is the redelivery time of this bus; tests wait for multiples of it.
	AckWait time.Duration
	// Prefix leads all subjects.
	Prefix string
}

// Patience bounds each wait of a test for something that must happen.
const Patience = 20 * time.Second

type testCase struct {
	name string
	run  func(*testing.T, *Rig)
}

// Suite runs the contract; newRig is called once per test.
func Suite(t *testing.T, newRig func(*testing.T) *Rig) {
	t.Helper()
	SuiteIn(t, func(t *testing.T, test func(*testing.T)) { t.Helper(); test(t) }, newRig)
}

// SuiteIn is Suite with every test run by in, for example synctest.Test.
func SuiteIn(t *testing.T, in func(*testing.T, func(*testing.T)), newRig func(*testing.T) *Rig) {
	t.Helper()
	for _, group := range [][]testCase{callCases(), castCases(), eventCases(), viewCases(), connectionCases()} {
		for _, c := range group {
			t.Run(c.name, func(t *testing.T) {
				in(t, func(t *testing.T) { t.Helper(); c.run(t, newRig(t)) })
			})
		}
	}
}

// within gives a context that ends after Patience.
func within(t *testing.T) context.Context {
	t.Helper()
	return withinTime(t, Patience)
}

func withinTime(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// info is an agent's description.
func info(host, machine string) rpc.ServiceInfo {
	return rpc.ServiceInfo{
		Host: host, Version: "0.1.0",
		Metadata: map[string]string{"host": host, "machine_id": machine, "state_dir": "/var/lib/" + machine},
	}
}

// serve starts an agent and stops it with the test.
func serve(t *testing.T, a rpc.Transport, host string, h rpc.Handler) {
	t.Helper()
	stop, err := a.Serve(within(t), info(host, "machine-"+host), h)
	if err != nil {
		t.Fatalf("Serve(%q) = %v, want nil", host, err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("stop of Serve(%q) = %v, want nil", host, err)
		}
	})
}

// answer makes a handler that responds at once.
func answer(fn func(ctx context.Context, m rpc.Message) rpc.Reply) rpc.Handler {
	return func(ctx context.Context, m rpc.Message, respond func(rpc.Reply)) { respond(fn(ctx, m)) }
}

func echo(_ context.Context, m rpc.Message) rpc.Reply { return rpc.Reply{Body: m.Args} }

func wantKind(t *testing.T, what string, err error, kind fault.Kind) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("%s = %v (kind %q), want kind %s", what, err, fault.KindOf(err), kind)
	}
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s = %v, want nil", what, err)
	}
}

// cast sends a cast and expects it to be stored.
func cast(t *testing.T, c rpc.Client, host, id, args string) {
	t.Helper()
	must(t, "Cast "+id, c.Cast(within(t), host, rpc.Message{Method: "start_instance", RequestID: id, Version: "1.0", Args: []byte(args)}))
}

// reader opens a host's reader and closes it with the test.
func reader(t *testing.T, a rpc.Agent, host string) rpc.CastReader {
	t.Helper()
	r, err := a.Casts(within(t), host)
	must(t, "Casts "+host, err)
	t.Cleanup(func() { must(t, "Close", r.Close()) })
	return r
}

// read takes exactly n deliveries.
func read(t *testing.T, r rpc.CastReader, n int) []rpc.Delivery {
	t.Helper()
	ctx := within(t)
	var all []rpc.Delivery
	for len(all) < n {
		batch, err := r.Next(ctx, n-len(all))
		if err != nil {
			t.Fatalf("Next after %d of %d casts = %v", len(all), n, err)
		}
		all = append(all, batch...)
	}
	if len(all) > n {
		t.Fatalf("Next gave %d casts, want %d", len(all), n)
	}
	return all
}

// quiet expects that nothing comes for d.
func quiet(t *testing.T, r rpc.CastReader, d time.Duration) {
	t.Helper()
	batch, err := r.Next(withinTime(t, d), 10)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Next = %v, %v, want nothing for %s", ids(batch), err, d)
	}
}

func ids(batch []rpc.Delivery) []string {
	var list []string
	for _, d := range batch {
		list = append(list, fmt.Sprintf("%s(%d)", d.RequestID, d.Delivered))
	}
	return list
}

func ack(t *testing.T, batch ...rpc.Delivery) {
	t.Helper()
	for _, d := range batch {
		must(t, "Ack "+d.RequestID, d.Ack())
	}
}

// unacked waits until the reader counts want, for acknowledgements are not confirmed.
func unacked(t *testing.T, r rpc.CastReader, want int) {
	t.Helper()
	ctx := within(t)
	for {
		got, err := r.Unacked(ctx)
		must(t, "Unacked", err)
		if got == want {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("Unacked = %d, want %d", got, want)
		}
		<-time.NewTimer(time.Millisecond).C
	}
}

// events opens a reader that is closed with the test.
func events(t *testing.T, c rpc.Client, f rpc.EventFilter) rpc.EventReader {
	t.Helper()
	r, err := c.Events(within(t), f)
	must(t, "Events", err)
	t.Cleanup(func() { must(t, "Close", r.Close()) })
	return r
}

func next(t *testing.T, r rpc.EventReader) rpc.Event {
	t.Helper()
	e, err := r.Next(within(t))
	must(t, "Next", err)
	return e
}

// together runs fn n times at once and waits.
func together(n int, fn func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { fn(i) })
	}
	wg.Wait()
}
