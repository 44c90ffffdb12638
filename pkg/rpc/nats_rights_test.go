package rpc_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// rightsServer knows a controller that may do all and node1, which has the rights
// of design section 4 and no others.
func rightsServer(t *testing.T) string {
	t.Helper()
	r, err := rpc.Permissions("", rpc.RoleHost, "node1", "pre_live_migration")
	if err != nil {
		t.Fatal(err)
	}
	node := &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: r.Publish},
		Subscribe: &server.SubjectPermission{Allow: r.Subscribe},
		Response:  &server.ResponsePermission{MaxMsgs: r.Responses, Expires: r.ResponseTime},
	}
	return inside(t, &server.Options{
		JetStream: true, StoreDir: t.TempDir(),
		Users: []*server.User{{Username: "ctl", Password: "c"}, {Username: "node1", Password: "n", Permissions: node}},
	})
}

// inside starts a server in this process, on a port of its own, and gives its address.
func inside(t *testing.T, o *server.Options) string {
	t.Helper()
	o.Host, o.Port, o.NoSigs, o.NoLog = "127.0.0.1", server.RANDOM_PORT, true, true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server is not ready")
	}
	return s.Addr().String()
}

// TestHostRights holds the agent's side to the rights of a host's credential.
func TestHostRights(t *testing.T) {
	address := rightsServer(t)
	ctl := dial(t, testConfig("nats://ctl:c@"+address))
	if err := rpc.Setup(t.Context(), ctl, "node1", "node2"); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig("nats://node1:n@" + address)
	cfg.AutoSetup, cfg.InboxPrefix, cfg.PublishTimeout = false, "_INBOX_node1", 500*time.Millisecond
	refused := make(chan error, 100)
	cfg.OnError = func(err error) { refused <- err }
	agent := dial(t, cfg)
	stop, err := agent.Serve(t.Context(), rpc.ServiceInfo{Host: "node1", Version: "1.0.0"}, echoHandler)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stop() }()
	if _, err := ctl.Call(t.Context(), "node1", rpc.Message{Method: "m"}); err != nil {
		t.Errorf("Call = %v", err)
	}
	if err := ctl.Cast(t.Context(), "node1", rpc.Message{Method: "m", RequestID: "a"}); err != nil {
		t.Errorf("Cast = %v", err)
	}
	r, err := agent.Casts(t.Context(), "node1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	batch, err := r.Next(t.Context(), 10)
	if err != nil || len(batch) != 1 {
		t.Fatalf("Next = %v, %v", batch, err)
	}
	if err := batch[0].Ack(); err != nil {
		t.Error(err)
	}
	event := rpc.Event{Host: "node1", Kind: "task", ID: "a", MsgID: "a"}
	_, all := agent.PublishAll(t.Context(), []rpc.Event{event, event})
	if err := errors.Join(agent.Publish(t.Context(), event), all, agent.Put(t.Context(), rpc.Hosts, []string{"node1"}, []byte("{}"))); err != nil {
		t.Errorf("what the agent may do: %v", err)
	}
	if len(refused) != 0 {
		t.Errorf("the agent asked for more than it may: %v", <-refused)
	}
	event.Host = "node2"
	for what, err := range map[string]error{
		"an event of another host": agent.Publish(t.Context(), event),
		"a view of another host":   agent.Put(t.Context(), rpc.Hosts, []string{"node2"}, nil),
		"a cast":                   agent.Cast(t.Context(), "node2", rpc.Message{Method: "m", RequestID: "b"}),
	} {
		if err == nil {
			t.Errorf("%s was let through", what)
		}
	}
	if err := <-refused; !errors.Is(err, fault.Unauthorized) {
		t.Errorf("OnError = %v, want unauthorized", err)
	}
}
