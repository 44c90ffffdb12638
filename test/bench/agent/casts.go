package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

const (
	castsPerRound = 2 * instances
	loneCasts     = 200
)

// castFigures are the figures of one server.
type castFigures struct {
	sync                    string
	accepted, bare          samples // a second
	whole, told, toldAll    samples // a second
	agentCPU, bareCPU       samples // µs a cast
	lone, loneEnd, loneBare samples // ms
}

// benchCasts sends bursts of casts, each with the fake driver's effect and its three
// events, beside bare JetStream publish → consume → ack of the same messages in the
// same run; then one cast at a time.
func benchCasts(ctx context.Context, e *env) (report, error) {
	var all []*castFigures
	for _, sync := range []bool{false, true} {
		f, err := castsWith(ctx, e, sync)
		if err != nil {
			return report{}, err
		}
		all = append(all, f)
		e.stopAll()
	}
	return castsReport(ctx, all), nil
}

func castsWith(ctx context.Context, e *env, sync bool) (*castFigures, error) {
	f, rounds := &castFigures{sync: e.busName(ctx) + ", default sync"}, e.rounds
	var extra []string
	if sync {
		f.sync, extra, rounds = moduleBus+", sync always", []string{"sync"}, min(3, e.rounds)
	}
	url, _, err := e.bus(ctx, extra...)
	if err != nil {
		return nil, err
	}
	agent, err := e.member(ctx, member{Host: benchHost, URL: url, Slots: 2, Batches: e.nats == "" || sync})
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(url)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	ids, err := populate(ctx, nc, benchHost, instances, 64)
	if err != nil {
		return nil, agent.trouble(err)
	}
	bare, err := startBare(ctx, e, nc, url)
	if err != nil {
		return nil, err
	}
	for round := range rounds + 1 { // the first one warms up
		if round == 1 {
			*f = castFigures{sync: f.sync}
		}
		for i := range 4 {
			switch (round + i) % 4 {
			case 0:
				err = f.burst(ctx, nc, agent, ids)
			case 1:
				err = f.bareBurst(ctx, nc, bare.consumer, ids)
			case 2:
				err = f.toldBurst(ctx, nc, ids, false)
			case 3:
				err = f.toldBurst(ctx, nc, ids, true)
			}
			if err != nil {
				return nil, agent.trouble(err)
			}
		}
	}
	return f, f.alone(ctx, nc, ids)
}

// pauses are casts that change each instance, and change it back.
func pauses(ids []string) []cast {
	var casts []cast
	for _, method := range []string{api.PauseInstance, api.UnpauseInstance} {
		for _, id := range ids {
			casts = append(casts, newCast(benchHost, method, api.InstanceArgs{Instance: id}))
		}
	}
	return casts
}

// burst sends casts to the agent: when are all acknowledged, when are all done?
func (f *castFigures) burst(ctx context.Context, nc *nats.Conn, agent *process, ids []string) error {
	watch, err := watchTasks(nc, benchHost)
	if err != nil {
		return err
	}
	defer watch.close()
	casts := pauses(ids)
	defer undisturbed()()
	before, err := usageOf(agent.pid())
	if err != nil {
		return err
	}
	began := time.Now()
	if err := sendAll(ctx, nc, casts); err != nil {
		return err
	}
	acked, err := awaitAcked(ctx, nc, "COMPUTE_CASTS", benchHost)
	if err != nil {
		return err
	}
	f.accepted = append(f.accepted, float64(len(casts))/acked.Sub(began).Seconds())
	if _, err := watch.await(ctx, casts, api.TaskSucceeded, time.Minute); err != nil {
		return err
	}
	f.whole = append(f.whole, float64(len(casts))/time.Since(began).Seconds())
	after, err := usageOf(agent.pid())
	f.agentCPU = append(f.agentCPU, float64((after.cpu-before.cpu).Microseconds())/float64(len(casts)))
	return err
}

// awaitAcked polls until a consumer has nothing left, and gives the moment.
func awaitAcked(ctx context.Context, nc *nats.Conn, stream, durable string) (time.Time, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return time.Time{}, err
	}
	consumer, err := js.Consumer(ctx, stream, durable)
	if err != nil {
		return time.Time{}, err
	}
	for deadline := time.Now().Add(time.Minute); ; {
		info, err := consumer.Info(ctx)
		if err != nil {
			return time.Time{}, err
		}
		if info.NumPending == 0 && info.NumAckPending == 0 {
			return time.Now(), nil
		}
		if time.Now().After(deadline) {
			return time.Time{}, fmt.Errorf("%s: %d casts are not read, %d not acknowledged", stream, info.NumPending, info.NumAckPending)
		}
		sleep(ctx, 2*time.Millisecond)
	}
}

