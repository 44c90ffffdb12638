package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// populatePatience is how long building instances may take.
const populatePatience = 5 * time.Minute

// populateAtOnce is how many builds are on their way: each has its own limits of
// time, which thousands on one core would exceed.
const populateAtOnce = 250

// populate builds n instances on a host by casts and gives their ids when all are active.
func populate(ctx context.Context, nc *nats.Conn, host string, n, memoryMiB int) ([]string, error) {
	watch, err := watchTasks(nc, host)
	if err != nil {
		return nil, err
	}
	defer watch.close()
	ids := make([]string, n)
	casts := make([]cast, n)
	for i := range ids {
		ids[i] = uuid.NewString()
		casts[i] = newCast(host, api.BuildAndRunInstance, api.BuildArgs{Spec: instance.Spec{
			UUID: ids[i], Name: fmt.Sprintf("web%d", i), VCPUs: 1, MemoryMiB: memoryMiB,
			Ports:    []instance.Port{{ID: uuid.NewString(), MAC: fmt.Sprintf("52:54:00:%02x:%02x:%02x", i>>16&0xff, i>>8&0xff, i&0xff), Binding: instance.BindingBridge, Bridge: "br-int0"}},
			Metadata: map[string]string{"role": "bench", "fake.boot": "1ms"},
		}})
	}
	for batch := range slices.Chunk(casts, populateAtOnce) {
		if err := sendAll(ctx, nc, batch); err != nil {
			return nil, err
		}
		if _, err := watch.await(ctx, batch, api.TaskSucceeded, populatePatience); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// cast is one message to be cast.
type cast struct {
	id      string
	subject string
	token   string // escaped host
	body    []byte
}

func newCast(host, method string, args any) cast {
	body, err := json.Marshal(args)
	if err != nil {
		panic(err) // a defect of this program
	}
	return cast{id: instance.NewUUID(), subject: "compute.cast." + host + "." + method, token: host, body: body}
}

func (c cast) msg() *nats.Msg {
	return &nats.Msg{Subject: c.subject, Data: c.body, Header: nats.Header{
		"Compute-Request-Id": {c.id}, "Compute-Version": {api.Version}, "Nats-Msg-Id": {c.token + "/" + c.id},
	}}
}

// sendAll stores casts with many on their way at once.
func sendAll(ctx context.Context, nc *nats.Conn, casts []cast) error {
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(256))
	if err != nil {
		return err
	}
	var acks []jetstream.PubAckFuture
	for _, c := range casts {
		ack, err := js.PublishMsgAsync(c.msg(), jetstream.WithStallWait(30*time.Second))
		if err != nil {
			return err
		}
		acks = append(acks, ack)
	}
	for _, a := range acks {
		select {
		case <-a.Ok():
		case err := <-a.Err():
			return fmt.Errorf("a cast was not stored: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// taskWatch hears task events as they are published.
type taskWatch struct {
	sub *nats.Subscription
	ch  chan *nats.Msg
}

func watchTasks(nc *nats.Conn, host string) (*taskWatch, error) {
	w := &taskWatch{ch: make(chan *nats.Msg, 1<<17)}
	var err error
	w.sub, err = nc.ChanSubscribe("compute.event."+host+".task.*", w.ch)
	if err == nil {
		err = nc.Flush()
	}
	return w, err
}

func (w *taskWatch) close() { _ = w.sub.Unsubscribe() }

// await waits until every cast has reached the state and gives the moments at which
// states were heard, by state. A failed or refused cast is an error.
func (w *taskWatch) await(ctx context.Context, casts []cast, want api.TaskState, patience time.Duration) (map[api.TaskState][]time.Time, error) {
	open := map[string]bool{}
	for _, c := range casts {
		open[c.id] = true
	}
	heard := map[api.TaskState][]time.Time{}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for len(open) > 0 {
		select {
		case m := <-w.ch:
			var ev api.TaskEvent
			if err := json.Unmarshal(m.Data, &ev); err != nil {
				return nil, err
			}
			if !open[ev.RequestID] {
				continue
			}
			heard[ev.State] = append(heard[ev.State], time.Now())
			if ev.State == want {
				delete(open, ev.RequestID)
			} else if ev.State.Ended() {
				return nil, fmt.Errorf("%s ended as %s: %w", ev.Method, ev.State, ev.Error)
			}
		case <-limit.C:
			return nil, fmt.Errorf("%d of %d casts are not %s after %s", len(open), len(casts), want, patience)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return heard, nil
}
