// Package natstest gives tests NATS servers that are configured by a file, as any server
// is: in the test's own process, or the nats-server of this machine.
package natstest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	// patience is how long a server may take to listen, or to end by a signal.
	patience = 20 * time.Second
	beat     = 5 * time.Millisecond
)

// FreeAddress gives a loopback address that was free a moment ago.
func FreeAddress(t testing.TB) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// Config is a server's configuration: where it listens, where its streams are, and what
// the caller adds.
func Config(address, store, more string) string {
	return fmt.Sprintf("listen: %q\njetstream { store_dir: %q, max_file_store: 8G, max_memory_store: 64M }\n%s\n", address, store, more)
}

// File writes a configuration and gives its path.
func File(t testing.TB, config string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Inside starts a server in this process. A single one is ready when its clients' port
// is; whoever starts it ends it.
func Inside(t testing.TB, file string) *server.Server {
	t.Helper()
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		text, _ := os.ReadFile(file)
		t.Fatalf("%v\n%s", err, text)
	}
	opts.NoSigs, opts.NoLog = true, true
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	return s
}

// InsideReady starts a server in this process and waits until it takes connections.
func InsideReady(t testing.TB, file string) *server.Server {
	t.Helper()
	s := Inside(t, file)
	if !s.ReadyForConnections(patience) {
		End(s)
		t.Fatalf("the NATS server is not ready within %v", patience)
	}
	return s
}

// End ends a server of this process.
func End(s *server.Server) { s.Shutdown(); s.WaitForShutdown() }

// Process is the nats-server of this machine, at work.
type Process struct {
	cmd *exec.Cmd
	end sync.Once
}

// Outside starts the nats-server of this machine and waits until it listens. A machine
// that has none skips the test, and says what is not tried then.
func Outside(t testing.TB, file, address, otherwise string) *Process {
	t.Helper()
	binary, err := exec.LookPath("nats-server")
	if err != nil {
		t.Skip("SKIPPED: no nats-server on PATH (apt-get install nats-server): " + otherwise)
	}
	p := &Process{cmd: exec.CommandContext(context.WithoutCancel(t.Context()), binary, "-c", file)}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(patience); !Listens(t.Context(), address); <-time.After(beat) {
		if time.Now().After(until) {
			p.End(t, syscall.SIGKILL)
			t.Fatalf("nats-server does not listen at %s within %v", address, patience)
		}
	}
	return p
}

// End sends a signal and waits until the process is gone; one that stays is killed, and
// fails the test. What has been ended stays so.
func (p *Process) End(t testing.TB, sig syscall.Signal) {
	t.Helper()
	p.end.Do(func() {
		if err := p.cmd.Process.Signal(sig); err != nil {
			t.Error(err)
		}
		stays := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
		_ = p.cmd.Wait()
		if !stays.Stop() {
			t.Errorf("nats-server did not end by %v within %v", sig, patience)
		}
	})
}

// Listens tries an address.
func Listens(ctx context.Context, address string) bool {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}
