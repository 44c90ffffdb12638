package loss_test

import (
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// sender is one controller: it casts, each one until the stream has it, and notes what
// must have happened in the end.
type sender struct {
	r    *rig
	c    rpc.Transport
	raw  *nats.Conn
	want map[string]*fake.Effects // by guest
	sent []rpc.Message

	paused   []string          // guests that are paused and unpaused in turn
	rebooted map[string]string // guests that are rebooted: the last reboot's request
	fleeting []string          // the guest that comes and goes, and the request that made it
}

func (r *rig) newSender() *sender {
	r.t.Helper()
	raw, err := nats.Connect("nats://"+r.address, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		r.t.Fatal(err)
	}
	return &sender{r: r, c: r.dial("sender"), raw: raw, want: map[string]*fake.Effects{}, rebooted: map[string]string{}}
}

func (s *sender) close() { s.raw.Close(); _ = s.c.Close() }

// run sends n casts: nine of ten pause and unpause guests, the others reboot, build
// and delete. No more than window of all senders' casts are under way.
func (s *sender) run(n int) {
	for range guests {
		s.paused = append(s.paused, s.build())
	}
	for range guests / 4 {
		s.rebooted[s.build()] = s.sent[len(s.sent)-1].RequestID
	}
	for i := 0; len(s.sent) < n && s.r.room(); i++ {
		switch {
		case i%10 == 0 && s.reboot():
		case i%10 == 5 && s.comeAndGo():
		default:
			s.pause(i)
		}
		if i%11 == 0 { // and something old again
			s.again(s.sent[max(0, len(s.sent)-1-i%2000)])
		}
	}
}

func (s *sender) pause(i int) {
	id := s.paused[i%len(s.paused)]
	e := s.effects(id)
	if e.Pauses == e.Unpauses {
		e.Pauses++
		s.cast(api.PauseInstance, api.InstanceArgs{Instance: id})
		return
	}
	e.Unpauses++
	s.cast(api.UnpauseInstance, api.InstanceArgs{Instance: id})
}

// reboot restarts a guest whose last restart has ended: a second one would be refused.
func (s *sender) reboot() bool {
	for id, last := range s.rebooted {
		if s.r.told.ended(last) {
			e := s.effects(id)
			e.Starts++
			e.Stops++
			s.rebooted[id] = s.cast(api.RebootInstance, api.RebootArgs{Instance: id, RebootType: "HARD"})
			return true
		}
	}
	return false
}

// comeAndGo builds a guest, and deletes it once it is built.
func (s *sender) comeAndGo() bool {
	if s.fleeting == nil {
		id := s.build()
		s.fleeting = []string{id, s.sent[len(s.sent)-1].RequestID}
		return true
	}
	id, made := s.fleeting[0], s.fleeting[1]
	if !s.r.told.ended(made) {
		return false
	}
	e := s.effects(id)
	e.Stops++
	e.Undefines++
	s.cast(api.TerminateInstance, api.InstanceArgs{Instance: id})
	s.fleeting = nil
	return true
}

func (s *sender) build() string {
	id := instance.NewUUID()
	s.effects(id).Starts++
	s.cast(api.BuildAndRunInstance, api.BuildArgs{Spec: instance.Spec{UUID: id, VCPUs: 1, MemoryMiB: 64}})
	return id
}

func (s *sender) effects(id string) *fake.Effects {
	if s.want[id] == nil {
		s.want[id] = &fake.Effects{}
	}
	return s.want[id]
}

// cast sends until the stream has it; every seventh comes a second time at once, past
// the stream's duplicate window.
func (s *sender) cast(method string, args any) (request string) {
	body, err := json.Marshal(args)
	if err != nil {
		s.r.t.Error(err)
	}
	m := rpc.Message{Method: method, RequestID: instance.NewUUID(), Args: body}
	for {
		if err = s.c.Cast(s.r.ctx, host, m); err == nil || !s.r.retry(err) {
			break
		}
	}
	s.sent = append(s.sent, m)
	s.r.sent.Add(1)
	if len(s.sent)%7 == 0 {
		s.again(m)
	}
	return m.RequestID
}

// again sends a cast without the id by which the stream knows copies.
func (s *sender) again(m rpc.Message) {
	copied := &nats.Msg{Subject: "compute.cast." + host + "." + m.Method, Data: m.Args, Header: nats.Header{"Compute-Request-Id": {m.RequestID}}}
	if err := s.raw.PublishMsg(copied); err == nil { // while the server is away there may be no room
		s.r.copies.Add(1)
	}
}
