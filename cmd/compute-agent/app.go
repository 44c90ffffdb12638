package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// app is one run of the program: where it reads and writes, and the flags that
// every command has.
type app struct {
	in       io.Reader
	out, err io.Writer
	environ  []string
	terminal bool // out is one: bars may be drawn
	asks     bool // so is in: a person can be asked
	// dial connects to the bus; tests put the one in memory here.
	dial func(ctx context.Context, c config.RPC) (rpc.Transport, error)
	// interrupts delivers each Ctrl-C to a command that has something to say to it.
	interrupts func() (signals <-chan os.Signal, stop func())
	// agent runs the daemon until ctx ends.
	agent func(ctx context.Context, c config.Config) error

	root       *cobra.Command
	began      bool // a command runs: the command line was right
	configFile string
	url        string
	timeout    time.Duration
	heartbeat  time.Duration
	output     string
	force      bool

	mu    sync.Mutex
	typed map[string]string // the name that was typed for an instance, by its UUID
}

func newApp(in io.Reader, out, err io.Writer, environ []string) *app {
	a := &app{in: in, out: out, err: err, environ: environ, dial: dial, interrupts: interrupts, agent: runAgent}
	if f, ok := out.(*os.File); ok {
		width, _, err := term.GetSize(int(f.Fd()))
		a.terminal = err == nil && width > 0 // a terminal of unknown width gets lines
	}
	if f, ok := in.(*os.File); ok {
		a.asks = a.terminal && term.IsTerminal(int(f.Fd()))
	}
	a.root = a.tree()
	return a
}

// execute runs the command line and gives the exit code.
func (a *app) execute(ctx context.Context, args []string) int {
	a.root.SetArgs(args)
	cmd, err := a.root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if !a.began {
		err = &usageError{err}
	}
	return a.report(ctx, cmd, err)
}

// env gives an environment variable, or def.
func (a *app) env(name, def string) string {
	for _, entry := range a.environ {
		if len(entry) > len(name) && entry[:len(name)] == name && entry[len(name)] == '=' {
			return entry[len(name)+1:]
		}
	}
	return def
}

// session is a connection to the bus and a client on it.
type session struct {
	*controller.Client
	bus rpc.Transport
}

// connect reads how the bus is reached (flag, environment, file, default) and dials it.
func (a *app) connect(ctx context.Context) (*session, error) {
	c, err := a.controllerConfig()
	if err != nil {
		return nil, err
	}
	bus, err := a.dial(ctx, c.RPC)
	if err != nil {
		return nil, a.unreachable(err, c.RPC.URL)
	}
	o := controller.Options{Force: a.force, ServiceDownTime: c.Agent.ServiceDownTime, Heartbeat: a.heartbeat, Resolved: a.remember}
	if a.timeout > 0 {
		o.CallTimeout, o.AcceptTimeout, o.TaskTimeout, o.BusPatience = a.timeout, a.timeout, a.timeout, a.timeout
	}
	return &session{controller.New(bus, o), bus}, nil
}

// remember keeps a name that was typed, and called gives it beside the UUID in a text.
func (a *app) remember(name, uuid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.typed == nil {
		a.typed = map[string]string{}
	}
	a.typed[uuid] = name
}

func (a *app) called(text string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	for uuid, name := range a.typed {
		if !strings.Contains(text, name+" ("+uuid+")") {
			text = strings.ReplaceAll(text, uuid, name+" ("+uuid+")")
		}
	}
	return text
}

// with connects, runs fn and disconnects.
func (a *app) with(ctx context.Context, fn func(ctx context.Context, s *session) error) error {
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	return errors.Join(fn(ctx, s), s.bus.Close())
}

// controllerConfig is the configuration as a controller uses it: where the bus is and
// when a host counts as down. The file of an agent that this user may not read is
// passed over, unless it was named.
func (a *app) controllerConfig() (config.Config, error) {
	s := config.Sources{File: a.configFile, Environ: a.environ}
	if a.url != "" {
		s.Flags = map[string]config.Flag{"rpc.url": {Name: "rpc-url", Value: a.url}}
	}
	if s.File == "" {
		s.ReadAll = readable
	}
	l, err := config.Load(s)
	if err != nil {
		return config.Config{}, err
	}
	if l.RPC.IsEmbedded() { // the agent's own server, seen from outside
		l.RPC.URL = "nats://" + l.RPC.Listen
	}
	return l.Config, nil
}

func readable(path string) ([]byte, error) {
	raw, err := os.ReadFile(path) //nolint:gosec // the path is the fixed default
	if errors.Is(err, fs.ErrPermission) {
		return nil, fs.ErrNotExist
	}
	return raw, err
}

// unreachable says where NATS was looked for and how to get one.
func (a *app) unreachable(err error, url string) error {
	if !fault.Retryable(err) {
		return err
	}
	return fault.New(fault.Unavailable, "", "NATS at "+url, "it can't be reached").Because(err).
		WithHint("start an agent with its own server (`compute-agent run --driver fake --rpc-url embedded`) or `nats-server -js`; " +
			"for another address use --rpc-url or COMPUTE_AGENT_RPC_URL")
}
