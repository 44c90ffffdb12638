package fake_test

import (
	"context"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

func TestLinkThatIsCut(t *testing.T) {
	cases := []struct {
		name string
		cut  func(ctx context.Context, h *fake.Host, d *fake.Driver, r virt.MigrateRequest) error
	}{
		{"the destination's process ends", func(_ context.Context, h *fake.Host, _ *fake.Driver, _ virt.MigrateRequest) error { return h.Close() }},
		{"the destination's domain is destroyed", func(ctx context.Context, _ *fake.Host, d *fake.Driver, r virt.MigrateRequest) error {
			return d.Destroy(ctx, r.Instance)
		}},
		{"the destination cancels", func(ctx context.Context, _ *fake.Host, d *fake.Driver, r virt.MigrateRequest) error {
			return d.CancelIncoming(ctx, r.Instance, r.Migration)
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(life(t))
			t.Cleanup(cancel)
			toConfig := brisk("b")
			toConfig.Listen = "127.0.0.1:0"
			from, to := newHost(t, fake.NewWorld(ctx), brisk("a")), newHost(t, fake.NewWorld(ctx), toConfig)
			source, dest, s := open(t, from), open(t, to), newSpec()
			mustStart(t, source, s)
			r := prepare(t, dest, s, 2)
			r.BandwidthMiB = 1 // a minute
			arrived := make(chan struct{}, 1)
			t.Cleanup(dest.Subscribe(func(e virt.Event) {
				if e.Kind == virt.EventStarted {
					arrived <- struct{}{}
				}
			}))
			call := green.Spawn(t.Context(), func(ctx context.Context) (struct{}, error) { return struct{}{}, source.Migrate(ctx, r) })
			limit, stop := context.WithTimeout(t.Context(), 20*time.Second)
			defer stop()
			select {
			case <-arrived:
			case <-limit.Done():
				t.Fatal("the guest never appeared on the destination")
			}
			if err := c.cut(t.Context(), to, dest, r); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if _, err := call.Wait(limit); fault.KindOf(err) != fault.Internal {
				t.Errorf("Migrate: %v, want kind internal", err)
			}
			if got := state(t, source, s.UUID); got != "running(booted)" {
				t.Errorf("on the source the guest is %s, want it running as before", got)
			}
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for state(t, dest, s.UUID) != "gone" {
				select {
				case <-tick.C:
				case <-limit.Done():
					t.Fatalf("on the destination the guest is still %s", state(t, dest, s.UUID))
				}
			}
		})
	}
}

// Guests that leave for the same process share a connection and nothing else.
func TestLinkIsShared(t *testing.T) {
	ctx, cancel := context.WithCancel(life(t))
	t.Cleanup(cancel)
	toConfig := brisk("b")
	toConfig.Listen = "127.0.0.1:0"
	from, to := newHost(t, fake.NewWorld(ctx), brisk("a")), newHost(t, fake.NewWorld(ctx), toConfig)
	source, dest := open(t, from), open(t, to)
	limit, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	arrived := make(chan string, 8)
	t.Cleanup(dest.Subscribe(func(e virt.Event) {
		if e.Kind == virt.EventStarted {
			arrived <- e.Domain
		}
	}))
	type leaving struct {
		id   string
		call *green.Thread[struct{}]
	}
	var guests []leaving
	for range 4 {
		s := newSpec()
		mustStart(t, source, s)
		r := prepare(t, dest, s, 2)
		r.BandwidthMiB = 1
		guests = append(guests, leaving{s.UUID, green.Spawn(t.Context(), func(ctx context.Context) (struct{}, error) { return struct{}{}, source.Migrate(ctx, r) })})
	}
	for range guests {
		select {
		case <-arrived:
		case <-limit.Done():
			t.Fatal("not all guests have appeared on the destination")
		}
	}
	if err := source.AbortJob(t.Context(), guests[0].id); err != nil {
		t.Fatal(err)
	}
	if err := dest.Destroy(t.Context(), guests[1].id); err != nil {
		t.Fatal(err)
	}
	for _, g := range guests[2:] {
		if err := source.SetBandwidth(t.Context(), g.id, 100_000); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []fault.Kind{fault.Cancelled, fault.Internal, "", ""} {
		if _, err := guests[i].call.Wait(limit); fault.KindOf(err) != want {
			t.Errorf("guest %d: %v, want kind %q", i, err, want)
		}
	}
	for i, want := range []string{"running(booted)", "running(booted)", "gone", "gone"} {
		if got := state(t, source, guests[i].id); got != want {
			t.Errorf("guest %d is %s on the source, want %s", i, got, want)
		}
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i, want := range []string{"gone", "gone", "running(migrated)", "running(migrated)"} {
		for got := ""; got != want; got = state(t, dest, guests[i].id) {
			select {
			case <-tick.C:
			case <-limit.Done():
				t.Fatalf("guest %d is %s on the destination, want %s", i, got, want)
			}
		}
	}
}
