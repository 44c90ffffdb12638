package agent

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// states are those that the outbox tells of a request, in its order.
func (d *desk) states(id string) (out []api.TaskState) {
	d.t.Helper()
	events, bad, err := d.agent.ledger.out.next(d.agent.ledger.store)
	if err != nil || len(bad) > 0 {
		d.t.Fatal(err, bad)
	}
	for _, e := range events {
		var told api.TaskEvent
		if err := json.Unmarshal(e.Body, &told); err != nil {
			d.t.Fatal(err)
		}
		if told.RequestID == id {
			out = append(out, told.State)
		}
	}
	return out
}

// accept takes deliveries as one batch; between happens after they were judged and
// before they are journaled.
func (d *desk) accept(batch []rpc.Delivery, between func()) {
	d.t.Helper()
	plans, err := d.agent.admitBatch(batch)
	if err != nil {
		d.t.Fatal(err)
	}
	for i := range plans {
		plans[i].alone = true
	}
	between()
	if err := d.agent.ledger.commitFirst(d.t.Context(), d.agent.journal(plans, func([]plan) {})); err != nil {
		d.t.Fatal(err)
	}
}

// What is told again is the state at the moment of telling, never one before it: a
// reader that takes the last event for the truth is right at any time.
func TestToldAgainIsNeverAnOlderState(t *testing.T) {
	cases := []struct {
		name string
		args func(d *desk) api.InstanceArgs // of the second message with the id; nil: it is the first again
		one  bool                           // both come in one batch
		want []api.TaskState
	}{
		{name: "it went on between admission and journal", want: []api.TaskState{"accepted", "running", "succeeded", "succeeded"}},
		{
			name: "another one's id, which went on meanwhile", args: func(d *desk) api.InstanceArgs { return api.InstanceArgs{Instance: d.guest()} },
			want: []api.TaskState{"accepted", "running", "succeeded", "refused", "succeeded"},
		},
		{
			name: "another one's id of the same batch, which begins at once", one: true,
			args: func(d *desk) api.InstanceArgs { return api.InstanceArgs{Instance: d.guest()} },
			want: []api.TaskState{"accepted", "running", "refused", "running"},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			atDesk(t, Config{}, func(d *desk) {
				d.agent.ledger.out.begin(0)
				first := api.InstanceArgs{Instance: d.guest()}
				again := first
				if c.args != nil {
					again = c.args(d)
				}
				id := d.script.add(0, api.PauseInstance, first)
				d.script.add(0, api.PauseInstance, again)
				d.script.casts[1].RequestID = id
				parts := [][]rpc.Delivery{d.script.casts[:1], d.script.casts[1:]}
				if c.one {
					parts = [][]rpc.Delivery{d.script.casts}
				}
				d.accept(parts[0], func() {})
				if !c.one {
					d.accept(parts[1], func() { d.succeed(id) })
				}
				if diff := cmp.Diff(c.want, d.states(id)); diff != "" {
					t.Errorf("told (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// succeed ends a task in the journal.
func (d *desk) succeed(id string) {
	d.t.Helper()
	err := d.agent.ledger.commit(d.t.Context(), func(c *change) error {
		t, _, err := c.task(id)
		if err != nil {
			return err
		}
		t.State, t.EndedAt = api.TaskSucceeded, c.now
		return c.putTask(t)
	})
	if err != nil {
		d.t.Fatal(err)
	}
}
