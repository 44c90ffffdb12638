package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

const (
	instances = 1000
	benchHost = "bench"
)

// callee is one server of the calls: its subject and its process.
type callee struct {
	name    string
	subject string
	p       *process

	rate, p50, p99, cpu samples // calls/s, ms, ms, µs a call
}

// benchCalls asks the agent, a bare nats.go handler and a bare echo the same, in
// turn, each in a process of its own, from this process over one connection.
func benchCalls(ctx context.Context, e *env) (report, error) {
	url, bus, err := e.bus(ctx)
	if err != nil {
		return report{}, err
	}
	agent, err := e.callee(ctx, url)
	if err != nil {
		return report{}, err
	}
	nc, err := nats.Connect(url)
	if err != nil {
		return report{}, err
	}
	defer nc.Close()
	ids, err := populate(ctx, nc, benchHost, instances, 64)
	if err != nil {
		return report{}, agent.trouble(err)
	}
	bare, err := e.start("bare", nil, e.self, "-role", "bare", url)
	if err != nil {
		return report{}, err
	}
	echo, err := e.start("echo", nil, e.self, "-role", "echo", url)
	if err != nil {
		return report{}, err
	}
	for _, subject := range []string{"bare.handler.up", "bare.echo.up"} {
		if err := awaitSubject(ctx, nc, subject); err != nil {
			return report{}, bare.trouble(err)
		}
	}
	r := report{head: []string{"show_instance, 1,000 instances", "calls/s", "ratio", "p50 ms", "p99 ms", "server CPU µs/call", "nats-server CPU µs/call", "caller CPU µs/call"}}
	for _, n := range []int{1, 16, 256} {
		cs := []*callee{
			{name: "agent", subject: "compute.call." + benchHost + "." + api.ShowInstance, p: agent},
			{name: "bare handler", subject: "bare.handler." + api.ShowInstance, p: bare},
			{name: "bare echo", subject: "bare.echo." + api.ShowInstance, p: echo},
		}
		if err := callRounds(ctx, e, &r, load1{nc: nc, ids: ids, n: n, bus: bus.pid()}, cs); err != nil {
			return report{}, agent.trouble(err)
		}
	}
	m, err := memoryOf(agent.pid())
	if err != nil {
		return report{}, err
	}
	r.row("nova-compute, ping, 16", "1,195", "", "12.9", "18.4", "626", "388 (RabbitMQ)", "463")
	r.row("nova-compute, ping, 256", "1,064", "", "200", "899", "699", "397 (RabbitMQ)", "519")
	r.note("Ratio: to the bare handler, median of the rounds' ratios. %d rounds of %s each. Agent afterwards: %.1f MiB RSS. %s.", e.rounds, e.window, m.rss, e.busName(ctx))
	return r, nil
}

// callee starts the agent that is called: the program, or, for a profile, a member like it.
func (e *env) callee(ctx context.Context, url string) (*process, error) {
	if e.profile != "" {
		return e.member(ctx, member{Host: benchHost, URL: url})
	}
	return e.agent(ctx, nil, "--driver", "fake", "--host", benchHost, "--rpc-url", url, "--state-dir", e.folder("state"))
}

// load1 is how a window is filled.
type load1 struct {
	nc  *nats.Conn
	ids []string
	n   int // in flight
	bus int // pid of the server
}

