package rpc_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// An entry that is rewritten all the time is in every list: whoever looks an
// instance up while its host reports on it finds it.
func TestListWhileRewritten(t *testing.T) {
	for name, s := range map[string]func(*testing.T) *natsServer{"inside": embeddedServer, "outside": externalServer} {
		t.Run(name, func(t *testing.T) {
			server := s(t)
			agent, ctl := dial(t, testConfig(server.url)), dial(t, testConfig(server.url))
			for _, other := range []string{"a", "b", "c"} {
				if err := agent.Put(t.Context(), rpc.Instances, []string{"node1", other}, []byte("{}")); err != nil {
					t.Fatal(err)
				}
			}
			stop, stopped := make(chan struct{}), make(chan struct{})
			defer func() { close(stop); <-stopped }()
			written := make(chan struct{})
			go func() {
				defer close(stopped)
				for i := 0; ; i++ {
					if err := agent.Put(t.Context(), rpc.Instances, []string{"node1", "x"}, []byte("{}")); err != nil {
						t.Error(err)
						return
					}
					if i == 0 {
						close(written)
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			}()
			<-written
			for i := range 300 {
				for _, pattern := range [][]string{{"*", "x"}, {"node1", "x"}, {"*", "*"}, {"node1", "*"}} {
					list, err := ctl.List(t.Context(), rpc.Instances, pattern)
					found := false
					for _, e := range list {
						found = found || e.Key[1] == "x"
					}
					if err != nil || !found {
						t.Fatalf("list %d of %v = %d entries, %v; x is not among them", i, pattern, len(list), err)
					}
				}
			}
		})
	}
}

// A server that can't say which entries there are has not said that these are all.
func TestListIsNotCutShort(t *testing.T) {
	url := "nats://" + inside(t, &server.Options{})
	nc, _ := admin(t, url)
	for subject, answer := range map[string]string{ // what JetStream answers while it has no leader
		"$JS.API.STREAM.MSG.GET.*": `{"message":{"subject":"$KV.COMPUTE_INSTANCES.node1.x","seq":1,"data":"e30="}}`,
		"$JS.API.STREAM.INFO.*":    `{"type":"io.nats.jetstream.api.v1.stream_info_response","error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}`,
	} {
		if _, err := nc.Subscribe(subject, func(m *nats.Msg) { _ = m.Respond([]byte(answer)) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(url)
	cfg.AutoSetup = false
	list, err := dial(t, cfg).List(t.Context(), rpc.Instances, []string{"node1", "*"})
	if !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "503") {
		t.Errorf("List = %v, %v, want unavailable with what the server said", list, err)
	}
}
