package e2e_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// servers are the NATS servers that the least privilege is tried on.
var servers = []struct {
	name string
	run  func(*testing.T, string) *bus
}{{"inside", natsInside}, {"outside", natsOutside}}

// The main job, each agent and the controller with a credential that may do what
// nats-permissions prints and nothing else; and nobody is refused anything.
func TestLeastPrivilegeMainJob(t *testing.T) {
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			b := s.run(t, leastPrivilege(t, "controller", "node1.example", "node2.example"))
			setUp(t, b.as("controller"), "node1.example", "node2.example")
			var refused refusals
			mainJob(t, newRig(t, func(ctx context.Context, name string) (rpc.Transport, error) {
				cfg := b.as(name)
				cfg.OnError = refused.note(name)
				return rpc.Dial(ctx, cfg)
			}, "node1.example", "node2.example"))
			if all := refused.all(); len(all) != 0 {
				t.Errorf("somebody asked for more than it may:\n%s", strings.Join(all, "\n"))
			}
		})
	}
}

// refusals collects what servers refuse.
type refusals struct {
	mu   sync.Mutex
	list []string
}

func (r *refusals) note(name string) func(error) {
	return func(err error) {
		if errors.Is(err, fault.Unauthorized) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.list = append(r.list, name+": "+err.Error())
		}
	}
}

func (r *refusals) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.list...)
}

// raw is a NATS client of its own: what somebody with a stolen credential has.
type raw struct {
	*nats.Conn
	name    string
	refused chan string
}

func newRaw(t *testing.T, b *bus, name string) *raw {
	t.Helper()
	r := &raw{name: name, refused: make(chan string, 64)}
	nc, err := nats.Connect(b.url, nats.UserInfo(name, password), nats.CustomInboxPrefix(rightsOf(t, name).InboxPrefix),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { r.refused <- err.Error() }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	r.Conn = nc
	return r
}

// mayNot publishes and subscribes to what the server has to refuse.
func (r *raw) mayNot(t *testing.T, verb, subject string) {
	t.Helper()
	var err error
	if verb == "subscribe" {
		_, err = r.SubscribeSync(subject)
	} else {
		err = r.Publish(subject, []byte("{}"))
	}
	if err == nil {
		err = r.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	select {
	case text := <-r.refused:
		if !strings.Contains(strings.ToLower(text), "permissions violation") || !strings.Contains(text, subject) {
			t.Errorf("%s, %s %s: %s", r.name, verb, subject, text)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("%s may %s %s, and must not", r.name, verb, subject)
	}
}

// hostMayNot is what node1's credential is refused, by what it would be.
var hostMayNot = []struct{ what, verb, subject string }{
	{"serve another host's calls", "subscribe", "compute.call.node2.*"},
	{"serve all calls", "subscribe", "compute.call.*.*"},
	{"listen to all", "subscribe", ">"},
	{"listen to others' casts", "subscribe", "compute.cast.node2.*"},
	{"listen to controllers' answers", "subscribe", "_INBOX.>"},
	{"listen to another host's answers", "subscribe", "_INBOX_node2.>"},
	{"publish another host's events", "publish", "compute.event.node2.task.x"},
	{"write another host's view", "publish", "$KV.COMPUTE_HOSTS.node2"},
	{"write another host's instance", "publish", "$KV.COMPUTE_INSTANCES.node2.x"},
	{"write another host's migration", "publish", "$KV.COMPUTE_MIGRATIONS.node2.x"},
	{"cast to another host", "publish", "compute.cast.node2.terminate_instance"},
	{"cast to itself", "publish", "compute.cast.node1.terminate_instance"},
	{"call what only a controller calls", "publish", "compute.call.node2.show_instance"},
	{"disable another host", "publish", "compute.call.node2.set_host_enabled"},
	{"carry out a cast by a call", "publish", "compute.call.node2.terminate_instance"},
	{"pull another host's casts", "publish", "$JS.API.CONSUMER.MSG.NEXT.COMPUTE_CASTS.node2"},
	{"look at another host's consumer", "publish", "$JS.API.CONSUMER.INFO.COMPUTE_CASTS.node2"},
	{"acknowledge another host's casts", "publish", "$JS.ACK.COMPUTE_CASTS.node2.1.1.1.1.0"},
	{"create a consumer on casts", "publish", "$JS.API.CONSUMER.CREATE.COMPUTE_CASTS"},
	{"create a named consumer on casts", "publish", "$JS.API.CONSUMER.CREATE.COMPUTE_CASTS.evil.compute.cast.node1.*"},
	{"create its durable anew", "publish", "$JS.API.CONSUMER.DURABLE.CREATE.COMPUTE_CASTS.node1"},
	{"create a consumer on events", "publish", "$JS.API.CONSUMER.CREATE.COMPUTE_EVENTS.evil.compute.event.node1.*.*"},
	{"create a consumer on its own views", "publish", "$JS.API.CONSUMER.CREATE.KV_COMPUTE_HOSTS.evil.$KV.COMPUTE_HOSTS.node1"},
	{"delete a consumer", "publish", "$JS.API.CONSUMER.DELETE.COMPUTE_CASTS.node2"},
	{"read a message of the casts", "publish", "$JS.API.STREAM.MSG.GET.COMPUTE_CASTS"},
	{"have a stored message sent on with its headers", "publish", "$JS.API.DIRECT.GET.KV_COMPUTE_HOSTS.$KV.COMPUTE_HOSTS.node1"},
	{"purge a stream", "publish", "$JS.API.STREAM.PURGE.COMPUTE_CASTS"},
	{"delete a stream", "publish", "$JS.API.STREAM.DELETE.COMPUTE_EVENTS"},
	{"change a stream", "publish", "$JS.API.STREAM.UPDATE.COMPUTE_CASTS"},
	{"ask for services", "publish", "$SRV.INFO"},
}

// controllerMayNot is what a controller's credential is refused.
var controllerMayNot = []struct{ what, verb, subject string }{
	{"publish events", "publish", "compute.event.node1.task.x"},
	{"write a host's view", "publish", "$KV.COMPUTE_HOSTS.node1"},
	{"write an instance's view", "publish", "$KV.COMPUTE_INSTANCES.node1.x"},
	{"serve as a host", "subscribe", "compute.call.node1.*"},
	{"answer for a service", "subscribe", "$SRV.INFO"},
	{"listen to a host's answers", "subscribe", "_INBOX_node1.>"},
	{"listen to all", "subscribe", ">"},
	{"pull a host's casts", "publish", "$JS.API.CONSUMER.MSG.NEXT.COMPUTE_CASTS.node1"},
	{"acknowledge a host's casts", "publish", "$JS.ACK.COMPUTE_CASTS.node1.1.1.1.1.0"},
	{"make a consumer on all casts", "publish", "$JS.API.CONSUMER.CREATE.COMPUTE_CASTS"},
	{"delete a host's consumer", "publish", "$JS.API.CONSUMER.DELETE.COMPUTE_CASTS.node1"},
	{"delete a stream", "publish", "$JS.API.STREAM.DELETE.COMPUTE_CASTS"},
	{"purge a stream", "publish", "$JS.API.STREAM.PURGE.COMPUTE_EVENTS"},
}

// Each thing that a credential must not do is refused by the server.
func TestLeastPrivilegeRefuses(t *testing.T) {
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			b := s.run(t, leastPrivilege(t, "controller", "node1", "node2"))
			setUp(t, b.as("controller"), "node1", "node2")
			node, ctl := newRaw(t, b, "node1"), newRaw(t, b, "controller")
			for _, c := range hostMayNot {
				t.Run("host/"+c.what, func(t *testing.T) { node.mayNot(t, c.verb, c.subject) })
			}
			for _, c := range controllerMayNot {
				t.Run("controller/"+c.what, func(t *testing.T) { ctl.mayNot(t, c.verb, c.subject) })
			}
		})
	}
}

