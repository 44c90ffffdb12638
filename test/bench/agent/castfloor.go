package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// The floors of the casts bench: programs that keep nothing and do nothing.
const (
	bareStream = "BENCH_CASTS" // read and acknowledged
	tellStream = "BENCH_TELLS" // read, told of in three events, acknowledged
)

// bareSubject is where the messages of a floor go.
func bareSubject(stream string) string { return "bench." + stream + "." + benchHost }

// told is the subject of a teller's events: in the agents' own stream.
func told(id string) string { return "compute.event." + benchHost + ".bare." + id }

// tellStates are the events of one cast.
func tellStates() []api.TaskState {
	return []api.TaskState{api.TaskAccepted, api.TaskRunning, api.TaskSucceeded}
}

// floors are their processes.
type floors struct{ consumer, teller *process }

func startBare(ctx context.Context, e *env, nc *nats.Conn, url string) (f floors, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return f, err
	}
	for _, name := range []string{bareStream, tellStream} {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{
			Name: name, Subjects: []string{"bench." + name + ".>"}, Retention: jetstream.WorkQueuePolicy, Duplicates: 10 * time.Second,
		})
		if err != nil {
			return f, err
		}
		_, err = js.CreateConsumer(ctx, name, jetstream.ConsumerConfig{
			Durable: benchHost, FilterSubject: "bench." + name + ".>", AckPolicy: jetstream.AckExplicitPolicy, AckWait: 5 * time.Second, MaxAckPending: 20_000,
		})
		if err != nil {
			return f, err
		}
	}
	if f.consumer, err = e.start("consumer", nil, e.self, "-role", "consumer", url); err == nil {
		f.teller, err = e.start("teller", nil, e.self, "-role", "teller", url)
	}
	return f, err
}

// roleConsumer consumes and acknowledges.
func roleConsumer(ctx context.Context, url string) error {
	return consume(ctx, url, bareStream, func(jetstream.JetStream, jetstream.Msg) error { return nil })
}

// roleTeller consumes, publishes three events of the usual size with many on their way
// at once, and acknowledges.
func roleTeller(ctx context.Context, url string) error {
	states := tellStates()
	return consume(ctx, url, tellStream, func(js jetstream.JetStream, m jetstream.Msg) error {
		id := m.Headers().Get("Compute-Request-Id")
		for _, state := range states {
			body := fmt.Appendf(nil, `{"request_id":%q,"method":"pause_instance","host":%q,"instance":%q,"state":%q,"at":"2026-01-02T03:04:05.123456789Z"}`,
				id, benchHost, id, state)
			msg := &nats.Msg{Subject: told(id), Data: body, Header: nats.Header{"Nats-Msg-Id": {id + "/" + string(state)}}}
			if _, err := js.PublishMsgAsync(msg, jetstream.WithStallWait(30*time.Second)); err != nil {
				return err
			}
		}
		return nil
	})
}

func consume(ctx context.Context, url, stream string, each func(jetstream.JetStream, jetstream.Msg) error) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(1024))
	if err != nil {
		return err
	}
	durable, err := js.Consumer(ctx, stream, benchHost)
	if err != nil {
		return err
	}
	consuming, err := durable.Consume(func(m jetstream.Msg) {
		if each(js, m) == nil { // else it is not acknowledged, and the bench says so
			_ = m.Ack()
		}
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	consuming.Stop()
	return nil
}

// bareCasts are the agent's casts, addressed to a floor.
func bareCasts(ids []string, stream string) []cast {
	casts := pauses(ids)
	for i := range casts {
		casts[i].subject = bareSubject(stream)
	}
	return casts
}

func (f *castFigures) bareBurst(ctx context.Context, nc *nats.Conn, bare *process, ids []string) error {
	casts := bareCasts(ids, bareStream)
	before, err := usageOf(bare.pid())
	if err != nil {
		return err
	}
	began := time.Now()
	if err := sendAll(ctx, nc, casts); err != nil {
		return err
	}
	acked, err := awaitAcked(ctx, nc, bareStream, benchHost)
	if err != nil {
		return err
	}
	f.bare = append(f.bare, float64(len(casts))/acked.Sub(began).Seconds())
	after, err := usageOf(bare.pid())
	f.bareCPU = append(f.bareCPU, float64((after.cpu-before.cpu).Microseconds())/float64(len(casts)))
	return err
}

// toldBurst is the floor of a cast's whole life: three events of each were heard.
func (f *castFigures) toldBurst(ctx context.Context, nc *nats.Conn, ids []string) error {
	casts := bareCasts(ids, tellStream)
	ch := make(chan *nats.Msg, 1<<17)
	sub, err := nc.ChanSubscribe(told("*"), ch)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection closes next
	if err := nc.Flush(); err != nil {
		return err
	}
	began := time.Now()
	if err := sendAll(ctx, nc, casts); err != nil {
		return err
	}
	for range len(casts) * len(tellStates()) {
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Minute):
			return fmt.Errorf("%s: events are missing", tellStream)
		}
	}
	f.told = append(f.told, float64(len(casts))/time.Since(began).Seconds())
	_, err = awaitAcked(ctx, nc, tellStream, benchHost)
	return err
}