// alone sends one cast at a time.
func (f *castFigures) alone(ctx context.Context, nc *nats.Conn, ids []string) error {
	watch, err := watchTasks(nc, benchHost)
	if err != nil {
		return err
	}
	defer watch.close()
	for _, c := range pauses(ids[:loneCasts/2]) {
		began := time.Now()
		if err := sendAll(ctx, nc, []cast{c}); err != nil {
			return err
		}
		f.loneBare = append(f.loneBare, ms(time.Since(began))) // stored in the stream
		heard, err := watch.await(ctx, []cast{c}, api.TaskSucceeded, time.Minute)
		if err != nil {
			return err
		}
		f.lone = append(f.lone, ms(heard[api.TaskAccepted][0].Sub(began)))
		f.loneEnd = append(f.loneEnd, ms(heard[api.TaskSucceeded][0].Sub(began)))
		sleep(ctx, 5*time.Millisecond)
	}
	return nil
}

func castsReport(ctx context.Context, all []*castFigures) report {
	r := report{head: []string{"casts", all[0].sync, all[1].sync, "nova over RabbitMQ, not durable"}}
	add := func(name, format, nova string, of func(*castFigures) samples) {
		r.row(name, of(all[0]).spread(format), of(all[1]).spread(format), nova)
	}
	add("agent: accepted (journaled with fsync, acknowledged), /s", "%.0f", "", func(f *castFigures) samples { return f.accepted })
	add("bare JetStream publish → consume → ack, /s", "%.0f", "", func(f *castFigures) samples { return f.bare })
	r.row("ratio, accepted to bare", fmt.Sprintf("%.2f", ratio(all[0].accepted, all[0].bare)), fmt.Sprintf("%.2f", ratio(all[1].accepted, all[1].bare)))
	add("agent: whole life (three events, the driver's effect), /s", "%.0f", "2,375 sent → handled", func(f *castFigures) samples { return f.whole })
	add("bare JetStream publish → consume → three events → ack, /s", "%.0f", "", func(f *castFigures) samples { return f.told })
	add("bare JetStream publish → consume → four events and a view → ack, /s", "%.0f", "", func(f *castFigures) samples { return f.toldAll })
	r.row("ratio, whole life to that", fmt.Sprintf("%.2f", ratio(all[0].whole, all[0].toldAll)), fmt.Sprintf("%.2f", ratio(all[1].whole, all[1].toldAll)))
	add("agent CPU, µs a cast", "%.0f", "299", func(f *castFigures) samples { return f.agentCPU })
	add("bare consumer CPU, µs a cast", "%.0f", "", func(f *castFigures) samples { return f.bareCPU })
	lone := func(name string, nova string, of func(*castFigures) samples) {
		q := func(f *castFigures) string { return fmt.Sprintf("%.2f / %.2f", of(f).at(0.5), of(f).at(0.99)) }
		r.row(name, q(all[0]), q(all[1]), nova)
	}
	lone("lone cast → stored in the stream, p50 / p99 ms", "", func(f *castFigures) samples { return f.loneBare })
	lone("lone cast → accepted event, p50 / p99 ms", "1.12 / 2.11 (runs)", func(f *castFigures) samples { return f.lone })
	lone("lone cast → succeeded event, p50 / p99 ms", "", func(f *castFigures) samples { return f.loneEnd })
	got := ratio(all[0].accepted, all[0].bare)
	r.want(got >= 0.5, "accepted at least 0.50 × bare", "%.2f", got)
	r.want(all[0].whole.median() >= 10_000, "whole life at least 10,000/s", "%.0f/s", all[0].whole.median())
	r.want(all[0].lone.median() < 5, "lone cast accepted, p50 below 5 ms", "%.2f ms", all[0].lone.median())
	r.note("Bursts of %d casts (pause and unpause of %d instances). Sender, agent and server share the machine; the fake machines are in memory only.", castsPerRound, instances)
	return r
}
