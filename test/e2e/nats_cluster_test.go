package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/natstest"
)

// cluster is three NATS servers, called n0, n1, n2.
type cluster struct {
	urls  []string
	kill  []func(t *testing.T) // as suddenly as it can
	start []func(t *testing.T)
}

const clusterSize = 3

// newCluster starts three servers; run starts one from its file and gives what ends it.
func newCluster(t *testing.T, run func(t *testing.T, file, address string) (kill func(*testing.T))) *cluster {
	t.Helper()
	c := &cluster{kill: make([]func(*testing.T), clusterSize), start: make([]func(*testing.T), clusterSize)}
	addresses, routes := make([]string, clusterSize), make([]string, clusterSize)
	for i := range addresses {
		addresses[i], routes[i] = natstest.FreeAddress(t), natstest.FreeAddress(t)
		c.urls = append(c.urls, "nats://"+addresses[i])
	}
	for i := range addresses {
		more := fmt.Sprintf("server_name: n%d\ncluster { name: c, listen: %q, routes: [\"nats://%s\"] }", i, routes[i], strings.Join(routes, `", "nats://`))
		file := serverFile(t, addresses[i], filepath.Join(t.TempDir(), "js"), more)
		c.start[i] = func(t *testing.T) {
			t.Helper()
			c.kill[i] = run(t, file, addresses[i])
		}
		c.start[i](t)
	}
	t.Cleanup(func() {
		for _, kill := range c.kill {
			kill(t)
		}
	})
	return c
}

// killOnce makes the end of a server safe to ask for twice.
func killOnce(end func()) func(*testing.T) {
	once := sync.OnceFunc(end)
	return func(*testing.T) { once() }
}

func insideNode(t *testing.T, file, _ string) func(*testing.T) {
	t.Helper()
	s := natstest.Inside(t, file)
	return killOnce(func() { natstest.End(s) })
}

// outsideNode is a process of its own, ended by SIGKILL.
func outsideNode(t *testing.T, file, address string) func(*testing.T) {
	t.Helper()
	p := natstest.Outside(t, file, address, "a server is not killed with SIGKILL")
	return func(t *testing.T) { t.Helper(); p.End(t, syscall.SIGKILL) }
}

// ready waits until the cluster keeps streams.
func (c *cluster) ready(t *testing.T, batches rpc.Batches, hosts ...string) {
	t.Helper()
	cfg := quick(c.urls...)
	cfg.Replicas, cfg.Batches = clusterSize, batches
	var last error
	waitFor(t, "the cluster to make streams", func() bool {
		bus, err := rpc.Dial(t.Context(), cfg)
		if err == nil {
			err = rpc.Setup(t.Context(), bus, hosts...)
			_ = bus.Close()
		}
		if last = err; err != nil {
			t.Logf("not yet: %v", last)
		}
		return err == nil
	})
}

// streams looks at all streams: how many copies each keeps, and who leads it; -1: nobody.
func (c *cluster) streams(t *testing.T) (copies, leaders map[string]int) {
	t.Helper()
	nc, err := nats.Connect(strings.Join(c.urls, ","))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	copies, leaders = map[string]int{}, map[string]int{}
	for _, name := range []string{"COMPUTE_CASTS", "COMPUTE_EVENTS", "KV_COMPUTE_HOSTS", "KV_COMPUTE_INSTANCES", "KV_COMPUTE_MIGRATIONS"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		s, err := js.Stream(ctx, name)
		cancel()
		if err != nil {
			copies[name], leaders[name] = 0, -1
			return copies, leaders
		}
		info := s.CachedInfo()
		copies[name] = 1
		for _, r := range info.Cluster.Replicas {
			if r.Current && !r.Offline {
				copies[name]++
			}
		}
		if leaders[name], err = strconv.Atoi(strings.TrimPrefix(info.Cluster.Leader, "n")); err != nil {
			leaders[name] = -1
		}
	}
	return copies, leaders
}

// whole waits until each stream has all its copies, and gives the leaders.
func (c *cluster) whole(t *testing.T) (leaders map[string]int) {
	t.Helper()
	waitFor(t, "all copies of all streams", func() bool {
		var copies map[string]int
		copies, leaders = c.streams(t)
		for name, n := range copies {
			if n != clusterSize || leaders[name] < 0 {
				return false
			}
		}
		return true
	})
	return leaders
}

// A cluster of three keeps three copies of everything; the server that leads the
// casts dies among casts, and another one during a migration, and the caller sees
// no error: every task succeeds, and the guest runs exactly once where it should.
func TestClusterNodeDies(t *testing.T) {
	t.Parallel()
	t.Run("inside", func(t *testing.T) { t.Parallel(); clusterNodeDies(t, newCluster(t, insideNode), rpc.BatchesOn) })
	t.Run("outside", func(t *testing.T) {
		if _, err := exec.LookPath("nats-server"); err != nil {
			t.Skip("SKIPPED: no nats-server on PATH (apt-get install nats-server): a server is not killed with SIGKILL")
		}
		if os.Getenv("LONG") == "" {
			t.Skip("SKIPPED: servers of 2.9 need up to half a minute to elect; LONG=1 runs it")
		}
		t.Parallel()
		clusterNodeDies(t, newCluster(t, outsideNode), rpc.BatchesKeep)
	})
}

