package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
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

const (
	tellAll   = ".all" // end of the subject of a message of which a teller tells all that an agent does
	viewBytes = 900    // an instance's view
)

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

// roleTeller consumes, publishes what an agent tells of a cast, of the usual size and with many
// on their way at once, and acknowledges: three events of the task, then, where the message
// asks for all, one of the instance and the instance's view.
func roleTeller(ctx context.Context, url string) error {
	view := make([]byte, viewBytes)
	return consume(ctx, url, tellStream, func(js jetstream.JetStream, m jetstream.Msg) error {
		id := m.Headers().Get("Compute-Request-Id")
		states := tellStates()
		if strings.HasSuffix(m.Subject(), tellAll) {
			var args api.InstanceArgs
			if err := json.Unmarshal(m.Data(), &args); err != nil {
				return err
			}
			states = append(states, "about the instance")
			if err := store(js, "$KV.COMPUTE_INSTANCES."+benchHost+".bare-"+args.Instance, view, ""); err != nil {
				return err
			}
		}
		for _, state := range states {
			body := fmt.Appendf(nil, `{"request_id":%q,"method":"pause_instance","host":%q,"instance":%q,"state":%q,"at":"2026-01-02T03:04:05.123456789Z"}`,
				id, benchHost, id, state)
			if err := store(js, told(id), body, id+"/"+string(state)); err != nil {
				return err
			}
		}
		return nil
	})
}

func store(js jetstream.JetStream, subject string, body []byte, id string) error {
	m := &nats.Msg{Subject: subject, Data: body, Header: nats.Header{}}
	if id != "" {
		m.Header.Set("Nats-Msg-Id", id)
	}
	_, err := js.PublishMsgAsync(m, jetstream.WithStallWait(30*time.Second))
	return err
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
	defer undisturbed()()
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

// toldBurst is the floor of a cast's whole life: its three events were heard, or all that an agent tells.
func (f *castFigures) toldBurst(ctx context.Context, nc *nats.Conn, ids []string, all bool) error { //nolint:revive // two floors
	casts, events, into := bareCasts(ids, tellStream), len(tellStates()), &f.told
	if all {
		for i := range casts {
			casts[i].subject += tellAll
		}
		events, into = events+1, &f.toldAll
	}
	ch := make(chan *nats.Msg, 1<<17)
	sub, err := nc.ChanSubscribe(told("*"), ch)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection closes next
	if err := nc.Flush(); err != nil {
		return err
	}
	defer undisturbed()()
	began := time.Now()
	if err := sendAll(ctx, nc, casts); err != nil {
		return err
	}
	for range len(casts) * events {
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Minute):
			return fmt.Errorf("%s: events are missing", tellStream)
		}
	}
	*into = append(*into, float64(len(casts))/time.Since(began).Seconds())
	_, err = awaitAcked(ctx, nc, tellStream, benchHost)
	return err
}
