package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/test/natstest"
)

// block gives the first indented block of a section of docs/operations.md that
// contains a text, without its indentation.
func block(t *testing.T, section, with string) string {
	t.Helper()
	raw, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(raw), "\n## "+section+"\n")
	if !found {
		t.Fatalf("docs/operations.md has no section %q", section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	var lines []string
	for line := range strings.Lines(rest + "\nend\n") {
		if text, indented := strings.CutPrefix(line, "    "); indented {
			lines = append(lines, text)
			continue
		}
		if all := strings.Join(lines, ""); strings.Contains(all, with) && lines != nil {
			return all
		}
		lines = nil
	}
	t.Fatalf("section %q has no block with %q", section, with)
	return ""
}

// documentedServers runs the cluster that docs/operations.md describes, followed to the
// letter but for names, ports and folders. It gives where the servers listen, and puts
// these addresses into a text for the documented ones.
func documentedServers(t *testing.T) (urls []string, own *strings.Replacer) {
	t.Helper()
	config := block(t, "NATS: a cluster of three", "server_name")
	var pairs, routes []string
	for i := range 3 {
		client, route := natstest.FreeAddress(t), natstest.FreeAddress(t)
		pairs = append(pairs, fmt.Sprintf("nats://nats%d:4222", i+1), "nats://"+client, fmt.Sprintf("nats://nats%d:6222", i+1), "nats://"+route)
		urls, routes = append(urls, client), append(routes, route)
	}
	own = strings.NewReplacer(pairs...)
	for i := range 3 {
		text := config
		for old, own := range map[string]string{
			"server_name: nats1": fmt.Sprintf("server_name: nats%d", i+1), "listen: 0.0.0.0:4222": "listen: " + urls[i],
			"listen: 0.0.0.0:6222": "listen: " + routes[i], "/var/lib/nats": t.TempDir(), "http: 127.0.0.1:8222": "http: " + natstest.FreeAddress(t),
		} {
			if !strings.Contains(text, old) {
				t.Fatalf("the documented configuration has no %q:\n%s", old, config)
			}
			text = strings.Replace(text, old, own, 1)
		}
		s := natstest.Inside(t, natstest.File(t, own.Replace(text)))
		t.Cleanup(func() { natstest.End(s) })
	}
	return urls, own
}

// The documented cluster and its command: streams and buckets with three copies.
func TestDocumentedCluster(t *testing.T) {
	command := strings.TrimSpace(block(t, "NATS: a cluster of three", "nats-setup"))
	urls, own := documentedServers(t)
	cli := func(line string) (out string, code int) {
		words := strings.Fields(own.Replace(line))
		var env []string
		for strings.Contains(words[0], "=") {
			env, words = append(env, words[0]), words[1:]
		}
		var o, e strings.Builder
		code = newApp(strings.NewReader(""), &o, &e, env).execute(t.Context(), words[1:])
		return o.String() + e.String(), code
	}
	until := time.Now().Add(30 * time.Second)
	out, code := cli(command)
	for code != 0 && time.Now().Before(until) { // they elect their first leader
		out, code = cli(command)
	}
	if code != 0 || !strings.Contains(out, "Consumer of node2 is in place") {
		t.Fatalf("%s = %d, %s", command, code, out)
	}
	threeCopies(t, "nats://"+urls[1])
	if out, code := cli("compute-agent host list --rpc-url nats://nats1:4222,nats://nats2:4222,nats://nats3:4222"); code != 0 || !strings.Contains(out, "No host has reported yet") {
		t.Errorf("host list = %d, %s", code, out)
	}
}

// threeCopies holds what a server has of streams and buckets.
func threeCopies(t *testing.T, url string) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	streams := js.ListStreams(t.Context())
	for s := range streams.Info() {
		if n++; s.Config.Replicas != 3 {
			t.Errorf("%s has %d copies, want 3", s.Config.Name, s.Config.Replicas)
		}
	}
	if err := streams.Err(); err != nil || n != 5 {
		t.Errorf("%d streams, %v, want 5", n, err)
	}
}
