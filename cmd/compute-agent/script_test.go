package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/pkg/controller/controllertest"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

const (
	web1 = "0b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"
	web2 = "1b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"
)

// rig is what a script works on: two hosts, web1 on the first.
type rig struct {
	bus   *rpc.Bus
	fleet *controllertest.Fleet
	code  int // of the last command
}

// TestScripts runs testdata/script: each is a person at a shell.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			bus := rpc.NewBus()
			r := &rig{bus: bus, fleet: controllertest.NewFleet(t, bus.Connect("agents"), "node1", "node2")}
			r.fleet.Add(t, "node1", "web1", web1)
			env.Values["rig"] = r
			env.Setenv("WEB1", web1)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"compute-agent": runScript, "code": checkCode, "fleet": func(ts *testscript.TestScript, _ bool, args []string) { steer(t, ts, args) },
		},
	})
}

func rigOf(ts *testscript.TestScript) *rig {
	r, ok := ts.Value("rig").(*rig)
	if !ok {
		ts.Fatalf("no rig")
	}
	return r
}

// runScript is the program itself. INTERRUPT='50ms 1s' in the environment is a Ctrl-C
// after so long and one more, TERMINAL=1 a terminal, ASKS=1 a person at it, NATS=away
// a bus that can't be reached.
func runScript(ts *testscript.TestScript, neg bool, args []string) {
	r := rigOf(ts)
	environ := []string{}
	for _, name := range []string{"COMPUTE_AGENT_RPC_URL", "COMPUTE_AGENT_LOG_LEVEL", "COMPUTE_AGENT_CONFIG", "COMPUTE_AGENT_LGO_LEVEL", "COMPUTE_AGENT_AGENT_SERVICE_DOWN_TIME"} {
		if v := ts.Getenv(name); v != "" {
			environ = append(environ, name+"="+v)
		}
	}
	for i, arg := range args { // files of the script, as a shell's working directory has them
		if strings.HasPrefix(arg, "./") {
			args[i] = ts.MkAbs(arg)
		}
		if strings.HasPrefix(arg, "@./") {
			args[i] = "@" + ts.MkAbs(arg[1:])
		}
	}
	a := newApp(strings.NewReader(ts.Getenv("STDIN")), ts.Stdout(), ts.Stderr(), environ)
	a.terminal = ts.Getenv("TERMINAL") != ""
	a.asks = ts.Getenv("ASKS") != ""
	a.dial = func(context.Context, config.RPC) (rpc.Transport, error) {
		if ts.Getenv("NATS") == "away" {
			return nil, fault.New(fault.Unavailable, "", "", "connection refused")
		}
		return r.bus.Connect("controller"), nil
	}
	a.agent = func(_ context.Context, c config.Config) error {
		_, err := fmt.Fprintf(a.out, "run %s %s %d hosts %s %s\n", c.Agent.Host, c.Agent.Driver, c.Fake.Hosts, c.RPC.URL, c.Log.Level)
		return err
	}
	ctx := context.Background()
	if after := ts.Getenv("INTERRUPT"); after != "" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		signals := make(chan os.Signal, 2)
		a.interrupts = func() (<-chan os.Signal, func()) { return signals, func() {} }
		for field := range strings.FieldsSeq(after) {
			d, err := time.ParseDuration(field)
			ts.Check(err)
			timer := time.AfterFunc(d, func() {
				cancel()
				signals <- os.Interrupt
			})
			defer timer.Stop()
		}
	}
	r.code = a.execute(ctx, args)
	if neg == (r.code == exitOK) {
		ts.Fatalf("exit code %d", r.code)
	}
}

func checkCode(ts *testscript.TestScript, _ bool, args []string) {
	if want, err := strconv.Atoi(args[0]); err != nil || rigOf(ts).code != want {
		ts.Fatalf("exit code %d, want %s", rigOf(ts).code, args[0])
	}
}

// steer changes what the agents do.
func steer(t *testing.T, ts *testscript.TestScript, args []string) {
	t.Helper()
	r := rigOf(ts)
	switch args[0] {
	case "step": // of a migration
		d, err := time.ParseDuration(args[1])
		ts.Check(err)
		r.fleet.SetStep(d)
	case "off": // an instance
		r.fleet.Set(t, args[1], instance.VMStopped)
	case "broken": // migrations to a host fail
		r.fleet.Break(args[1], fault.New(fault.Internal, "live_migration", "", args[2]))
	case "busy": // DEST is busy so many times
		n, err := strconv.Atoi(args[2])
		ts.Check(err)
		r.fleet.Judge(busy(args[1], n))
	case "down":
		r.fleet.Report(t, args[1], time.Now().Add(-5*time.Minute))
	case "add":
		id := web2
		if len(args) > 3 {
			id = args[3]
		}
		r.fleet.Add(t, args[1], args[2], id)
	case "refuse": // METHOD KIND MESSAGE HINT
		r.fleet.Refuse(args[1], fault.New(fault.Kind(args[2]), args[1], "", args[3]).WithHint("%s", args[4]).WithDetail("reasons", []any{"no room", "no bridge br7"}))
	default:
		ts.Fatalf("fleet %s?", args[0])
	}
}

// busy says of a destination that it is busy, n times.
func busy(dest string, n int) func(string, rpc.Message) *fault.Error {
	var left atomic.Int64
	left.Store(int64(n))
	return func(_ string, m rpc.Message) *fault.Error {
		if m.Method != api.CheckMigrateSource || !strings.Contains(string(m.Args), `"dest":"`+dest+`"`) || left.Add(-1) < 0 {
			return nil
		}
		return fault.New(fault.Busy, "live_migration", dest, "all 2 inbound migration slots are taken").WithDetail("retry_after_seconds", 1)
	}
}
