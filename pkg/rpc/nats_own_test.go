package rpc_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// natsServers runs a test on every server there is.
func natsServers(t *testing.T, test func(*testing.T, *natsServer)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) { test(t, embeddedServer(t)) })
	t.Run("external", func(t *testing.T) { test(t, externalServer(t)) })
}

// admin is a plain JetStream client, for looking behind the transport.
func admin(t *testing.T, url string) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(url, nats.RetryOnFailedConnect(true), nats.ReconnectWait(10*time.Millisecond), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

func TestDialNobody(t *testing.T) {
	_, err := rpc.Dial(t.Context(), rpc.Config{URLs: []string{"nats://127.0.0.1:1"}})
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(fault.HintOf(err), "embedded") {
		t.Errorf("Dial = %v (hint %q), want unavailable with what to do", err, fault.HintOf(err))
	}
}

func TestWithoutSetup(t *testing.T) {
	natsServers(t, func(t *testing.T, s *natsServer) {
		cfg := testConfig(s.url)
		cfg.AutoSetup = false
		c := dial(t, cfg)
		_, err := c.Casts(t.Context(), "node1.example")
		if !errors.Is(err, fault.Unavailable) || !strings.Contains(fault.HintOf(err), "nats-setup node1.example") {
			t.Errorf("Casts = %v (hint %q), want unavailable with the command to run", err, fault.HintOf(err))
		}
		for what, err := range map[string]error{
			"Cast":    c.Cast(t.Context(), "node1", rpc.Message{Method: "m", RequestID: "a"}),
			"Publish": c.Publish(t.Context(), rpc.Event{Host: "n", Kind: "k", ID: "i"}),
			"Put":     c.Put(t.Context(), rpc.Hosts, []string{"n"}, nil),
		} {
			if !errors.Is(err, fault.Unavailable) || !strings.Contains(fault.HintOf(err), "nats-setup") {
				t.Errorf("%s = %v (hint %q), want unavailable with the command to run", what, err, fault.HintOf(err))
			}
		}
		if err := rpc.Setup(t.Context(), c, "node1.example"); err != nil {
			t.Fatal(err)
		}
		r, err := c.Casts(t.Context(), "node1.example")
		if err != nil {
			t.Fatalf("Casts after Setup = %v", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestSetupIsIdempotentAndUpdates(t *testing.T) {
	natsServers(t, func(t *testing.T, s *natsServer) {
		cfg := testConfig(s.url)
		c := dial(t, cfg)
		for range 3 {
			if err := rpc.Setup(t.Context(), c, "node1", "node2.example"); err != nil {
				t.Fatal(err)
			}
		}
		cfg.MaxAge, cfg.AckWait = time.Hour, 3*time.Second
		if err := rpc.Setup(t.Context(), dial(t, cfg), "node2.example"); err != nil {
			t.Fatal(err)
		}
		_, js := admin(t, s.url)
		stream, err := js.Stream(t.Context(), "COMPUTE_CASTS")
		if err != nil {
			t.Fatal(err)
		}
		got := stream.CachedInfo().Config
		if got.MaxAge != time.Hour || got.Duplicates != 6*time.Second || got.Retention != jetstream.WorkQueuePolicy || got.Subjects[0] != "compute.cast.*.*" {
			t.Errorf("COMPUTE_CASTS = %+v", got)
		}
		durable, err := stream.Consumer(t.Context(), "node2=2Eexample")
		if err != nil {
			t.Fatal(err)
		}
		if cfg := durable.CachedInfo().Config; cfg.AckWait != 3*time.Second || cfg.FilterSubject != "compute.cast.node2=2Eexample.*" || cfg.AckPolicy != jetstream.AckExplicitPolicy || cfg.MaxDeliver != -1 {
			t.Errorf("the durable = %+v", cfg)
		}
		// the views are plain key-value buckets to everyone else
		kv, err := js.KeyValue(t.Context(), "COMPUTE_HOSTS")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Put(t.Context(), rpc.Hosts, []string{"node2.example"}, []byte("here")); err != nil {
			t.Fatal(err)
		}
		if e, err := kv.Get(t.Context(), "node2=2Eexample"); err != nil || string(e.Value()) != "here" {
			t.Errorf("another client's Get = %v, %v", e, err)
		}
		if err := kv.Delete(t.Context(), "node2=2Eexample"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Get(t.Context(), rpc.Hosts, []string{"node2.example"}); !errors.Is(err, fault.NotFound) {
			t.Errorf("Get after another client's Delete = %v, want not_found", err)
		}
	})
}

func TestSetupRefusesWhatItCannotChange(t *testing.T) {
	s := embeddedServer(t)
	_, js := admin(t, s.url)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "COMPUTE_CASTS", Subjects: []string{"compute.cast.*.*"}, Retention: jetstream.LimitsPolicy}); err != nil {
		t.Fatal(err)
	}
	_, err := rpc.Dial(t.Context(), testConfig(s.url))
	if !errors.Is(err, fault.Conflict) || fault.HintOf(err) == "" {
		t.Errorf("Dial = %v, want conflict with a hint", err)
	}
}

// TestDurableDeleted takes the consumer away under a reader that waits, as an
// operator could, and expects it made again and nothing lost.
func TestDurableDeleted(t *testing.T) {
	natsServers(t, func(t *testing.T, s *natsServer) {
		c := dial(t, testConfig(s.url))
		_, js := admin(t, s.url)
		r, err := c.Casts(t.Context(), "node1")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		timer := time.AfterFunc(50*time.Millisecond, func() {
			if err := js.DeleteConsumer(ctx, "COMPUTE_CASTS", "node1"); err != nil {
				t.Errorf("DeleteConsumer = %v", err)
			}
			if err := c.Cast(ctx, "node1", rpc.Message{Method: "m", RequestID: "a"}); err != nil {
				t.Errorf("Cast = %v", err)
			}
		})
		defer timer.Stop()
		batch, err := r.Next(ctx, 10)
		if err != nil || len(batch) != 1 || batch[0].RequestID != "a" {
			t.Fatalf("Next = %v, %v, want the cast through a new durable", batch, err)
		}
		if err := batch[0].Ack(); err != nil {
			t.Error(err)
		}
	})
}

func TestServiceIsAMicroService(t *testing.T) {
	s := embeddedServer(t)
	c := dial(t, testConfig(s.url))
	stop, err := c.Serve(t.Context(), rpc.ServiceInfo{
		Host: "node1.example", Version: "(devel)", Metadata: map[string]string{"host": "node1.example"},
		Stats: func() any { return map[string]int{"show_instance": 7} },
	}, echoHandler)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stop() }()
	nc, _ := admin(t, s.url)
	for subject, want := range map[string][]string{
		"$SRV.INFO.compute":  {`"subject":"compute.call.node1=2Eexample.*"`, `"host":"node1.example"`},
		"$SRV.STATS.compute": {`"show_instance":7`},
	} {
		m, err := nc.Request(subject, nil, time.Second)
		if err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
		for _, part := range want {
			if !strings.Contains(string(m.Data), part) {
				t.Errorf("%s = %s, want %s in it", subject, m.Data, part)
			}
		}
	}
}

// TestReplyTooBig expects an error instead of silence.
func TestReplyTooBig(t *testing.T) {
	s := embeddedServer(t)
	agent, ctl := dial(t, testConfig(s.url)), dial(t, testConfig(s.url))
	stop, err := agent.Serve(t.Context(), rpc.ServiceInfo{Host: "node1", Version: "1.0.0"}, func(_ context.Context, _ rpc.Message, respond func(rpc.Reply)) {
		respond(rpc.Reply{Body: make([]byte, 2<<20)})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stop() }()
	if _, err := ctl.Call(t.Context(), "node1", rpc.Message{Method: "m"}); !errors.Is(err, fault.Internal) || !strings.Contains(fault.HintOf(err), "max_payload") {
		t.Errorf("Call = %v (hint %q), want internal, naming max_payload", err, fault.HintOf(err))
	}
	if _, err := ctl.Call(t.Context(), "node1", rpc.Message{Method: "m", Args: make([]byte, 2<<20)}); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("Call with too much = %v, want invalid_argument", err)
	}
}

// TestCallFailsWhenConnectionIsLost expects a waiting call to end with the
// connection, not a minute later.
func TestCallFailsWhenConnectionIsLost(t *testing.T) {
	s := embeddedServer(t)
	ctl := dial(t, testConfig(s.url))
	arrived := make(chan struct{}, 1)
	stop, err := dial(t, testConfig(s.url)).Serve(t.Context(), rpc.ServiceInfo{Host: "node1", Version: "1.0.0"}, func(context.Context, rpc.Message, func(rpc.Reply)) {
		arrived <- struct{}{}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stop() }()
	timer := time.AfterFunc(0, func() {
		<-arrived
		s.stop(t)
	})
	defer timer.Stop()
	start := time.Now()
	_, err = ctl.Call(t.Context(), "node1", rpc.Message{Method: "m"})
	if !errors.Is(err, fault.Unavailable) || time.Since(start) > 10*time.Second {
		t.Errorf("Call = %v after %s, want unavailable soon", err, time.Since(start))
	}
}

// TestPrefixesAreStrangers runs two systems on one NATS.
func TestPrefixesAreStrangers(t *testing.T) {
	s := embeddedServer(t)
	one := dial(t, testConfig(s.url))
	cfg := testConfig(s.url)
	cfg.Prefix = "lab-2"
	two := dial(t, cfg)
	for i, c := range []rpc.Transport{one, two} {
		machine := map[string]string{"machine_id": string(rune('a' + i))}
		stop, err := c.Serve(t.Context(), rpc.ServiceInfo{Host: "node1", Version: "1.0.0", Metadata: machine}, echoHandler)
		if err != nil {
			t.Fatalf("Serve %d = %v, want no conflict between prefixes", i, err)
		}
		defer func() { _ = stop() }()
	}
	if err := one.Put(t.Context(), rpc.Hosts, []string{"node1"}, nil); err != nil {
		t.Fatal(err)
	}
	if list, err := two.List(t.Context(), rpc.Hosts, []string{"*"}); err != nil || len(list) != 0 {
		t.Errorf("List of the other prefix = %v, %v, want nothing", list, err)
	}
}
