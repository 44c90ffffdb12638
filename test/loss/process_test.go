package loss_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/compute-agent/compute-agent/test/natstest"
)

// serverRole, in the environment, makes this test's binary a NATS server that reads
// the file it names.
const serverRole = "COMPUTE_AGENT_TEST_NATS"

func TestMain(m *testing.M) {
	if file := os.Getenv(serverRole); file != "" {
		runServer(file)
	}
	os.Exit(m.Run())
}

// runServer is what nats-server does; it ends by a signal.
func runServer(file string) {
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s.ConfigureLogger()
	s.Start()
	s.WaitForShutdown()
	os.Exit(0)
}

// process is a program that can be killed and started again; what it says is kept.
type process struct {
	path string
	args []string
	env  []string
	log  string        // file
	wait time.Duration // that it has to end by a signal; 0: endWait

	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	err  error         // how
}

func (p *process) start(ctx context.Context) error {
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), p.path, p.args...)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = append(os.Environ(), p.env...), out, out
	if err := p.cmd.Start(); err != nil {
		return err
	}
	p.gone = make(chan struct{})
	go func(cmd *exec.Cmd, gone chan struct{}) { p.err = cmd.Wait(); close(gone) }(p.cmd, p.gone)
	return nil
}

// endWait is how long a process has to end by a signal.
const endWait = 20 * time.Second

// errStays is what a process gets that does not end by a signal.
var errStays = errors.New("it did not end by the signal")

// end sends a signal and waits until the process is gone; one that stays is killed.
func (p *process) end(sig syscall.Signal) error {
	wait := cmp.Or(p.wait, endWait)
	_ = p.cmd.Process.Signal(sig) // it may have ended
	if p.endsWithin(wait) {
		return p.err
	}
	_ = p.cmd.Process.Kill()
	if !p.endsWithin(wait) {
		return fmt.Errorf("%s, %v: %w within %v, nor by SIGKILL", p.path, sig, errStays, wait)
	}
	return fmt.Errorf("%s, %v: %w within %v", p.path, sig, errStays, wait)
}

func (p *process) endsWithin(wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-p.gone:
		return true
	case <-timer.C:
		return false
	}
}

// A process that takes no notice of a signal is killed, and that is an error.
func TestProcessThatStays(t *testing.T) {
	p := &process{path: "/bin/sh", args: []string{"-c", `trap "" TERM; echo deaf; while :; do sleep 1; done`}, log: filepath.Join(t.TempDir(), "log"), wait: 100 * time.Millisecond}
	if err := p.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(endWait); !p.said("deaf"); {
		if time.Now().After(until) {
			t.Fatal("the process says nothing")
		}
		<-time.After(5 * time.Millisecond)
	}
	if err := p.end(syscall.SIGTERM); !errors.Is(err, errStays) || !p.ended() {
		t.Errorf("end = %v, ended %t", err, p.ended())
	}
	if err := p.end(syscall.SIGKILL); err == nil || errors.Is(err, errStays) {
		t.Errorf("end of one that is gone = %v", err)
	}
}

// ended tells whether it is gone.
func (p *process) ended() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// tail is the end of what it said.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

// said tells whether a text stands in what it said.
func (p *process) said(what string) bool {
	text, err := os.ReadFile(p.log)
	return err == nil && bytes.Contains(text, []byte(what))
}

// newServer prepares a NATS server: the machine's nats-server, or the library's in a
// process of its own.
func newServer(t *testing.T, dir string) (p *process, address string) {
	t.Helper()
	address = natstest.FreeAddress(t)
	file := natstest.File(t, natstest.Config(address, filepath.Join(dir, "nats"), ""))
	p = &process{log: filepath.Join(dir, "nats.log")}
	if path, err := exec.LookPath("nats-server"); err == nil && !*ownServer {
		p.path, p.args = path, []string{"-c", file}
		version, _ := exec.CommandContext(t.Context(), path, "--version").Output()
		t.Logf("the server: %s", bytes.TrimSpace(version))
		return p, address
	}
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.path, p.env = own, []string{serverRole + "=" + file}
	t.Logf("the server: nats-server %s, as a process of this test's binary", server.VERSION)
	return p, address
}

// newAgent builds the binary and prepares an agent on the fake driver.
func newAgent(t *testing.T, dir, url string) *process {
	t.Helper()
	path := filepath.Join(dir, "compute-agent")
	args := append(append([]string{"build", "-o", path}, buildFlags...), "github.com/compute-agent/compute-agent/cmd/compute-agent")
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	config := filepath.Join(dir, "agent.toml")
	if err := os.WriteFile(config, []byte(fmt.Sprintf(`
[agent]
host = %q
driver = "fake"
state_dir = %q
[rpc]
url = %q
ack_wait = "%s"
[fake]
vcpus = 1000000
memory_mib = 1000000000
[log]
level = "warning"
format = "json"
`, host, filepath.Join(dir, "state"), url, ackWait)), 0o600); err != nil {
		t.Fatal(err)
	}
	return &process{path: path, args: []string{"run", "--config", config}, log: filepath.Join(dir, "agent.log")}
}

// answers waits until somebody listens.
func (r *rig) answers() {
	r.t.Helper()
	r.until("the NATS server", func() bool { return natstest.Listens(r.ctx, r.address) })
}
