package embedded_test

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/embedded"
)

func start(t *testing.T, cfg embedded.Config) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s
}

func TestInProcess(t *testing.T) {
	began := time.Now()
	s := start(t, embedded.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	t.Logf("ready after %s", time.Since(began))
	began = time.Now()
	inside, err := rpc.Dial(t.Context(), rpc.Config{InProcess: s, AutoSetup: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = inside.Close() }()
	t.Logf("dialled and set up after %s", time.Since(began))
	outside, err := rpc.Dial(t.Context(), rpc.Config{URLs: []string{s.URL()}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = outside.Close() }()
	if err := inside.Put(t.Context(), rpc.Hosts, []string{"node1"}, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if list, err := outside.List(t.Context(), rpc.Hosts, []string{"*"}); err != nil || len(list) != 1 {
		t.Errorf("List from outside = %v, %v, want what was put inside", list, err)
	}
}

func TestRefused(t *testing.T) {
	running := start(t, embedded.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	dir := t.TempDir()
	start(t, embedded.Config{StoreDir: dir, Listen: "127.0.0.1:0"})
	taken := strings.TrimPrefix(running.URL(), "nats://")
	for name, c := range map[string]struct {
		cfg  embedded.Config
		kind fault.Kind
		hint string
	}{
		"no store":                 {embedded.Config{}, fault.InvalidArgument, ""},
		"not an address":           {embedded.Config{StoreDir: dir, Listen: "4222"}, fault.InvalidArgument, ""},
		"bad port":                 {embedded.Config{StoreDir: dir, Listen: "127.0.0.1:x"}, fault.InvalidArgument, ""},
		"all addresses":            {embedded.Config{StoreDir: dir, Listen: ":4222"}, fault.InvalidArgument, "listen on 127.0.0.1"},
		"open without a password":  {embedded.Config{StoreDir: dir, Listen: "0.0.0.0:4222"}, fault.InvalidArgument, "password"},
		"open with only a name":    {embedded.Config{StoreDir: dir, Listen: "0.0.0.0:4222", Username: "a"}, fault.InvalidArgument, "password"},
		"port taken":               {embedded.Config{StoreDir: t.TempDir(), Listen: taken}, fault.Conflict, "--rpc-url nats://" + taken},
		"store taken":              {embedded.Config{StoreDir: dir, Listen: "127.0.0.1:0"}, fault.Conflict, "state directory"},
		"store that can't be made": {embedded.Config{StoreDir: "/dev/null/x", Listen: "127.0.0.1:0"}, fault.InvalidArgument, ""},
	} {
		_, err := embedded.Start(t.Context(), c.cfg)
		if !errors.Is(err, c.kind) || !strings.Contains(fault.HintOf(err), c.hint) {
			t.Errorf("%s: Start = %v (hint %q), want %s with hint %q", name, err, fault.HintOf(err), c.kind, c.hint)
		}
	}
}

func TestPassword(t *testing.T) {
	s := start(t, embedded.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0", Username: "ctl", Password: "secret"})
	if _, err := rpc.Dial(t.Context(), rpc.Config{URLs: []string{s.URL()}}); !errors.Is(err, fault.Unauthorized) {
		t.Errorf("Dial without a password = %v, want unauthorized", err)
	}
	c, err := rpc.Dial(t.Context(), rpc.Config{URLs: []string{strings.Replace(s.URL(), "//", "//ctl:secret@", 1)}, AutoSetup: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestShutdownFreesPortAndStore(t *testing.T) {
	cfg := embedded.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"}
	s := start(t, cfg)
	cfg.Listen = strings.TrimPrefix(s.URL(), "nats://")
	s.Shutdown()
	if c, err := net.Dial("tcp", cfg.Listen); err == nil {
		_ = c.Close()
		t.Error("the port is still open after Shutdown")
	}
	start(t, cfg)
}
