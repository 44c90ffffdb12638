package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/rpctest"
)

// news are events of a host, each with an id of its own.
func news(host, about string, n int) (events []rpc.Event) {
	for i := range n {
		text := fmt.Sprintf("%s-%d", about, i)
		events = append(events, rpc.Event{Host: host, Kind: "task", ID: text, MsgID: text, Body: []byte(text)})
	}
	return events
}

// answersTo counts what comes for the holder of an inbox.
func answersTo(t *testing.T, url, inbox string) *atomic.Int64 {
	t.Helper()
	nc, _ := admin(t, url)
	count := new(atomic.Int64)
	if _, err := nc.Subscribe(inbox+".>", func(*nats.Msg) { count.Add(1) }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return count
}

// stored gives what a stream holds, in its order.
func stored(t *testing.T, js jetstream.JetStream, stream string) (bodies []string) {
	t.Helper()
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	state := s.CachedInfo().State
	for n := state.FirstSeq; n <= state.LastSeq; n++ {
		m, err := s.GetMsg(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, string(m.Data))
	}
	return bodies
}

func bodiesOf(events []rpc.Event) (bodies []string) {
	for _, e := range events {
		bodies = append(bodies, string(e.Body))
	}
	return bodies
}

func wantBodies(t *testing.T, got []string, want ...[]rpc.Event) {
	t.Helper()
	var all []string
	for _, events := range want {
		all = append(all, bodiesOf(events)...)
	}
	if strings.Join(got, "\n") != strings.Join(all, "\n") {
		t.Errorf("the stream holds %d events, want %d in their order:\n%q", len(got), len(all), got)
	}
}

// TestBatchHasOneConfirmation counts what a server answers to a thousand events.
func TestBatchHasOneConfirmation(t *testing.T) {
	for _, c := range []struct {
		batches rpc.Batches
		answers [2]int64 // at least, at most
	}{
		{rpc.BatchesOn, [2]int64{2, 20}},
		{rpc.BatchesOff, [2]int64{1000, 1020}},
	} {
		t.Run(string(c.batches), func(t *testing.T) {
			s := embeddedServer(t)
			cfg := testConfig(s.url)
			cfg.Batches, cfg.InboxPrefix = c.batches, "_INBOX_here"
			agent := dial(t, cfg)
			count := answersTo(t, s.url, "_INBOX_here")
			events := news("node1", "a", 1000)
			if n, err := agent.PublishAll(t.Context(), events); err != nil || n != len(events) {
				t.Fatalf("PublishAll = %d, %v", n, err)
			}
			nc, js := admin(t, s.url)
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			if got := count.Load(); got < c.answers[0] || got > c.answers[1] {
				t.Errorf("the server answered %d times, want %d to %d", got, c.answers[0], c.answers[1])
			}
			wantBodies(t, stored(t, js, "COMPUTE_EVENTS"), events)
		})
	}
}

// TestBatchOutcomes holds batches to what single messages do: as much is stored, and the same
// is said of the rest.
func TestBatchOutcomes(t *testing.T) {
	t.Parallel()
	foreign := append(append(news("node1", "a", 10), news("node2", "b", 1)...), news("node1", "c", 10)...)
	for name, c := range map[string]struct {
		events []rpc.Event
		before func(*testing.T, *rpc.Config, jetstream.JetStream)
		stored int
		want   fault.Kind
		silent bool // no server can answer the batch
	}{
		"all":                         {events: news("node1", "a", 3000), stored: 3000},
		"a few":                       {events: news("node1", "a", 3), stored: 3},
		"no room":                     {events: news("node1", "a", 30), before: room(20), stored: 20, want: fault.Unavailable},
		"no room at all":              {events: news("node1", "a", 30), before: room(1), stored: 1, want: fault.Unavailable},
		"no right in the middle":      {events: foreign, stored: 10, want: fault.Timeout},
		"no right at the beginning":   {events: foreign[10:], stored: 0, want: fault.Timeout},
		"no right at the end":         {events: foreign[:11], stored: 10, want: fault.Timeout, silent: true},
		"one is too big":              {events: append(news("node1", "a", 20), rpc.Event{Host: "node1", Kind: "task", ID: "big", Body: make([]byte, 2<<20)}), stored: 20, want: fault.InvalidArgument},
		"the stream is not there":     {events: news("node1", "a", 20), before: without, want: fault.Unavailable},
		"batches are taken away":      {events: news("node1", "a", 20), before: used(rpc.BatchesOff), stored: 20},
		"batches are given meanwhile": {events: news("node1", "a", 20), before: used(rpc.BatchesOn), stored: 20},
	} {
		for _, batches := range []rpc.Batches{rpc.BatchesOn, rpc.BatchesOff} {
			t.Run(name+"/"+string(batches), func(t *testing.T) {
				t.Parallel()
				address := rightsServer(t)
				cfg := testConfig("nats://ctl:c@" + address)
				cfg.Batches = batches
				ctl := dial(t, cfg)
				if err := rpc.Setup(t.Context(), ctl, "node1"); err != nil {
					t.Fatal(err)
				}
				_, js := admin(t, "nats://ctl:c@"+address)
				own := testConfig("nats://node1:n@" + address)
				own.AutoSetup, own.InboxPrefix, own.PublishTimeout = false, "_INBOX_node1", time.Second
				agent := dial(t, own)
				if n, err := agent.PublishAll(t.Context(), news("node1", "first", 9)); err != nil || n != 9 {
					t.Fatalf("PublishAll of the first = %d, %v", n, err)
				}
				if c.before != nil {
					c.before(t, &cfg, js)
				}
				n, err := agent.PublishAll(t.Context(), c.events)
				if silent := c.silent && batches == rpc.BatchesOn; silent && n == 0 && errors.Is(err, fault.Timeout) { // then one by one
					n, err = agent.PublishAll(t.Context(), c.events)
				}
				if n != c.stored || c.want == "" && err != nil || c.want != "" && !errors.Is(err, c.want) {
					t.Errorf("PublishAll = %d, %v (kind %q), want %d and kind %q", n, err, fault.KindOf(err), c.stored, c.want)
				}
			})
		}
	}
}

// room leaves so much room for events behind the first nine.
func room(n int64) func(*testing.T, *rpc.Config, jetstream.JetStream) {
	return func(t *testing.T, _ *rpc.Config, js jetstream.JetStream) {
		t.Helper()
		change(t, js, func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 9+n, jetstream.DiscardNew })
	}
}

