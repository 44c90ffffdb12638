package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"time"
)

const (
	natsPort     = "4222"
	natsPatience = 10 * time.Second
)

// NATS is an external nats-server with JetStream, reachable from every host and from the tester.
type NATS struct {
	URL string // nats://10.77.0.1:4222

	program string
	daemon  *daemon // nil while stopped
}

// NATS starts a nats-server on the management network and waits until it answers. binary "" is the distribution's. One
// runs at a time. Its store is in the lab's folder: it survives Stop, Kill and Start, not Close.
func (l *Lab) NATS(ctx context.Context, binary string) (*NATS, error) {
	if binary == "" {
		var err error
		if binary, err = lookPath("nats-server"); err != nil {
			return nil, fmt.Errorf("no nats-server: %w", err)
		}
	}
	if _, err := l.Dir("nats"); err != nil {
		return nil, err
	}
	n := &NATS{URL: "nats://" + net.JoinHostPort(natsAddr, natsPort), program: binary}
	if err := n.Start(ctx); err != nil {
		n.Kill()
		return nil, err
	}
	l.nats = append(l.nats, n)
	return n, nil
}

// Start starts the server again after Stop or Kill. On one that runs it does nothing.
func (n *NATS) Start(ctx context.Context) error {
	if n.daemon != nil {
		return nil
	}
	log := filepath.Join(stateDir, "shared", "nats.log")
	var err error
	n.daemon, err = startDaemon(ctx, log, "nsenter", "--net="+netnsFile(switches), "--", n.program,
		"--jetstream", "--store_dir", filepath.Join(stateDir, "shared", "nats"), "--addr", natsAddr, "--port", natsPort)
	if err != nil {
		return err
	}
	if err := poll(ctx, natsPatience, 10*time.Millisecond, greetNATS); err != nil {
		return fmt.Errorf("nats-server does not answer; its log ends with:\n%s\n%w", tail(log), err)
	}
	return nil
}

// Stop ends the server in order (SIGTERM).
func (n *NATS) Stop() {
	if n.daemon != nil {
		n.daemon.stop()
	}
	n.daemon = nil
}

// Kill ends the server at once, as a power cut would.
func (n *NATS) Kill() {
	if n.daemon != nil {
		n.daemon.kill()
	}
	n.daemon = nil
}

// greetNATS returns nil when the server sends its greeting.
func greetNATS(ctx context.Context) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(natsAddr, natsPort))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	buffer := make([]byte, 4096)
	n, err := io.ReadAtLeast(conn, buffer, len("INFO {"))
	if err != nil {
		return err
	}
	if greeting := string(buffer[:n]); !strings.HasPrefix(greeting, "INFO {") {
		return fmt.Errorf("port %s speaks no NATS: %.40q", natsPort, greeting)
	}
	return nil
}