// A server sends what a request asks for to any subject that the request names as
// its reply, and permissions don't cover that. So agents and readers refuse what
// comes that way: no call, no cast and no view of another host is made of it.
func TestReflectedMessages(t *testing.T) {
	b := natsInside(t, leastPrivilege(t, "controller", "node1.example", "node2.example"))
	setUp(t, b.as("controller"), "node1.example", "node2.example")
	r := newRig(t, func(ctx context.Context, name string) (rpc.Transport, error) { return rpc.Dial(ctx, b.as(name)) }, "node1.example", "node2.example")
	ctx, s := t.Context(), spec("web1")
	task, err := r.c.BuildAndRunInstance(ctx, "node2.example", s)
	done(t, task, err)
	if err := r.Host("node1.example").Stop(ctx); err != nil {
		t.Fatal(err)
	}
	// a cast that node1 may read, and that would hurt on node2
	args, err := rpc.JSON(api.InstanceArgs{Instance: s.UUID})
	if err != nil {
		t.Fatal(err)
	}
	thief := newRaw(t, b, "node1.example")
	pull := "$JS.API.CONSUMER.MSG.NEXT.COMPUTE_CASTS.node1=2Eexample"
	for _, target := range []string{
		"compute.call.node2=2Eexample.terminate_instance", "compute.cast.node2=2Eexample.terminate_instance",
		"compute.call.node2=2Eexample.set_host_enabled", "$KV.COMPUTE_HOSTS.node2=2Eexample",
		"compute.event.node2=2Eexample.task." + s.UUID,
	} {
		m := rpc.Message{Method: api.TerminateInstance, RequestID: "9b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b", Version: api.Version, Args: args}
		if err := r.bus.Cast(ctx, "node1.example", m); err != nil {
			t.Fatal(err)
		}
		for _, body := range []string{`{"batch":1,"no_wait":true}`, `{"batch":1,"expires":100000000,"idle_heartbeat":40000000}`} {
			if err := thief.PublishRequest(pull, target, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
		// an event's acknowledgement, sent on
		if err := thief.PublishRequest("compute.event.node1=2Eexample.host.x", target, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if err := thief.Flush(); err != nil {
		t.Fatal(err)
	}
	// what was sent before is read before: node2's next task is behind all of it
	c := controller.New(r.bus, controller.Options{Force: true}) // node2's report may be spoilt until the next one
	task, err = c.PauseInstance(ctx, s.UUID)
	done(t, task, err)
	task, err = c.UnpauseInstance(ctx, s.UUID)
	done(t, task, err)
	r.eventually(t, "node2 to report again", func() bool { _, err := r.c.UpHost(ctx, "node2.example"); return err == nil })
	h, err := r.c.GetHostInfo(ctx, "node2.example")
	if err != nil || !h.Enabled {
		t.Errorf("node2 after the attack: enabled %v, %v", h.Enabled, err)
	}
	if i, err := r.c.ShowInstance(ctx, s.UUID); err != nil || i.Host != "node2.example" || i.TaskState != "" {
		t.Errorf("the instance after the attack: %+v, %v", i, err)
	}
}
