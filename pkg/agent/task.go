package agent

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/compute-agent/compute-agent/internal/jsonkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

/*
Task is one accepted request that changes something, as the journal keeps it. A
request id is a task once and for ever: what comes again with the same id gets
the same outcome.

	accepted ─▶ running ─▶ succeeded | failed
	   │           └──── the agent stopped: running again at the next start
	   └─▶ refused
*/
type Task struct {
	ID         string          `json:"id"`       // the request id
	Order      uint64          `json:"order"`    // its place among the tasks of this host
	Sequence   uint64          `json:"sequence"` // of its message in the stream; 0 for a call
	Style      api.Style       `json:"style"`
	Method     string          `json:"method"`
	Instance   string          `json:"instance,omitempty"`
	Migration  string          `json:"migration,omitempty"`
	Args       json.RawMessage `json:"args"`
	Trace      string          `json:"trace,omitempty"`
	State      api.TaskState   `json:"state"`
	DomainID   int             `json:"domain_id,omitempty"` // the hypervisor's number before a reboot: a higher one means it was done
	Result     json.RawMessage `json:"result,omitempty"`
	Error      *fault.Error    `json:"error,omitempty"`
	AcceptedAt time.Time       `json:"accepted_at"`
	EndedAt    time.Time       `json:"ended_at,omitzero"`
}

// AppendJSON writes the task as encoding/json does, without its second pass.
func (t Task) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	o.String("id", t.ID)
	o.Uint("order", t.Order)
	o.Uint("sequence", t.Sequence)
	o.String("style", string(t.Style))
	o.String("method", t.Method)
	o.Some("instance", t.Instance)
	o.Some("migration", t.Migration)
	o.Raw("args", t.Args)
	o.Some("trace", t.Trace)
	o.String("state", string(t.State))
	if t.DomainID != 0 {
		o.Int("domain_id", t.DomainID)
	}
	if len(t.Result) > 0 {
		o.Raw("result", t.Result)
	}
	if t.Error != nil {
		o.Any("error", t.Error)
	}
	o.Time("accepted_at", t.AcceptedAt)
	if !t.EndedAt.IsZero() {
		o.Time("ended_at", t.EndedAt)
	}
	return o.Close()
}

// same reports whether a message asks for what the task was made from.
func (t Task) same(m *rpc.Message) bool {
	return t.Method == m.Method && bytes.Equal(compact(t.Args), compact(m.Args))
}

// compact brings a body into one form, so that white space makes no difference.
func compact(raw []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return raw
	}
	return b.Bytes()
}

// event is the task's event in its present state.
func (t Task) event(host string, at time.Time) api.TaskEvent {
	return api.TaskEvent{
		RequestID: t.ID, Method: t.Method, Host: host, Instance: t.Instance, Migration: t.Migration,
		State: t.State, Result: t.Result, Error: t.Error, At: at,
	}
}

// reply is what a call gets once its task has ended.
func (t Task) reply() rpc.Reply {
	if t.Error != nil {
		return rpc.Reply{Err: t.Error}
	}
	if len(t.Result) == 0 {
		return rpc.Reply{Body: []byte("{}")}
	}
	return rpc.Reply{Body: t.Result}
}

// job is a task that is being carried out.
type job struct {
	task    *Task // its own
	args    any
	inst    *instance.Instance // the record at its begin, the ledger's own or a copy: nobody changes it; zero when there is none
	out     outcome            // of the verb
	held    bool               // it has its instance's lane
	begun   bool               // and its begin stands in the journal
	resumed bool               // the agent stopped in the middle of an earlier try
	fresh   bool               // the record was made by this task
	refused bool               // a build that was refused before anything was made: its record goes
}

// outcome is what a verb leaves behind when it succeeded.
type outcome struct {
	result any                      // the task's result; nil: none
	change func(*instance.Instance) // made to the record in the transaction that ends the task
	remove bool                     // the record goes
	event  string                   // name of the instance event; empty: none
	detail string                   // of that event
}
