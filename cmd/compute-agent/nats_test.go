package main

import (
	"strings"
	"testing"

	"github.com/compute-agent/compute-agent/pkg/controller/controllertest"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/embedded"
)

// TestNATS is the way over a real server: set it up, run agents, move an instance.
func TestNATS(t *testing.T) {
	server, err := embedded.Start(t.Context(), embedded.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	url := server.URL()
	cli := func(args ...string) (out, errOut string, code int) {
		var o, e strings.Builder
		code = newApp(strings.NewReader(""), &o, &e, []string{"COMPUTE_AGENT_RPC_URL=" + url}).execute(t.Context(), args)
		return o.String(), e.String(), code
	}
	must := func(want string, args ...string) {
		t.Helper()
		if out, errOut, code := cli(args...); code != 0 || !strings.Contains(out, want) {
			t.Fatalf("%v = %d, %q, %q, want %q", args, code, out, errOut, want)
		}
	}
	if _, errOut, code := cli("host", "list"); code != exitUnavailable || !strings.Contains(errOut, "compute-agent nats-setup") {
		t.Errorf("a NATS without streams and buckets gives %d, %q, want a hint to nats-setup", code, errOut)
	}
	must("Consumer of node1 is in place", "nats-setup", "node1", "node2")
	must("Streams and buckets are in place", "nats-setup", "node1", "node2")
	must("No host has reported yet", "host", "list")

	bus, err := rpc.Dial(t.Context(), rpc.Config{URLs: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	fleet := controllertest.NewFleet(t, bus, "node1", "node2")
	t.Cleanup(func() { _ = bus.Close() })
	fleet.Add(t, "node1", "web1", web1)
	must("node2   up", "host", "list")
	must("web1 stopped in", "instance", "stop", "web1")
	must("web1 moved from node1 to node2", "migration", "start", "web1", "--to", "node2")
	must("live_migration succeeded", "events", "--kind", "task")
}
