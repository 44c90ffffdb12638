package rpc_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/embedded"
	"github.com/compute-agent/compute-agent/pkg/rpc/rpctest"
)

// natsServer is a server that a test can take away and bring back.
type natsServer struct {
	url         string
	stop, start func(t *testing.T)
}

// testConfig is a configuration with short waits.
func testConfig(url string) rpc.Config {
	return rpc.Config{
		URLs: []string{url}, AutoSetup: true, AckWait: 400 * time.Millisecond, Heartbeat: 500 * time.Millisecond,
		ReconnectLimit: 100 * time.Millisecond, PublishTimeout: 2 * time.Second,
	}
}

func natsRig(t *testing.T, s *natsServer, batches rpc.Batches) *rpctest.Rig {
	t.Helper()
	cfg := testConfig(s.url)
	cfg.Batches = batches
	return &rpctest.Rig{
		AckWait: cfg.AckWait, Prefix: rpc.DefaultPrefix,
		Connect: func(t *testing.T, name string) rpc.Transport {
			t.Helper()
			cfg := cfg
			cfg.Name = name
			return dial(t, cfg)
		},
		Inject: func(t *testing.T, subject string, header map[string][]string, body []byte) {
			t.Helper()
			nc, err := nats.Connect(s.url)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if _, err := nc.RequestMsg(&nats.Msg{Subject: subject, Header: header, Data: body}, time.Second); err != nil {
				t.Fatal(err)
			}
		},
		Restart: func(t *testing.T, while func()) {
			t.Helper()
			s.stop(t)
			while()
			s.start(t)
		},
	}
}

// dial connects, waiting for a server that is just being started.
func dial(t *testing.T, cfg rpc.Config) rpc.Transport {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rpctest.Patience)
	defer cancel()
	for {
		c, err := rpc.Dial(ctx, cfg)
		if err == nil {
			t.Cleanup(func() {
				if err := c.Close(); err != nil {
					t.Errorf("Close = %v", err)
				}
			})
			return c
		}
		if ctx.Err() != nil {
			t.Fatalf("Dial = %v", err)
		}
		<-time.NewTimer(10 * time.Millisecond).C
	}
}

// embeddedServer runs a server in this process, on one port and one store.
func embeddedServer(t *testing.T) *natsServer {
	t.Helper()
	cfg := embedded.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"}
	var server *embedded.Server
	s := &natsServer{}
	s.start = func(t *testing.T) {
		t.Helper()
		var err error
		if server, err = embedded.Start(context.WithoutCancel(t.Context()), cfg); err != nil {
			t.Fatal(err)
		}
		s.url = server.URL()
		cfg.Listen = strings.TrimPrefix(s.url, "nats://")
	}
	s.stop = func(*testing.T) { server.Shutdown() }
	s.start(t)
	t.Cleanup(func() { server.Shutdown() })
	return s
}

// externalServer runs the nats-server of this machine, for example Debian's 2.9.10.
func externalServer(t *testing.T) *natsServer {
	t.Helper()
	binary, err := exec.LookPath("nats-server")
	if err != nil {
		t.Skip("SKIPPED: no nats-server on PATH (apt-get install nats-server): the transport is not tried on an external server")
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var cmd *exec.Cmd
	s := &natsServer{url: "nats://" + address}
	s.start = func(t *testing.T) {
		t.Helper()
		cmd = exec.Command(binary, "-a", "127.0.0.1", "-p", port, "-js", "-sd", filepath.Join(dir, "js"), "-l", filepath.Join(dir, "log"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	s.stop = func(t *testing.T) {
		t.Helper()
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	}
	s.start(t)
	t.Cleanup(func() { s.stop(t) })
	return s
}

// TestEmbeddedNATS has streams that take batches, as compute-agent makes them in its own server.
func TestEmbeddedNATS(t *testing.T) {
	rpctest.Suite(t, func(t *testing.T) *rpctest.Rig { t.Helper(); return natsRig(t, embeddedServer(t), rpc.BatchesOn) })
}

func TestExternalNATS(t *testing.T) {
	rpctest.Suite(t, func(t *testing.T) *rpctest.Rig { t.Helper(); return natsRig(t, externalServer(t), rpc.BatchesKeep) })
}
