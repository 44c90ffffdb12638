package rpc_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/embedded"
)

// The bodies of both sides of the benchmarks.
type benchArgs struct {
	Instance string `json:"instance"`
}

type benchResult struct {
	Instance string            `json:"instance"`
	State    string            `json:"vm_state"`
	Ports    []string          `json:"ports"`
	Meta     map[string]string `json:"metadata"`
}

func benchWork(b *testing.B, args []byte) []byte {
	b.Helper()
	var a benchArgs
	if err := json.Unmarshal(args, &a); err != nil {
		b.Error(err)
	}
	out, err := json.Marshal(benchResult{a.Instance, "active", []string{"p1", "p2"}, map[string]string{"a": "b", "c": "d"}})
	if err != nil {
		b.Error(err)
	}
	return out
}

func benchDial(b *testing.B, url string) rpc.Transport {
	b.Helper()
	c, err := rpc.Dial(b.Context(), rpc.Config{URLs: []string{url}, AutoSetup: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return c
}

func benchConnect(b *testing.B, url string) *nats.Conn {
	b.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	return nc
}

// cpuTime is what this process, with its embedded server, has used: on a machine
// that others use too it says more than the clock.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// inFlight runs op b.N times from n goroutines.
func inFlight(b *testing.B, n int, op func()) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	b.ResetTimer()
	before := cpuTime(b)
	for range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				op()
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/call")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// BenchmarkCall compares a call through the transport with a bare nats.go handler
// that decodes and encodes the same bodies, each request in its own goroutine.
func BenchmarkCall(b *testing.B) {
	args, err := json.Marshal(benchArgs{"0b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"})
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("transport/%d", n), func(b *testing.B) {
			url := benchServer(b)
			ctl := benchDial(b, url)
			if _, err := benchDial(b, url).Serve(b.Context(), rpc.ServiceInfo{Host: "node1", Version: "1.0.0"}, func(_ context.Context, m rpc.Message, respond func(rpc.Reply)) {
				go func() { respond(rpc.Reply{Body: benchWork(b, m.Args)}) }()
			}); err != nil {
				b.Fatal(err)
			}
			inFlight(b, n, func() {
				if _, err := ctl.Call(b.Context(), "node1", rpc.Message{Method: "show_instance", RequestID: "5f1b", Version: "1.0", Args: args}); err != nil {
					b.Error(err)
				}
			})
		})
		b.Run(fmt.Sprintf("bare-handler/%d", n), func(b *testing.B) { // the same caller with the same headers
			url := benchServer(b)
			ctl, agent := benchDial(b, url), benchConnect(b, url)
			bareHandler(b, agent, "compute.call.node1.*")
			inFlight(b, n, func() {
				if _, err := ctl.Call(b.Context(), "node1", rpc.Message{Method: "show_instance", RequestID: "5f1b", Version: "1.0", Args: args}); err != nil {
					b.Error(err)
				}
			})
		})
		b.Run(fmt.Sprintf("bare/%d", n), func(b *testing.B) {
			url := benchServer(b)
			ctl, agent := benchConnect(b, url), benchConnect(b, url)
			bareHandler(b, agent, "bare.*")
			inFlight(b, n, func() {
				if _, err := ctl.Request("bare.show_instance", args, time.Minute); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

// bareHandler answers with nothing but nats.go.
func bareHandler(b *testing.B, nc *nats.Conn, subject string) {
	b.Helper()
	if _, err := nc.Subscribe(subject, func(m *nats.Msg) {
		go func() {
			if err := m.Respond(benchWork(b, m.Data)); err != nil {
				b.Error(err)
			}
		}()
	}); err != nil {
		b.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		b.Fatal(err)
	}
}

func benchServer(b *testing.B) string {
	b.Helper()
	s, err := embedded.Start(b.Context(), embedded.Config{StoreDir: b.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Shutdown)
	return s.URL()
}

// BenchmarkCast compares cast → Next → Ack with a bare JetStream publish → consume
// → ack of the same payload; 64 senders.
func BenchmarkCast(b *testing.B) {
	const senders = 64
	args := []byte(`{"instance":"0b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"}`)
	b.Run("transport", func(b *testing.B) {
		url := benchServer(b)
		ctl, agent := benchDial(b, url), benchDial(b, url)
		r, err := agent.Casts(b.Context(), "node1")
		if err != nil {
			b.Fatal(err)
		}
		var id atomic.Int64
		var wg sync.WaitGroup
		wg.Go(func() {
			for got := 0; got < b.N; {
				batch, err := r.Next(b.Context(), 256)
				if err != nil {
					b.Error(err)
					return
				}
				for _, d := range batch {
					if err := d.Ack(); err != nil {
						b.Error(err)
					}
				}
				got += len(batch)
			}
		})
		inFlight(b, senders, func() {
			if err := ctl.Cast(b.Context(), "node1", rpc.Message{Method: "start_instance", RequestID: fmt.Sprint(id.Add(1)), Version: "1.0", Args: args}); err != nil {
				b.Error(err)
			}
		})
		wg.Wait()
	})
	b.Run("bare", func(b *testing.B) {
		url := benchServer(b)
		benchDial(b, url) // makes the streams
		ctl, err := jetstream.New(benchConnect(b, url))
		if err != nil {
			b.Fatal(err)
		}
		agent, err := jetstream.New(benchConnect(b, url))
		if err != nil {
			b.Fatal(err)
		}
		durable, err := agent.CreateConsumer(b.Context(), "COMPUTE_CASTS", jetstream.ConsumerConfig{
			Durable: "node1", FilterSubject: "compute.cast.node1.*", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 20_000,
		})
		if err != nil {
			b.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Add(b.N)
		consuming, err := durable.Consume(func(m jetstream.Msg) {
			if err := m.Ack(); err != nil {
				b.Error(err)
			}
			wg.Done()
		})
		if err != nil {
			b.Fatal(err)
		}
		defer consuming.Stop()
		var id atomic.Int64
		inFlight(b, senders, func() {
			if _, err := ctl.Publish(b.Context(), "compute.cast.node1.start_instance", args, jetstream.WithMsgID(fmt.Sprint(id.Add(1)))); err != nil {
				b.Error(err)
			}
		})
		wg.Wait()
	})
}

// BenchmarkLoneCast measures one cast at a time, from Cast to its delivery.
func BenchmarkLoneCast(b *testing.B) {
	url := benchServer(b)
	ctl, agent := benchDial(b, url), benchDial(b, url)
	r, err := agent.Casts(b.Context(), "node1")
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for i := range b.N {
		if err := ctl.Cast(b.Context(), "node1", rpc.Message{Method: "m", RequestID: fmt.Sprint(i)}); err != nil {
			b.Fatal(err)
		}
		batch, err := r.Next(b.Context(), 16)
		if err != nil {
			b.Fatal(err)
		}
		for _, d := range batch {
			if err := d.Ack(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
