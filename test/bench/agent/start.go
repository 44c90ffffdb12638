package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// kind is one way of running the agent on the fake driver.
type kind struct {
	name        string
	environment []string
	args        []string

	ready, cpu, stop     samples // ms
	rss, pss, anon       samples // MiB
	idle, wakes, natural samples
}

// benchStart starts agents in turn: with the bus outside and inside of the process,
// and, as the floor, the program that only prints its version.
func benchStart(ctx context.Context, e *env) (report, error) {
	url, _, err := e.bus(ctx)
	if err != nil {
		return report{}, err
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return report{}, err
	}
	kinds := []*kind{
		{name: "external NATS", args: []string{"--driver", "fake", "--host", "bench", "--rpc-url", url, "--state-dir", e.folder("state")}},
		{
			name: "embedded NATS", args: []string{"--driver", "fake", "--host", "bench", "--rpc-url", "embedded", "--state-dir", e.folder("state")},
			environment: []string{"COMPUTE_AGENT_RPC_EMBEDDED_LISTEN=" + address},
		},
	}
	var floor, first samples
	rounds := max(3, 2*e.rounds)
	for round := range rounds + 1 { // the first one makes journal, streams and buckets
		began := time.Now()
		if err := exec.CommandContext(ctx, e.binary, "version").Run(); err != nil {
			return report{}, err
		}
		floor = append(floor, ms(time.Since(began)))
		for i := range kinds {
			k := kinds[(i+round)%len(kinds)]
			took, err := k.once(ctx, e, round > 0)
			if err != nil {
				return report{}, err
			}
			if round == 0 {
				first = append(first, ms(took))
			}
		}
	}
	for range 3 {
		for _, k := range kinds {
			if err := k.rest(ctx, e); err != nil {
				return report{}, err
			}
		}
	}
	return startReport(ctx, e, kinds, floor, first), nil
}

// once starts and stops an agent.
func (k *kind) once(ctx context.Context, e *env, count bool) (time.Duration, error) {
	p, err := e.agent(ctx, k.environment, k.args...)
	if err != nil {
		return 0, err
	}
	used, err := usageOf(p.pid())
	if err != nil {
		return 0, p.trouble(err)
	}
	time.Sleep(100 * time.Millisecond)
	took, err := p.stop()
	if err != nil {
		return 0, p.trouble(err)
	}
	if count {
		k.ready, k.cpu, k.stop = append(k.ready, ms(p.ready)), append(k.cpu, ms(used.cpu)), append(k.stop, ms(took))
	}
	return p.ready, nil
}

// rest lets an agent idle and reads what that costs.
func (k *kind) rest(ctx context.Context, e *env) error {
	p, err := e.agent(ctx, k.environment, k.args...)
	if err != nil {
		return err
	}
	sleep(ctx, e.idle/2)
	before, err := usageOf(p.pid())
	if err != nil {
		return p.trouble(err)
	}
	sleep(ctx, e.idle/2)
	after, err := usageOf(p.pid())
	if err != nil {
		return p.trouble(err)
	}
	m, err := memoryOf(p.pid())
	if err != nil {
		return p.trouble(err)
	}
	percent, wakes := after.since(before)
	k.rss, k.pss, k.anon = append(k.rss, m.rss), append(k.pss, m.pss), append(k.anon, m.anon)
	k.idle, k.wakes = append(k.idle, percent), append(k.wakes, wakes)
	took, err := p.stop()
	k.natural = append(k.natural, ms(took))
	return err
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func startReport(ctx context.Context, e *env, kinds []*kind, floor, first samples) report {
	r := report{head: []string{"compute-agent run --driver fake", "external NATS", "embedded NATS", "nova-compute, fake driver"}}
	add := func(name, format string, of func(*kind) samples, nova string) {
		r.row(name, of(kinds[0]).spread(format), of(kinds[1]).spread(format), nova)
	}
	add("exec → READY, ms ("+strconv.Itoa(len(kinds[0].ready))+" starts)", "%.1f", func(k *kind) samples { return k.ready }, "2,570")
	add("CPU until READY, ms", "%.1f", func(k *kind) samples { return k.cpu }, "2,070")
	r.row("exec → READY, the very first start", fmt.Sprintf("%.1f", first[0]), fmt.Sprintf("%.1f", first[1]), "")
	r.row("floor: `compute-agent version`, exec → exit, ms", floor.spread("%.1f"))
	after := fmt.Sprintf(" after %.0f s idle, MiB", e.idle.Seconds())
	add("RSS"+after, "%.1f", func(k *kind) samples { return k.rss }, "161")
	add("PSS"+after, "%.1f", func(k *kind) samples { return k.pss }, "147")
	add("anonymous"+after, "%.1f", func(k *kind) samples { return k.anon }, "")
	add("idle CPU, % of one core", "%.3f", func(k *kind) samples { return k.idle }, "0.119")
	add("wake-ups/s idle", "%.0f", func(k *kind) samples { return k.wakes }, "3.1 (main thread)")
	add("SIGTERM → exit, ms, just started", "%.1f", func(k *kind) samples { return k.stop }, "3,700")
	add("SIGTERM → exit, ms, after idling", "%.1f", func(k *kind) samples { return k.natural }, "5,600")
	r.want(kinds[0].ready.median() <= 50, "exec → READY at most 50 ms, external", "%.1f ms", kinds[0].ready.median())
	r.want(kinds[1].ready.median() <= 50, "exec → READY at most 50 ms, embedded", "%.1f ms", kinds[1].ready.median())
	r.want(kinds[0].rss.median() <= 25, "idle RSS at most 25 MiB, external", "%.1f MiB", kinds[0].rss.median())
	r.want(kinds[1].rss.median() <= 40, "idle RSS at most 40 MiB, embedded", "%.1f MiB", kinds[1].rss.median())
	r.note("Medians [lowest–highest]; starts after the first, journal and streams exist. External server: %s.", e.busName(ctx))
	return r
}
