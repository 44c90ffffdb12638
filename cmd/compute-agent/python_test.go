package main

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/controller/controllertest"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/embedded"
)

// TestPythonExample runs the example of the documents against a real server.
func TestPythonExample(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIPPED: python3 is not installed, so docs/examples/client.py is not tested")
	}
	server, err := embedded.Start(t.Context(), embedded.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	bus, err := rpc.Dial(t.Context(), rpc.Config{URLs: []string{server.URL()}, AutoSetup: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := rpc.Setup(t.Context(), bus, "node1.example"); err != nil {
		t.Fatal(err)
	}
	fleet := controllertest.NewFleet(t, bus, "node1.example")
	t.Cleanup(func() { _ = bus.Close() })
	fleet.Add(t, "node1.example", "web1", web1)

	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, python, append([]string{"../../docs/examples/client.py"}, args...)...)
		cmd.Env = append(cmd.Environ(), "NATS_SERVER="+strings.TrimPrefix(server.URL(), "nats://"), "PYTHONDONTWRITEBYTECODE=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run("node1.example", "web1", "pause_instance")
	want := "instances: web1\n" + "web1 is active\npause_instance accepted\npause_instance running\npause_instance succeeded\n"
	if err != nil || out != want {
		t.Errorf("the example says %q, %v, want %q", out, err, want)
	}
	if out, err := run("node1.example", "web1", "show_nothing"); err == nil || !strings.Contains(out, "unsupported_method: ") {
		t.Errorf("an unknown method: %q, %v", out, err)
	}
	if out, err := run("node9", "web1", "pause_instance"); err == nil || !strings.Contains(out, "unavailable: no agent answers for host node9") {
		t.Errorf("an unknown host: %q, %v", out, err)
	}
}
