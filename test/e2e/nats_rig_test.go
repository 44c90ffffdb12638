package e2e_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/natstest"
)

// bus is a NATS server that a test can stop and start again.
type bus struct {
	url         string // without credentials
	stop, start func(t *testing.T)
}

// serverFile writes a configuration: address, store and what the caller adds.
func serverFile(t *testing.T, address, store, more string) string {
	t.Helper()
	return natstest.File(t, natstest.Config(address, store, more))
}

// natsInside runs a server in this process.
func natsInside(t *testing.T, more string) *bus {
	t.Helper()
	address := natstest.FreeAddress(t)
	file := serverFile(t, address, t.TempDir(), more)
	b := &bus{url: "nats://" + address}
	var s *server.Server
	b.start = func(t *testing.T) {
		t.Helper()
		s = natstest.InsideReady(t, file)
	}
	b.stop = func(*testing.T) { natstest.End(s) }
	b.start(t)
	t.Cleanup(func() { b.stop(t) })
	return b
}

// natsOutside runs the nats-server of this machine with the same file.
func natsOutside(t *testing.T, more string) *bus {
	t.Helper()
	address := natstest.FreeAddress(t)
	file := serverFile(t, address, t.TempDir(), more)
	b := &bus{url: "nats://" + address}
	var p *natstest.Process
	b.start = func(t *testing.T) {
		t.Helper()
		p = natstest.Outside(t, file, address, "not tried on an external server")
	}
	b.stop = func(t *testing.T) { t.Helper(); p.End(t, syscall.SIGINT) }
	b.start(t)
	t.Cleanup(func() { b.stop(t) })
	return b
}

// waitFor polls until ok, and fails the test after 20 s.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	give := time.NewTimer(20 * time.Second)
	defer give.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-give.C:
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}

// password of every user of these tests.
const password = "s3cret"

// rightsOf gives the rights that nats-permissions prints.
func rightsOf(t *testing.T, name string) rpc.Rights {
	t.Helper()
	role := rpc.RoleHost
	if name == "controller" {
		role = rpc.RoleController
	}
	r, err := rpc.Permissions(rpc.DefaultPrefix, role, name, api.PeerMethods()...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// leastPrivilege is the server's configuration for users with these names.
func leastPrivilege(t *testing.T, names ...string) string {
	t.Helper()
	var users strings.Builder
	for _, name := range names {
		users.WriteString(rightsOf(t, name).Config(rpc.Identity{User: name, Password: password}))
	}
	return "authorization { users: [\n" + users.String() + "] }"
}

// as gives the configuration of a connection that logs in with a name.
func (b *bus) as(name string) rpc.Config {
	cfg := quick(strings.Replace(b.url, "//", "//"+name+":"+password+"@", 1))
	cfg.Name = name
	if name != "controller" {
		cfg.InboxPrefix = rpc.InboxOf(name)
	}
	return cfg
}

// quick is a configuration with short waits.
func quick(urls ...string) rpc.Config {
	return rpc.Config{
		URLs: urls, AckWait: time.Second, Heartbeat: 500 * time.Millisecond, ReconnectLimit: 100 * time.Millisecond,
		PingInterval: time.Second, PublishTimeout: 2 * time.Second,
	}
}

// connect dials and closes with the test.
func connect(t *testing.T, cfg rpc.Config) rpc.Transport {
	t.Helper()
	c, err := rpc.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// setUp makes streams, buckets and consumers with the controller's credential.
func setUp(t *testing.T, cfg rpc.Config, hosts ...string) {
	t.Helper()
	if err := rpc.Setup(t.Context(), connect(t, cfg), hosts...); err != nil {
		t.Fatal(err)
	}
}
