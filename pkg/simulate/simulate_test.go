package simulate_test

import (
	"context"
	"encoding/json"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/internal/compose"
	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/simulate"
	"github.com/compute-agent/compute-agent/pkg/state"
)

// A killed agent leaves its journal and its guests as they are, and is silent; the next
// life goes on from there.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		log, err := logkit.New(logkit.Options{Out: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		ctx := compose.Logging(logkit.Into(t.Context(), log))
		bus := rpc.NewBus()
		f, err := simulate.New(ctx, simulate.Config{
			Hosts: []string{"a"}, StateDir: dir, Node: compose.Config{State: state.Options{NoSync: true}},
			Dial: func(_ context.Context, host string) (rpc.Transport, error) { return bus.Connect(host), nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		h, written := f.Host("a"), 0
		h.Committed = func(n int) {
			if written = n; n == 2 { // accepted is on disk, running too: it dies before anything is made
				h.Kill()
			}
		}
		if err := h.Start(ctx); err != nil {
			t.Fatal(err)
		}
		spec := instance.Spec{UUID: instance.NewUUID(), VCPUs: 1, MemoryMiB: 64, Boot: instance.Boot{Kernel: "/boot/vmlinuz"}}
		body, err := json.Marshal(api.BuildArgs{Spec: spec})
		if err != nil {
			t.Fatal(err)
		}
		m := rpc.Message{Method: api.BuildAndRunInstance, RequestID: instance.NewUUID(), Version: api.Version, Args: body}
		if err := bus.Connect("controller").Cast(ctx, "a", m); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Minute)
		if !h.Killed() || written != 2 {
			t.Fatalf("killed: %t after %d transactions, want after the second", h.Killed(), written)
		}
		if c := h.Machine.Counts(spec.UUID); c.Starts != 0 {
			t.Errorf("the dead started %d guests", c.Starts)
		}
		_ = h.Stop(ctx) // what a dead agent says is not worth hearing
		h.Committed = nil
		if err := h.Start(ctx); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Minute)
		if c := h.Machine.Counts(spec.UUID); c.Starts != 1 {
			t.Errorf("the next life started %d guests, want the one that was accepted", c.Starts)
		}
		if err := h.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
}