func clusterNodeDies(t *testing.T, c *cluster, batches rpc.Batches) {
	t.Helper()
	hosts := []string{"node1.example", "node2.example"}
	c.ready(t, batches, hosts...)
	leader := c.whole(t)["COMPUTE_CASTS"]
	r := newRig(t, func(ctx context.Context, name string) (rpc.Transport, error) {
		cfg := quick(c.urls...)
		cfg.Name, cfg.InboxPrefix = name, rpc.InboxOf(name)
		return rpc.Dial(ctx, cfg)
	}, hosts...)
	ctx := t.Context()
	s := spec("web0")
	task, err := r.c.BuildAndRunInstance(ctx, hosts[0], s)
	done(t, task, err)

	began := time.Now()
	killed := make(chan struct{})
	var builders sync.WaitGroup
	for n := range 4 { // each builds and deletes, before and after the death
		builders.Go(func() {
			for i := 0; ; i++ {
				one := spec(fmt.Sprintf("web-%d-%d", n, i))
				buildAndDelete(t, r, hosts[n%2], one)
				select {
				case <-killed:
					if i > 2 {
						return
					}
				default:
				}
				if t.Failed() {
					return
				}
			}
		})
	}
	c.kill[leader](t)
	close(killed)
	builders.Wait()
	t.Logf("the leader of the casts died among casts: all ended well after %s", time.Since(began).Round(time.Millisecond))
	if t.Failed() {
		return
	}
	r.settled(t, s, hosts[0], 1)
	c.start[leader](t)
	next := c.whole(t)["COMPUTE_CASTS"]

	began = time.Now()
	task, err = r.c.LiveMigration(ctx, s.UUID, api.MigrateArgs{Dest: hosts[1], BandwidthMiB: 64}) // 2 s
	if err != nil {
		t.Fatal(err)
	}
	r.eventually(t, "the migration to run", func() bool {
		m, err := r.c.FindMigration(ctx, task.Migration())
		return err == nil && m.Status == instance.MigrationRunning
	})
	c.kill[next](t)
	done(t, task, nil)
	t.Logf("a server died during a migration: it ended well after %s", time.Since(began).Round(time.Millisecond))
	r.settled(t, s, hosts[1], 2)
}

// The leader of the events dies while many of them are on their way: what was not
// confirmed is told again, and each event stands there once, in its order.
func TestClusterNodeDiesAmongEvents(t *testing.T) {
	t.Parallel()
	for _, batches := range []rpc.Batches{rpc.BatchesOn, rpc.BatchesOff} {
		t.Run(string(batches), func(t *testing.T) { t.Parallel(); clusterNodeDiesAmongEvents(t, batches) })
	}
}

func clusterNodeDiesAmongEvents(t *testing.T, batches rpc.Batches) {
	t.Helper()
	c := newCluster(t, insideNode)
	c.ready(t, batches, "node1")
	leader := c.whole(t)["COMPUTE_EVENTS"]
	cfg := quick(c.urls...)
	cfg.Batches, cfg.AckWait = batches, 10*time.Second // an election may take half of the window in which the servers know what they have
	bus := connect(t, cfg)
	setUp(t, cfg)
	events := make([]rpc.Event, 20_000)
	for i := range events {
		text := fmt.Sprint(i)
		events[i] = rpc.Event{Host: "node1", Kind: "task", ID: text, MsgID: "batched/" + text, Body: []byte(text)}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	killed := make(chan struct{})
	kill := sync.OnceFunc(func() { time.AfterFunc(10*time.Millisecond, func() { defer close(killed); c.kill[leader](t) }) })
	tries, begun := 0, time.Now()
	for told := 0; told < len(events); {
		if told >= len(events)/4 {
			kill()
		}
		n, err := bus.PublishAll(ctx, events[told:min(told+4096, len(events))])
		if told += n; err == nil {
			continue
		}
		if tries++; ctx.Err() != nil {
			t.Fatalf("after %d tries: %v", tries, err)
		}
		<-time.NewTimer(50 * time.Millisecond).C
	}
	<-killed
	t.Logf("%d events in %s, with %d errors on the way", len(events), time.Since(begun).Round(time.Millisecond), tries)
	reader, err := bus.Events(ctx, rpc.EventFilter{From: rpc.FromAll, Kind: "task"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	for i := range events {
		if e, err := reader.Next(ctx); err != nil || string(e.Body) != fmt.Sprint(i) {
			t.Fatalf("event %d is %q, %v", i, e.Body, err)
		}
	}
}

// buildAndDelete is the life of one small guest; all of it has to succeed.
func buildAndDelete(t *testing.T, r *rig, host string, s instance.Spec) {
	t.Helper()
	s.Ports = nil
	task, err := r.c.BuildAndRunInstance(t.Context(), host, s)
	if err := end(t, task, err); err != nil {
		t.Errorf("build %s: %v", s.Name, err)
		return
	}
	task, err = r.c.TerminateInstance(t.Context(), s.UUID)
	if err := end(t, task, err); err != nil {
		t.Errorf("delete %s: %v", s.Name, err)
	}
}