func callRounds(ctx context.Context, e *env, r *report, l load1, cs []*callee) error {
	busCPU, ownCPU := map[string]samples{}, map[string]samples{}
	for round := range e.rounds + 1 { // the first one warms up
		for i := range cs {
			c := cs[(i+round)%len(cs)]
			d := e.window
			if round == 0 {
				d /= 4
			}
			w, err := l.window(ctx, c, d)
			if err != nil {
				return err
			}
			if round == 0 {
				continue
			}
			c.rate = append(c.rate, float64(len(w.took))/w.span.Seconds())
			c.p50, c.p99 = append(c.p50, w.took.at(0.5)), append(c.p99, w.took.at(0.99))
			c.cpu = append(c.cpu, w.perCall(w.server))
			busCPU[c.name], ownCPU[c.name] = append(busCPU[c.name], w.perCall(w.busCPU)), append(ownCPU[c.name], w.perCall(w.own))
		}
	}
	for _, c := range cs {
		r.row(fmt.Sprintf("%s, %d in flight", c.name, l.n), c.rate.spread("%.0f"), fmt.Sprintf("%.2f", ratio(c.rate, cs[1].rate)), fmt.Sprintf("%.3f", c.p50.median()),
			fmt.Sprintf("%.3f", c.p99.median()), c.cpu.spread("%.1f"), fmt.Sprintf("%.1f", busCPU[c.name].median()), fmt.Sprintf("%.1f", ownCPU[c.name].median()))
	}
	if l.n > 1 {
		got := ratio(cs[0].rate, cs[1].rate)
		r.want(got >= 0.8, fmt.Sprintf("at least 0.80 × the bare handler, %d in flight", l.n), "%.2f", got)
	}
	if l.n == 16 {
		r.want(cs[0].p99.median() < 3, "p99 below 3 ms, 16 in flight", "%.2f ms", cs[0].p99.median())
	}
	return nil
}

// window is what one stretch of calls gave.
type window struct {
	took                samples // ms
	span                time.Duration
	server, busCPU, own time.Duration
}

func (w window) perCall(d time.Duration) float64 {
	return float64(d.Microseconds()) / float64(len(w.took))
}

// window keeps n calls in flight for d.
func (l load1) window(ctx context.Context, c *callee, d time.Duration) (window, error) {
	defer undisturbed()()
	before, err := usages(c.p.pid(), l.bus)
	if err != nil {
		return window{}, err
	}
	var mu sync.Mutex
	var w window
	var failed error
	var wg sync.WaitGroup
	began := time.Now()
	for range l.n {
		wg.Go(func() {
			took, err := l.caller(ctx, c.subject, began.Add(d))
			mu.Lock()
			defer mu.Unlock()
			w.took = append(w.took, took...)
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	w.span = time.Since(began)
	after, err := usages(c.p.pid(), l.bus)
	if err != nil {
		return w, err
	}
	w.server, w.busCPU, w.own = after[0]-before[0], after[1]-before[1], after[2]-before[2]
	return w, failed
}

// usages gives the CPU of the processes and of this one.
func usages(pids ...int) ([]time.Duration, error) {
	var out []time.Duration
	for _, pid := range append(pids, selfPID()) {
		u, err := usageOf(pid)
		if err != nil {
			return nil, err
		}
		out = append(out, u.cpu)
	}
	return out, nil
}

// caller calls one after the other until the time is over.
func (l load1) caller(ctx context.Context, subject string, until time.Time) (samples, error) {
	var took samples
	for {
		began := time.Now()
		if began.After(until) {
			return took, nil
		}
		id := l.ids[rand.IntN(len(l.ids))] //nolint:gosec // no secret
		reply, err := ask(ctx, l.nc, subject, api.InstanceArgs{Instance: id})
		if err != nil {
			return took, err
		}
		if len(reply.Data) < 20 {
			return took, fmt.Errorf("%s answers %q", subject, reply.Data)
		}
		took = append(took, ms(time.Since(began)))
	}
}

// ask sends one request with the headers that a controller sends.
func ask(ctx context.Context, nc *nats.Conn, subject string, args any) (*nats.Msg, error) {
	body, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	until := time.Now().Add(30 * time.Second)
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	reply, err := nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: subject, Data: body, Header: headers(until)})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", subject, err)
	}
	if code := reply.Header.Get("Nats-Service-Error-Code"); code != "" {
		return nil, fmt.Errorf("%s: %s %s", subject, code, reply.Data)
	}
	return reply, nil
}

func headers(until time.Time) nats.Header {
	return nats.Header{
		"Compute-Request-Id": {instance.NewUUID()}, "Compute-Version": {api.Version},
		"Compute-Expires": {until.UTC().Format(time.RFC3339Nano)},
	}
}

func awaitSubject(ctx context.Context, nc *nats.Conn, subject string) error {
	for deadline := time.Now().Add(readyPatience); ; {
		_, err := nc.RequestWithContext(ctx, subject, []byte(`{}`))
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %w", subject, err)
		}
		sleep(ctx, 50*time.Millisecond)
	}
}
