package virttest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Defaults of [Rig].
const (
	defaultWait    = 60 * time.Second
	defaultSlowMiB = 8
	pollEvery      = 10 * time.Millisecond
)

// bench is a rig at work in one case. It removes every domain it defined.
type bench struct {
	Rig
	t     *testing.T
	ctx   context.Context //nolint:containedctx // the life of one test case
	specs map[string]instance.Spec
}

func newBench(t *testing.T, rig Rig) *bench {
	t.Helper()
	if rig.Wait == 0 {
		rig.Wait = defaultWait
	}
	if rig.SlowMiB == 0 {
		rig.SlowMiB = defaultSlowMiB
	}
	if rig.Tick == "" {
		rig.Tick = "tick"
	}
	return &bench{Rig: rig, t: t, ctx: t.Context(), specs: map[string]instance.Spec{}}
}

// newDefinition makes a definition of a new guest and sees to it that nothing of it stays.
func (b *bench) newDefinition(generation uint64) virt.Definition {
	b.t.Helper()
	d := virt.Definition{Spec: b.Spec(), Generation: generation}
	b.specs[d.Spec.UUID] = d.Spec
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), b.Wait)
		defer cancel()
		for _, host := range []Driver{b.Source, b.Dest} {
			b.remove(ctx, host, d.Spec.UUID)
		}
	})
	return d
}

func (b *bench) remove(ctx context.Context, host Driver, id string) {
	b.t.Helper()
	if err := host.Destroy(ctx, id); err != nil && !errors.Is(err, fault.NotFound) {
		b.t.Errorf("clean-up: Destroy(%s): %v", id, err)
	}
	if err := host.Undefine(ctx, id, true); err != nil {
		b.t.Errorf("clean-up: Undefine(%s): %v", id, err)
	}
}

// defined defines a new guest of generation 1 on the source and gives its id.
func (b *bench) defined() string {
	b.t.Helper()
	d := b.newDefinition(1)
	b.ok("Define", b.Source.Define(b.ctx, d))
	return d.Spec.UUID
}

// running is defined, then started.
func (b *bench) running() string {
	b.t.Helper()
	id := b.defined()
	b.ok("Start", b.Source.Start(b.ctx, id))
	b.waitState(b.Source, id, virt.Running)
	return id
}

// booted is running, then up: its console ticks.
func (b *bench) booted() string {
	b.t.Helper()
	id := b.running()
	b.waitConsole(b.Source, id)
	return id
}

func (b *bench) waitConsole(host Driver, id string) {
	b.t.Helper()
	b.eventually("the console says "+b.Tick, func() (bool, string) {
		out, err := host.Console(b.ctx, id, 0)
		return err == nil && strings.Contains(string(out), b.Tick), fmt.Sprintf("%q, %v", out, err)
	})
}

// ok ends the case on an error.
func (b *bench) ok(what string, err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
}

// wants reports an error of another kind than the one wanted.
func (b *bench) wants(kind fault.Kind, what string, err error) {
	b.t.Helper()
	var shape *fault.Error
	switch {
	case err == nil:
		b.t.Errorf("%s: no error, want kind %s", what, kind)
	case !errors.As(err, &shape):
		b.t.Errorf("%s: %v (%T): not a fault.Error, want kind %s", what, err, err, kind)
	case fault.KindOf(err) != kind:
		b.t.Errorf("%s: kind %s (%v), want %s", what, fault.KindOf(err), err, kind)
	}
}

func (b *bench) lookup(host Driver, id string) virt.Domain {
	b.t.Helper()
	d, err := host.Lookup(b.ctx, id)
	b.ok("Lookup", err)
	return d
}

// gone reports a domain that is still there.
func (b *bench) gone(host Driver, id string) {
	b.t.Helper()
	b.eventually("domain "+id+" is gone", func() (bool, string) {
		d, err := host.Lookup(b.ctx, id)
		return errors.Is(err, fault.NotFound), fmt.Sprintf("%+v, %v", d, err)
	})
}

