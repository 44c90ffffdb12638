package fake_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// move is one step of a script: something is done on a host, then the guest may
// be sent away from it, then time passes.
type move struct {
	host    int
	what    string
	migrate bool
	then    time.Duration
}

func drawMove(t *rapid.T) move {
	return move{
		host:    rapid.IntRange(0, 1).Draw(t, "host"),
		what:    rapid.SampledFrom(steps()).Draw(t, "what"),
		migrate: rapid.Bool().Draw(t, "migrate"),
		then:    time.Duration(rapid.IntRange(0, 900).Draw(t, "ms")) * time.Millisecond,
	}
}

// Whatever is asked in whatever order, and whatever breaks, a guest never lives
// on two hosts, unless somebody lets a source go on whose migration ended unknown.
func TestAnyOrderKeepsOneOwner(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(rapid.Custom(drawMove), 1, 25).Draw(rt, "script")
		var wrong string
		synctest.Test(t, func(t *testing.T) { wrong = play(t, script) })
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

// play runs a script and tells what went wrong.
func play(t *testing.T, script []move) string {
	t.Helper()
	p := newPair(t, busy())
	hosts, drivers := []*fake.Host{p.a, p.b}, []*fake.Driver{p.source, p.dest}
	var calls []*green.Thread[struct{}]
	for i, m := range script {
		doStep(t.Context(), m.what, hosts[m.host], drivers[m.host], p.spec.UUID)
		if m.migrate {
			calls = append(calls, p.send(t.Context(), drivers[m.host], drivers[1-m.host], uint64(i)))
		}
		sleep(t, m.then)
		for _, f := range p.world.Audit() {
			if len(f.Running) > 1 {
				return fmt.Sprintf("after step %d the guest lives on %q", i, f.Running)
			}
		}
	}
	for i, h := range hosts { // whatever still runs may end now
		h.Reconnect()
		doStep(t.Context(), "faster", h, drivers[i], p.spec.UUID)
		doStep(t.Context(), "downtime", h, drivers[i], p.spec.UUID)
	}
	limit, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	for _, c := range calls {
		if _, err := c.Wait(limit); errors.Is(err, green.ErrWaitGivenUp) {
			return "a migration never ended"
		}
	}
	return ""
}

func steps() []string {
	return []string{
		"nothing", "pause", "save", "restore", "destroy", "undefine", "crash", "shutdown", "abort", "post-copy", "slower", "faster",
		"downtime", "away", "back", "break", "refuse", "break later", "lose",
	}
}

// doStep does one thing to the guest; that it may be refused is part of the game.
func doStep(ctx context.Context, what string, h *fake.Host, d *fake.Driver, id string) {
	do := map[string]func() error{
		"nothing":   func() error { return nil },
		"pause":     func() error { return d.Pause(ctx, id) },
		"save":      func() error { return d.Save(ctx, id) },
		"restore":   func() error { return d.Restore(ctx, id) },
		"destroy":   func() error { return d.Destroy(ctx, id) },
		"undefine":  func() error { return d.Undefine(ctx, id, true) },
		"crash":     func() error { return h.Crash(id) },
		"shutdown":  func() error { return d.Shutdown(ctx, id, virt.ShutdownACPI) },
		"abort":     func() error { return d.AbortJob(ctx, id) },
		"post-copy": func() error { return d.StartPostCopy(ctx, id) },
		"slower":    func() error { return d.SetBandwidth(ctx, id, 4) },
		"faster":    func() error { return d.SetBandwidth(ctx, id, 0) },
		"downtime":  func() error { return d.SetMaxDowntime(ctx, id, 2*time.Second) },
		"away":      func() error { h.Disconnect(); return nil },
		"back":      func() error { h.Reconnect(); return nil },
		"break": func() error {
			h.Faults().Add(fake.Fault{Method: fake.PointPreCopy, Err: fault.Internal, Times: 1})
			return nil
		},
		"refuse": func() error {
			h.Faults().Add(fake.Fault{Method: fake.PointFinish, Err: fault.Internal, Times: 1})
			return nil
		},
		"break later": func() error {
			h.Faults().Add(fake.Fault{Method: fake.PointPostCopy, Err: fault.Internal, Times: 1})
			return nil
		},
		"lose": func() error {
			h.Faults().Add(fake.Fault{Method: fake.PointFinish, Err: fault.Unavailable, After: true, Times: 1})
			return nil
		},
	}
	_ = do[what]() // a refusal
}

func (p *pair) send(ctx context.Context, from, to *fake.Driver, generation uint64) *green.Thread[struct{}] {
	return green.Spawn(ctx, func(ctx context.Context) (struct{}, error) {
		r := virt.MigrateRequest{Instance: p.spec.UUID, Migration: instance.NewUUID(), Generation: generation, PostCopy: true}
		in, err := to.PrepareIncoming(ctx, virt.Incoming{Definition: virt.Definition{Spec: p.spec, Migration: r.Migration}})
		if err != nil {
			return struct{}{}, err
		}
		r.Inbound = in
		return struct{}{}, from.Migrate(ctx, r)
	})
}
