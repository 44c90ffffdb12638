package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	readyPatience = 30 * time.Second
	stopPatience  = 20 * time.Second
)

// options are the flags.
type options struct {
	rounds, pairs int
	window, idle  time.Duration
	binary, out   string
	profile       string
	nats          string // program; empty: the module's
	migrations    string // of monitors: how many at once, by commas
}

// env is what the benches share: the program under test, a bus, a place for files.
type env struct {
	options
	root string // of the repository
	dir  string // temporary
	self string
	runs []*process
	n    int
}

func newEnv(ctx context.Context, o options) (*env, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/compute-agent/compute-agent").Output()
	if err != nil {
		return nil, fmt.Errorf("run this inside the repository: %w", err)
	}
	e := &env{options: o, self: self, root: strings.TrimSpace(string(root))}
	if e.dir, err = os.MkdirTemp("", "compute-agent-bench-"); err != nil {
		return nil, err
	}
	if e.out == "" {
		e.out = filepath.Join(e.root, ".cache", "bench")
	}
	if err := os.MkdirAll(e.out, 0o700); err != nil {
		return nil, err
	}
	if e.binary == "" {
		e.binary = filepath.Join(e.dir, "compute-agent")
		build := exec.CommandContext(ctx, "go", "build", "-C", e.root, "-trimpath", "-ldflags", "-s -w", "-o", e.binary, "./cmd/compute-agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("go build: %w\n%s", err, out)
		}
	}
	e.binary, err = filepath.Abs(e.binary)
	return e, err
}

func (e *env) close() {
	e.stopAll()
	_ = os.RemoveAll(e.dir)
}

// stopAll ends what a bench has started and not stopped, newest first.
func (e *env) stopAll() {
	for i := len(e.runs) - 1; i >= 0; i-- {
		_, _ = e.runs[i].stop()
	}
	e.runs = nil
}

// folder makes a new one.
func (e *env) folder(name string) string {
	e.n++
	return filepath.Join(e.dir, fmt.Sprintf("%s-%d", name, e.n))
}

// process is one started program.
type process struct {
	cmd   *exec.Cmd
	log   string
	began time.Time
	ready time.Duration // from exec to READY=1, for one that says so
	ended chan error

	manager net.PacketConn // where it sends its signs of life
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// start runs a program; its output goes to a file.
func (e *env) start(name string, environment []string, program string, args ...string) (*process, error) {
	e.n++
	p := &process{cmd: exec.Command(program, args...), log: filepath.Join(e.dir, fmt.Sprintf("%s-%d.log", name, e.n)), ended: make(chan error, 1)} //nolint:noctx // stop ends it
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close() //nolint:errcheck // the child has it
	p.cmd.Env = environment
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.began = time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.ended <- p.cmd.Wait() }()
	e.runs = append(e.runs, p)
	return p, nil
}

// stop sends SIGTERM and tells how long the end took.
func (p *process) stop() (time.Duration, error) {
	if p.ended == nil {
		return 0, nil
	}
	defer func() {
		p.ended = nil
		if p.manager != nil {
			_ = p.manager.Close()
		}
	}()
	began := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.ended:
		return time.Since(began), err
	case <-time.After(stopPatience):
		_ = p.cmd.Process.Kill()
		return time.Since(began), errors.Join(errors.New("it did not end after SIGTERM and was killed"), <-p.ended)
	}
}

// trouble adds the end of a process's log to an error.
func (p *process) trouble(err error) error {
	raw, _ := os.ReadFile(p.log)
	return fmt.Errorf("%w; its log ends with:\n%s", err, raw[max(0, len(raw)-2000):])
}

// agent starts compute-agent with the given environment beside a clean one, and
// waits for READY=1 as a service manager would.
func (e *env) agent(ctx context.Context, environment []string, args ...string) (*process, error) {
	return e.notified(ctx, append([]string{"COMPUTE_AGENT_LOG_FORMAT=text"}, environment...), e.binary, append([]string{"run"}, args...)...)
}

// notified starts a program that tells a service manager when it is ready.
func (e *env) notified(ctx context.Context, environment []string, program string, args ...string) (*process, error) {
	e.n++
	socket := filepath.Join(e.dir, fmt.Sprintf("notify-%d", e.n))
	conn, err := new(net.ListenConfig).ListenPacket(ctx, "unixgram", socket)
	if err != nil {
		return nil, err
	}
	environment = append([]string{"PATH=" + os.Getenv("PATH"), "NOTIFY_SOCKET=" + socket}, environment...)
	p, err := e.start("agent", environment, program, args...)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	ready := make(chan time.Duration, 1)
	go p.hear(conn, ready)
	select {
	case p.ready = <-ready:
		p.manager = conn
		return p, nil
	case err = <-p.ended:
		p.ended = nil
		err = fmt.Errorf("the agent ended before it was ready: %w", err)
	case <-time.After(readyPatience):
		_, _ = p.stop()
		err = fmt.Errorf("the agent is not ready after %s", readyPatience)
	}
	_ = conn.Close()
	return nil, p.trouble(err)
}

// hear is the service manager's end: it listens as long as the agent lives.
func (p *process) hear(conn net.PacketConn, ready chan<- time.Duration) {
	buffer := make([]byte, 4096)
	for {
		n, _, err := conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		if strings.Contains("\n"+string(buffer[:n])+"\n", "\nREADY=1\n") {
			ready <- time.Since(p.began)
		}
	}
}

// bus starts an external NATS server with JetStream, and gives its URL.
func (e *env) bus(ctx context.Context, extra ...string) (string, *process, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return "", nil, err
	}
	store := e.folder("nats")
	_, port, _ := net.SplitHostPort(address)
	program, args := e.self, []string{"-role", "nats", address, store}
	if e.nats != "" && len(extra) == 0 {
		program, args = e.nats, []string{"--jetstream", "--store_dir", store, "--addr", "127.0.0.1", "--port", port}
	}
	p, err := e.start("nats", os.Environ(), program, append(args, extra...)...)
	if err != nil {
		return "", nil, err
	}
	deadline := time.Now().Add(readyPatience)
	for {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", address)
		if err == nil {
			_ = c.Close()
			return "nats://" + address, p, nil
		}
		if time.Now().After(deadline) {
			return "", nil, p.trouble(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// moduleBus is the module's server.
const moduleBus = "nats-server " + server.VERSION

// busName says which server that is.
func (e *env) busName(ctx context.Context) string {
	if e.nats == "" {
		return moduleBus
	}
	out, err := exec.CommandContext(ctx, e.nats, "--version").Output() //nolint:gosec // the user names it
	if err != nil {
		return e.nats
	}
	return strings.TrimSpace(strings.ReplaceAll(string(out), ":", ""))
}

func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close() //nolint:errcheck // it was never used
	return l.Addr().String(), nil
}
