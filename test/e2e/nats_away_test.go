package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/natstest"
)

// A server that restarts, and one that moves to another port with its store, in the
// middle of much work: the guest is not touched, the work goes on, and every request
// has its whole story in the event stream, in order, once.
func TestServerRestartsAndMoves(t *testing.T) {
	store, from, to := t.TempDir(), natstest.FreeAddress(t), natstest.FreeAddress(t)
	urls := []string{"nats://" + from, "nats://" + to}
	first, second := serverFile(t, from, store, ""), serverFile(t, to, store, "")
	s := natstest.InsideReady(t, first)
	t.Cleanup(func() { natstest.End(s) })
	hosts := []string{"node1.example", "node2.example"}
	setUp(t, quick(urls...), hosts...)
	r := newRig(t, func(ctx context.Context, name string) (rpc.Transport, error) {
		cfg := quick(urls...)
		cfg.Name, cfg.InboxPrefix = name, rpc.InboxOf(name)
		return rpc.Dial(ctx, cfg)
	}, hosts...)
	guest := spec("web1")
	task, err := r.c.BuildAndRunInstance(t.Context(), hosts[0], guest)
	done(t, task, err)
	for round, next := range []string{first, second} { // restarts where it was, then moves
		var tasks []*controller.Task
		for range 20 {
			for _, cast := range []func(context.Context, string) (*controller.Task, error){r.c.PauseInstance, r.c.UnpauseInstance} {
				task, err := cast(t.Context(), guest.UUID)
				if err != nil {
					t.Fatal(err)
				}
				tasks = append(tasks, task)
			}
		}
		natstest.End(s)
		if a := r.World.Audit(); len(a) != 0 {
			t.Errorf("while the bus is away: %v", a)
		}
		s = natstest.InsideReady(t, next)
		for _, task := range tasks {
			done(t, task, nil)
		}
		r.stories(t, tasks)
		r.settled(t, guest, hosts[round%2], uint64(round)+1)
		task, err := r.c.LiveMigration(t.Context(), guest.UUID, api.MigrateArgs{Dest: hosts[(round+1)%2]})
		done(t, task, err)
	}
	r.settled(t, guest, hosts[0], 3)
}

// stories reads the whole event stream: each task was accepted, ran and succeeded
// once, and they ended in the order in which they were sent. A cast that was sent
// again was told its last state again.
func (r *rig) stories(t *testing.T, tasks []*controller.Task) {
	t.Helper()
	reader, err := r.bus.Events(t.Context(), rpc.EventFilter{Kind: api.EventTask, From: rpc.FromAll})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	var want, ended []string
	left := map[string]bool{}
	for _, task := range tasks {
		want = append(want, task.RequestID())
		left[task.RequestID()] = true
	}
	stories := map[string][]api.TaskState{}
	for len(left) > 0 {
		raw, err := reader.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var e api.TaskEvent
		if err := json.Unmarshal(raw.Body, &e); err != nil {
			t.Fatal(err)
		}
		if !left[e.RequestID] {
			if told := stories[e.RequestID]; len(told) > 0 && told[len(told)-1] != e.State {
				t.Errorf("%s: %s after its end", e.RequestID, e.State)
			}
			continue
		}
		if told := stories[e.RequestID]; len(told) == 0 || told[len(told)-1] != e.State {
			stories[e.RequestID] = append(told, e.State)
		}
		if e.State.Ended() {
			delete(left, e.RequestID)
			ended = append(ended, e.RequestID)
		}
	}
	if d := cmp.Diff(want, ended); d != "" {
		t.Errorf("they ended in another order (-sent +ended):\n%s", d)
	}
	for id, states := range stories {
		if got := fmt.Sprint(states); got != "[accepted running succeeded]" {
			t.Errorf("%s: %s", id, got)
		}
	}
}
