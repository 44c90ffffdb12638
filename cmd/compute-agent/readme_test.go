package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/test/natstest"
)

// The README's quick start, line by line as it stands there: an agent that simulates its
// hosts, and every command after it, in their order.
func TestQuickStart(t *testing.T) {
	run := consoleLines(t, "Run it")
	i := slices.IndexFunc(run, func(words []string) bool { return slices.Contains(words, "embedded") })
	if i < 0 {
		t.Fatal("the README runs no agent with its own NATS")
	}
	lines := consoleLines(t, "The command line")
	if len(lines) < 5 {
		t.Fatalf("only %d commands were found", len(lines))
	}
	t.Chdir(t.TempDir()) // ./state
	address := natstest.FreeAddress(t)
	cli := func(ctx context.Context, words []string) (out string, code int) {
		var o strings.Builder
		env := []string{"COMPUTE_AGENT_RPC_EMBEDDED_LISTEN=" + address}
		if !slices.Contains(words, "embedded") {
			env = []string{"COMPUTE_AGENT_RPC_URL=nats://" + address}
		}
		code = newApp(strings.NewReader(""), &o, &o, env).execute(ctx, words)
		return o.String(), code
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan string, 1)
	go func() {
		out, code := cli(ctx, run[i])
		ended <- fmt.Sprintf("%d, %s", code, out)
	}()
	for up := ""; strings.Count(up, " up ") < 2; up, _ = cli(t.Context(), []string{"host", "list"}) {
		select {
		case how := <-ended:
			t.Fatalf("%s = %s", strings.Join(run[i], " "), how)
		case <-time.After(20 * time.Millisecond):
		}
	}
	for _, words := range lines {
		bounded, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if out, code := cli(bounded, words); code != 0 || bounded.Err() != nil {
			t.Errorf("%s = %d, %s", strings.Join(words, " "), code, out)
		}
		cancel()
	}
	stop()
	if how := <-ended; !strings.HasPrefix(how, "0, ") {
		t.Errorf("%s = %s", strings.Join(run[i], " "), how)
	}
}

// consoleLines gives the arguments of each line of a section of the README that runs this
// program.
func consoleLines(t *testing.T, section string) [][]string {
	t.Helper()
	raw, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(raw), "\n## "+section+"\n")
	if !found {
		t.Fatalf("the README has no section %q", section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	var lines [][]string
	for line := range strings.Lines(rest) {
		line, shown := strings.CutPrefix(line, "$ ")
		line, _, _ = strings.Cut(line, "#")
		if words := strings.Fields(line); shown && filepath.Base(words[0]) == "compute-agent" {
			lines = append(lines, words[1:])
		}
	}
	return lines
}