// waitState waits for a state and gives the domain that has it.
func (b *bench) waitState(host Driver, id string, want virt.State) virt.Domain {
	b.t.Helper()
	var found virt.Domain
	b.eventually("domain "+id+" is "+string(want), func() (bool, string) {
		d, err := host.Lookup(b.ctx, id)
		found = d
		return err == nil && d.State == want, fmt.Sprintf("%+v, %v", d, err)
	})
	return found
}

// eventually polls until done says so, and ends the case with the last thing seen after Rig.Wait.
func (b *bench) eventually(what string, done func() (ok bool, seen string)) {
	b.t.Helper()
	ok, seen := done()
	if ok {
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, b.Wait)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if ok, seen = done(); ok {
				return
			}
		case <-ctx.Done():
			b.t.Fatalf("waited %v for: %s; last seen: %s", b.Wait, what, seen)
		}
	}
}

// never looks a few times more, and reports what should not have come.
func (b *bench) never(what string, came func() (ok bool, seen string)) {
	b.t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for range 10 {
		if ok, seen := came(); ok {
			b.t.Errorf("%s: %s", what, seen)
			return
		}
		<-tick.C
	}
}

// beside is a call that runs beside the case.
type beside = *green.Thread[struct{}]

// later runs f beside the case, which does not end before it.
func (b *bench) later(f func(ctx context.Context) error) beside {
	b.t.Helper()
	call := green.Spawn(b.ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	b.t.Cleanup(func() { <-call.Done() })
	return call
}

// result waits for the end of what later began and gives its error.
func (b *bench) result(what string, call beside) error {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, b.Wait)
	defer cancel()
	_, err := call.Wait(ctx)
	if errors.Is(err, green.ErrWaitGivenUp) {
		b.t.Fatalf("waited %v for: %s", b.Wait, what)
	}
	return err
}

// collector keeps the events of one host.
type collector struct {
	mu     sync.Mutex
	events []virt.Event
}

// collect subscribes for the life of the case.
func (b *bench) collect(host Driver) *collector {
	b.t.Helper()
	c := &collector{}
	b.t.Cleanup(host.Subscribe(c.add))
	return c
}

func (c *collector) add(e virt.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
}

// all gives the events so far.
func (c *collector) all() []virt.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]virt.Event(nil), c.events...)
}

// of gives the events of one domain so far.
func (c *collector) of(id string) []virt.Event {
	var out []virt.Event
	for _, e := range c.all() {
		if e.Domain == id {
			out = append(out, e)
		}
	}
	return out
}

// step is one event that is waited for; an empty reason is any.
type step struct {
	kind   virt.EventKind
	reason virt.Reason
}

// waitEvents waits until the domain's events hold the steps in this order; other
// events may lie between them. It gives the events that matched.
func (b *bench) waitEvents(c *collector, id string, steps ...step) []virt.Event {
	b.t.Helper()
	var found []virt.Event
	b.eventually(fmt.Sprintf("events %v", steps), func() (bool, string) {
		seen := c.of(id)
		found = match(seen, steps)
		return len(found) == len(steps), describe(seen)
	})
	return found
}

// match gives the longest prefix of the steps that the events hold in order.
func match(events []virt.Event, steps []step) []virt.Event {
	var found []virt.Event
	for _, e := range events {
		if len(found) == len(steps) {
			break
		}
		if s := steps[len(found)]; s.kind == e.Kind && (s.reason == "" || s.reason == e.Reason) {
			found = append(found, e)
		}
	}
	return found
}

func describe(events []virt.Event) string {
	parts := make([]string, 0, len(events))
	for _, e := range events {
		parts = append(parts, fmt.Sprintf("%s(%s)", e.Kind, e.Reason))
	}
	return strings.Join(parts, " ")
}
