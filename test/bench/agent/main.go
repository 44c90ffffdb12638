// Command agent measures compute-agent as a program: its start and its memory,
// calls, casts, the end of a migration, the monitors, and, as root, migrations of
// a real guest. Each bench runs its peer or its floor in the same run, in rounds
// that alternate, and prints a Markdown table of medians and ratios that can be
// pasted into docs/performance.md. docs/performance.md says what is measured how.
//
//	go run ./agent                        everything; the lab only as root
//	go run ./agent -only calls,finish     some
//	go run ./agent -rounds 3              shorter
//	go run ./agent -only lab -pairs 6     fewer migrations of the real guest
//
// It exits with 1 if a bench could not run or a target was missed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// bench is one group of measurements.
type bench struct {
	name string
	doc  string
	run  func(ctx context.Context, e *env) (report, error)
	root bool // needs root and hypervisors
}

func benches() []bench {
	return []bench{
		{name: "start", doc: "exec to READY, memory, idle CPU, stop", run: benchStart},
		{name: "calls", doc: "show_instance among 1,000 instances", run: benchCalls},
		{name: "finish", doc: "end of the hypervisor's job to the post step", run: benchFinish},
		{name: "casts", doc: "casts accepted and carried out", run: benchCasts},
		{name: "monitors", doc: "many migrations watched by one agent", run: benchMonitors},
		{name: "green", doc: "green threads beside goroutines and their pools", run: benchGreen},
		{name: "lab", doc: "migrations of a real guest beside virsh", run: benchLab, root: true},
	}
}

func main() {
	o := options{}
	only := flag.String("only", "", "run only these benches: names or regular expressions, separated by commas")
	role := flag.String("role", "", "internal: be a peer or a part of a bench")
	flag.IntVar(&o.rounds, "rounds", 7, "rounds of each group")
	flag.DurationVar(&o.window, "window", 2*time.Second, "length of one window of calls")
	flag.DurationVar(&o.idle, "idle", 60*time.Second, "how long an agent idles before its memory is read; CPU is counted over the second half")
	flag.IntVar(&o.pairs, "pairs", 20, "lab: migrations by each of the two")
	flag.StringVar(&o.binary, "bin", "", "compute-agent under test (default: build it)")
	flag.StringVar(&o.out, "out", "", "directory for the tables (default: .cache/bench of the repository)")
	flag.StringVar(&o.migrations, "migrations", "100,1000,10000", "monitors: how many are watched at once")
	flag.StringVar(&o.nats, "nats", "", "nats-server to measure with (default: the module's, in a process of its own; its streams take batches)")
	flag.StringVar(&o.profile, "profile", "", "calls, casts and monitors: write CPU profiles of the agents to this file, the host's name added; monitors: of the measurement, and what is held")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	if *role != "" {
		fail(playRole(ctx, *role, flag.Args()))
		return
	}
	ok, err := runAll(ctx, o, *only)
	stop()
	fail(err)
	if !ok {
		os.Exit(1)
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// runAll runs what was asked for; false when something failed or missed its target.
func runAll(ctx context.Context, o options, only string) (bool, error) {
	e, err := newEnv(ctx, o)
	if err != nil {
		return false, err
	}
	defer e.close()
	ok := true
	for _, b := range benches() {
		if !chosen(b.name, only) || ctx.Err() != nil {
			continue
		}
		if b.root && os.Geteuid() != 0 {
			fmt.Printf("## %s\n\nSKIPPED: %s needs root.\n\n", b.name, b.name)
			continue
		}
		good, err := runOne(ctx, e, b)
		if err != nil {
			fmt.Printf("## %s\n\nFAILED: %v\n\n", b.name, err)
		}
		ok = ok && good && err == nil
	}
	return ok, ctx.Err()
}

func runOne(ctx context.Context, e *env, b bench) (bool, error) {
	began := time.Now()
	before := machineLine()
	r, err := b.run(ctx, e)
	e.stopAll()
	if err != nil {
		return false, err
	}
	text := fmt.Sprintf("## %s: %s\n\n%s (%s at the end); %s, took %s\n\n%s\n", b.name, b.doc, before,
		load(), time.Now().UTC().Format("2006-01-02 15:04 UTC"), time.Since(began).Round(time.Second), r.markdown())
	fmt.Print(text)
	file := filepath.Join(e.out, b.name+".md")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return false, err
	}
	return r.met(), nil
}

// chosen matches a name with the list of -only.
func chosen(name, only string) bool {
	if only == "" || only == "." {
		return true
	}
	for _, pattern := range strings.Split(only, ",") {
		if ok, err := regexp.MatchString("^(?:"+pattern+")$", name); err == nil && ok {
			return true
		}
	}
	return false
}
