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