func without(t *testing.T, _ *rpc.Config, js jetstream.JetStream) {
	t.Helper()
	if err := js.DeleteStream(t.Context(), "COMPUTE_EVENTS"); err != nil {
		t.Fatal(err)
	}
}

// used sets the streams up anew while an agent publishes.
func used(batches rpc.Batches) func(*testing.T, *rpc.Config, jetstream.JetStream) {
	return func(t *testing.T, cfg *rpc.Config, _ jetstream.JetStream) {
		t.Helper()
		cfg.Batches = batches
		if err := rpc.Setup(t.Context(), dial(t, *cfg)); err != nil {
			t.Fatal(err)
		}
	}
}

func change(t *testing.T, js jetstream.JetStream, fn func(*jetstream.StreamConfig)) {
	t.Helper()
	s, err := js.Stream(t.Context(), "COMPUTE_EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	fn(&cfg)
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}

// TestBatchAgainAfterALoss restarts the server while events are on their way: each is stored
// once, in order, when they are stored again from the first that nobody confirmed.
func TestBatchAgainAfterALoss(t *testing.T) {
	s := embeddedServer(t)
	cfg := testConfig(s.url)
	cfg.Batches, cfg.AckWait = rpc.BatchesOn, 5*time.Second
	agent := dial(t, cfg)
	events := news("node1", "a", 20_000)
	ctx, cancel := context.WithTimeout(t.Context(), rpctest.Patience)
	defer cancel()
	restarted := make(chan struct{})
	timer := time.AfterFunc(30*time.Millisecond, func() { defer close(restarted); s.stop(t); s.start(t) })
	defer timer.Stop()
	for done, tries := 0, 0; done < len(events); {
		n, err := agent.PublishAll(ctx, events[done:])
		if done += n; err != nil {
			if tries++; ctx.Err() != nil {
				t.Fatalf("after %d tries: %v", tries, err)
			}
			<-time.NewTimer(20 * time.Millisecond).C
		}
	}
	<-restarted
	_, js := admin(t, s.url)
	wantBodies(t, stored(t, js, "COMPUTE_EVENTS"), events)
}

func TestSetupOfBatches(t *testing.T) {
	s := embeddedServer(t)
	_, js := admin(t, s.url)
	for i, c := range []struct {
		batches rpc.Batches
		want    bool
	}{
		{"", false}, {rpc.BatchesOn, true}, {rpc.BatchesKeep, true}, {rpc.BatchesOff, false}, {rpc.BatchesKeep, false},
	} {
		cfg := testConfig(s.url)
		cfg.Batches = c.batches
		dial(t, cfg)
		for stream, want := range map[string]bool{
			"COMPUTE_CASTS": false, "COMPUTE_EVENTS": c.want, "KV_COMPUTE_HOSTS": c.want, "KV_COMPUTE_INSTANCES": c.want, "KV_COMPUTE_MIGRATIONS": c.want,
		} {
			found, err := js.Stream(t.Context(), stream)
			if err != nil {
				t.Fatal(err)
			}
			if got := found.CachedInfo().Config.AllowBatchPublish; got != want {
				t.Errorf("%d: after %q %s takes batches: %t, want %t", i, c.batches, stream, got, want)
			}
		}
	}
	_, err := rpc.Dial(t.Context(), rpc.Config{URLs: []string{s.url}, Batches: "yes"})
	if !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Dial with batches = yes: %v, want invalid_argument", err)
	}
}

// TestBatchesNeedTheServer tries them on a server that may be too old for them.
func TestBatchesNeedTheServer(t *testing.T) {
	s := externalServer(t)
	nc, _ := admin(t, s.url)
	cfg := testConfig(s.url)
	cfg.Batches = rpc.BatchesOn
	if err := nc.FlushTimeout(rpctest.Patience); err != nil {
		t.Fatal(err)
	}
	_, err := rpc.Dial(t.Context(), cfg)
	var major, minor int
	if _, scan := fmt.Sscanf(nc.ConnectedServerVersion(), "%d.%d", &major, &minor); scan != nil {
		t.Fatal(scan)
	}
	switch old := major < 2 || major == 2 && minor < 14; {
	case old && (!errors.Is(err, fault.PreconditionFailed) || !strings.Contains(fault.HintOf(err), "2.14")):
		t.Errorf("Dial = %v (hint %q), want precondition_failed with what is needed", err, fault.HintOf(err))
	case !old && err != nil:
		t.Errorf("Dial = %v", err)
	}
}
