package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// Agents of 1.0 and 1.1 side by side: what a later version adds is refused by name
// where it is not known, members that are not known are ignored, and guests move in
// both directions.
func TestVersionsSideBySide(t *testing.T) {
	old, young := "node1.example", "node2.example"
	r := newRig(t, onBus(), old, young)
	ctx := t.Context()
	h := r.Host(young)
	if err := h.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	h.Node.Agent.APIVersion = "1.1"
	h.Node.Agent.Extra = map[string]func(context.Context, []byte) ([]byte, error){
		"get_weather": func(context.Context, []byte) ([]byte, error) { return []byte(`{"sky":"blue"}`), nil },
	}
	if err := h.Start(context.WithoutCancel(ctx)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host, method, version string
		want                  fault.Kind // empty: an answer
	}{
		{young, "get_weather", "1.1", ""},
		{young, "get_weather", "1.0", ""},
		{young, api.GetHostInfo, "1.0", ""},
		{old, api.GetHostInfo, "1.0", ""},
		{old, "get_weather", "1.1", fault.UnsupportedVersion},
		{old, "get_weather", "1.0", fault.UnsupportedMethod},
		{old, api.GetHostInfo, "1.1", fault.UnsupportedVersion},
		{young, api.GetHostInfo, "1.2", fault.UnsupportedVersion},
		{young, api.GetHostInfo, "2.0", fault.UnsupportedVersion},
	} {
		_, err := r.bus.Call(ctx, c.host, rpc.Message{Method: c.method, Version: c.version, RequestID: instance.NewUUID(), Args: []byte("{}")})
		if (err == nil) != (c.want == "") || err != nil && !errors.Is(err, c.want) {
			t.Errorf("%s %s of version %s: %v, want %q", c.host, c.method, c.version, err, c.want)
		}
	}

	s := spec("web1")
	args := map[string]any{"spec": s, "colour": "red"} // of 1.1, where it may be left out
	task, err := r.c.Cast(ctx, old, api.BuildAndRunInstance, args)
	done(t, task, err)
	task, err = r.c.LiveMigration(ctx, s.UUID, api.MigrateArgs{Dest: young})
	done(t, task, err)
	r.settled(t, s, young, 2)
	task, err = r.c.LiveMigration(ctx, s.UUID, api.MigrateArgs{Dest: old})
	done(t, task, err)
	r.settled(t, s, old, 3)

	// a cast that needs 1.1 is refused by event, and nothing is done
	id := instance.NewUUID()
	body, err := json.Marshal(api.InstanceArgs{Instance: s.UUID})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.bus.Cast(ctx, old, rpc.Message{Method: api.PauseInstance, Version: "1.1", RequestID: id, Args: body}); err != nil {
		t.Fatal(err)
	}
	task, err = r.c.Task(ctx, old, id)
	if err := end(t, task, err); !errors.Is(err, fault.UnsupportedVersion) {
		t.Errorf("a cast of 1.1: %v, want unsupported_version", err)
	}
	r.settled(t, s, old, 3)
}
