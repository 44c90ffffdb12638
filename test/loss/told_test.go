package loss_test

import (
	"encoding/json"
	"sync"

	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// told is what the event stream says of each request.
type told struct {
	mu    sync.Mutex
	ends  map[string]map[api.TaskState]bool // the different ends of a request, one it should be
	errs  map[string]string
	count int64 // requests that have ended
}

func (o *told) note(e api.TaskEvent) {
	if !e.State.Ended() {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ends[e.RequestID] == nil {
		o.ends[e.RequestID] = map[api.TaskState]bool{}
		o.count++
	}
	o.ends[e.RequestID][e.State] = true
	if e.Error != nil {
		o.errs[e.RequestID] = e.Error.Error()
	}
}

func (o *told) ended(request string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.ends[request]) > 0
}

func (o *told) all() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

// follow reads the events of tasks until the run is over; a reader that breaks is
// replaced by one that goes on behind it.
func (r *rig) follow(c rpc.Transport) {
	last := uint64(0)
	for {
		filter := rpc.EventFilter{Kind: api.EventTask, From: rpc.FromAll}
		if last > 0 {
			filter.Sequence = last + 1
		}
		reader, err := c.Events(r.ctx, filter)
		for err == nil {
			var e rpc.Event
			if e, err = reader.Next(r.ctx); err != nil {
				break
			}
			last = e.Sequence
			var te api.TaskEvent
			if err := json.Unmarshal(e.Body, &te); err != nil {
				r.t.Errorf("event %d: %v", e.Sequence, err)
			}
			r.told.note(te)
		}
		if reader != nil {
			_ = reader.Close()
		}
		if !r.retry(err) {
			return
		}
	}
}
