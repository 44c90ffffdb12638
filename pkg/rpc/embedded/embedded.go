// Package embedded runs a NATS server with JetStream inside this process: one
// machine, a demo or a test then needs no other. It is a package of its own so
// that a controller that only dials does not link the server.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// The defaults of [Config].
const (
	DefaultListen       = "127.0.0.1:4222"
	DefaultReadyTimeout = 5 * time.Second
	DefaultMaxMemory    = 64 << 20
)

// Config says where the server keeps its streams and where it listens.
type Config struct {
	StoreDir string // where streams are kept; it is made, and locked while the server runs
	Listen   string // host:port for other processes; port 0 takes a free one; default 127.0.0.1:4222

	// Username and Password are asked of every client when set. An address that other
	// machines reach is refused without them.
	Username, Password string

	ReadyTimeout time.Duration // Start waits so long at most; default 5 s
	MaxStore     int64         // bytes of streams on disk; 0: no limit but the disk's
	MaxPayload   int32         // bytes of one message; 0: the server's default, 1 MiB
	SyncAlways   bool          // fsync each stored message; slower, and safe against power loss
	// Log gets what the server has to say: level error or warn. May be nil.
	Log func(level, text string)
}

// Server is a running server.
type Server struct {
	ns   *server.Server
	lock *os.File
}

// Start runs a server and returns when it takes clients, within milliseconds.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Listen == "" {
		cfg.Listen = DefaultListen
	}
	if cfg.ReadyTimeout == 0 {
		cfg.ReadyTimeout = DefaultReadyTimeout
	}
	host, port, err := checkListen(cfg)
	if err != nil {
		return nil, err
	}
	if err := tryListen(ctx, cfg.Listen); err != nil {
		return nil, err
	}
	lock, err := lockStore(cfg.StoreDir)
	if err != nil {
		return nil, err
	}
	s := &Server{lock: lock}
	if err := s.run(cfg, host, port); err != nil {
		s.Shutdown()
		return nil, err
	}
	return s, nil
}

func (s *Server) run(cfg Config, host string, port int) (err error) {
	maxStore := cfg.MaxStore
	if maxStore == 0 {
		maxStore = 1 << 60
	}
	opts := &server.Options{
		ServerName: "compute-agent-embedded", Host: host, Port: port,
		JetStream: true, StoreDir: cfg.StoreDir, JetStreamMaxMemory: DefaultMaxMemory, JetStreamMaxStore: maxStore,
		SyncAlways: cfg.SyncAlways, MaxPayload: cfg.MaxPayload, DisableJetStreamBanner: true,
		NoSigs: true, NoLog: cfg.Log == nil, Username: cfg.Username, Password: cfg.Password,
	}
	if s.ns, err = server.NewServer(opts); err != nil {
		return fault.WrapAs(fault.Internal, err, "start embedded NATS", cfg.Listen)
	}
	if cfg.Log != nil {
		s.ns.SetLoggerV2(logger{cfg.Log}, false, false, false)
	}
	s.ns.Start()
	if !s.ns.ReadyForConnections(cfg.ReadyTimeout) || !s.ns.JetStreamEnabled() {
		return fault.Newf(fault.Unavailable, "start embedded NATS", cfg.Listen, "the server was not ready within %s", cfg.ReadyTimeout).
			WithHint("see that %s can be written and has room", cfg.StoreDir)
	}
	return nil
}

// checkListen reads the address and refuses one that is open to others without a password.
func checkListen(cfg Config) (host string, port int, err error) {
	const op = "start embedded NATS"
	if cfg.StoreDir == "" {
		return "", 0, fault.New(fault.InvalidArgument, op, "store directory", "it is not set")
	}
	host, text, err := net.SplitHostPort(cfg.Listen)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fault.Newf(fault.InvalidArgument, op, "listen", "%q is not of the form host:port", cfg.Listen)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return host, port, nil
	}
	if cfg.Username == "" || cfg.Password == "" {
		return "", 0, fault.Newf(fault.InvalidArgument, op, cfg.Listen, "the address is open to other machines, and the server asks nobody who they are").
			WithHint("listen on 127.0.0.1, set a user name and a password, or run a NATS server of its own with per-host credentials")
	}
	return host, port, nil
}

// tryListen tells a taken port apart from every other reason not to start.
func tryListen(ctx context.Context, address string) error {
	const op = "start embedded NATS"
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		if err := l.Close(); err != nil {
			return fault.WrapAs(fault.Internal, err, op, address)
		}
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return fault.New(fault.Conflict, op, address, "the port is taken: another embedded server or NATS runs here").Because(err).
			WithHint("use that one with --rpc-url nats://%s, or choose another address for this one", address)
	default:
		return fault.WrapAs(fault.InvalidArgument, err, op, address)
	}
}

// lockStore makes the directory and keeps a second server out of it.
func lockStore(dir string) (*os.File, error) {
	const op = "start embedded NATS"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.WrapAs(fault.InvalidArgument, err, op, dir)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the operator names the folder
	if err != nil {
		return nil, fault.WrapAs(fault.InvalidArgument, err, op, dir)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fault.New(fault.Conflict, op, dir, "another process uses this directory for its streams").Because(err).
			WithHint("give this one a state directory of its own, or use the other one's server with --rpc-url")
	}
	return f, nil
}

// URL is where other processes of this machine reach the server.
func (s *Server) URL() string { return s.ns.ClientURL() }

// InProcessConn opens a connection that never leaves the process, for rpc.Config.InProcess.
func (s *Server) InProcessConn() (net.Conn, error) {
	c, err := s.ns.InProcessConn()
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the embedded NATS: %w", err)
	}
	return c, nil
}

// Shutdown ends the server and waits for it. Its streams stay in the store directory.
func (s *Server) Shutdown() {
	if s.ns != nil {
		s.ns.Shutdown()
		s.ns.WaitForShutdown()
	}
	_ = s.lock.Close() // releases the lock; there is nothing to be done about an error
}

// logger passes on what matters of the server's log. Its Fatalf does not exit: the
// server then is not ready, which Start reports.
type logger struct{ log func(level, text string) }

func (l logger) Noticef(string, ...any) {}
func (l logger) Debugf(string, ...any)  {}
func (l logger) Tracef(string, ...any)  {}

func (l logger) Warnf(format string, v ...any)  { l.log("warn", fmt.Sprintf(format, v...)) }
func (l logger) Errorf(format string, v ...any) { l.log("error", fmt.Sprintf(format, v...)) }
func (l logger) Fatalf(format string, v ...any) { l.log("error", fmt.Sprintf(format, v...)) }
