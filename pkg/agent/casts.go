package agent

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// admitBatch judges deliveries in their order. A copy within the batch needs no
// plan: its first one decides.
func (a *Agent) admitBatch(batch []rpc.Delivery) ([]plan, error) {
	known, unread, err := a.ledger.tasks(idsOf(batch))
	if err != nil {
		return nil, err
	}
	plans := make([]plan, 0, len(batch))
	first := make(map[string]int, len(batch))
	ahead := make(earlier, len(batch))
	lane := ahead.lane(a)
	for i := range batch {
		d := &batch[i]
		p := plan{message: &d.Message, task: Task{Style: api.Cast}}
		at, twice := first[d.RequestID]
		old, isKnown := known[d.RequestID]
		switch {
		case twice && d.Malformed == nil && plans[at].task.same(&d.Message):
			continue
		case twice:
			p = a.again(p, plans[at].task)
		case isKnown:
			p = a.again(p, old)
		case unread[d.RequestID] != nil:
			p = refused(&d.Message, a.newTask(&d.Message, api.Cast, d.Sequence), unread[d.RequestID])
		default:
			p = a.admitCast(d, lane)
		}
		if !twice {
			first[d.RequestID] = len(plans)
		}
		plans = append(plans, p)
		ahead.note(&plans[len(plans)-1])
	}
	return plans, nil
}

// idsOf gives the request ids of a batch. What came without one gets a name: nobody
// can wait for it, but it is told, the same at each delivery.
func idsOf(batch []rpc.Delivery) []string {
	ids := make([]string, 0, len(batch))
	for i := range batch {
		d := &batch[i]
		if d.RequestID == "" {
			d.RequestID = "malformed-" + strconv.FormatUint(d.Sequence, 10)
		}
		ids = append(ids, d.RequestID)
	}
	return ids
}

// earlier are the operations of a batch that will join each lane.
type earlier map[string][]Op

func (e earlier) note(p *plan) {
	if p.waits() {
		e[p.task.Instance] = append(e[p.task.Instance], p.op)
	}
}

// lane tells what will hold an instance when the batch has come so far.
func (e earlier) lane(a *Agent) func(string) (Op, []Op) {
	return func(id string) (Op, []Op) {
		running, waiting := a.lanes.held(id)
		return running, append(waiting, e[id]...)
	}
}

// admitCast judges one delivery whose id is not known.
func (a *Agent) admitCast(d *rpc.Delivery, lane func(string) (Op, []Op)) plan {
	if d.Malformed != nil {
		return refused(&d.Message, a.newTask(&d.Message, api.Cast, d.Sequence), d.Malformed)
	}
	expires := d.Expires
	if expires.IsZero() {
		expires = d.Sent.Add(a.cfg.CastDefaultExpiry)
	}
	if time.Now().After(expires) {
		return refused(&d.Message, a.newTask(&d.Message, api.Cast, d.Sequence),
			fault.Newf(fault.Expired, d.Method, d.RequestID, "read after its expiry, %s", expires.UTC().Format(time.RFC3339)).
				WithHint("nothing was done; send it again if it is still wanted"))
	}
	return a.admit(&d.Message, api.Cast, d.Sequence, lane)
}

// gatherBeat is how often gather looks whether the missing casts have come.
const gatherBeat = 250 * time.Millisecond

// gatherWaits is how many times AckWait it looks at most.
const gatherWaits = 3

// returns counts the casts that were delivered before a moment, to this or an earlier
// run, and have come again since. mu guards what is below it.
type returns struct {
	mu   sync.Mutex
	seen map[uint64]struct{} // sequences that were read since; nil: nobody counts
	came int                 // those among them that had been delivered before
}

// watch begins to count.
func (r *returns) watch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen, r.came = map[uint64]struct{}{}, 0
}

// note counts a batch that was read. A cast counts once, however often it comes, and not
// at all when its first delivery was since.
func (r *returns) note(batch []rpc.Delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		return
	}
	for i := range batch {
		if _, twice := r.seen[batch[i].Sequence]; twice {
			continue
		}
		r.seen[batch[i].Sequence] = struct{}{}
		if batch[i].Delivered > 1 {
			r.came++
		}
	}
}

func (r *returns) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.came
}

// end gives back what counting takes.
func (r *returns) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = nil
}

// gather waits while casts that were delivered before, to this or an earlier run,
// may still come again: they belong before what is read now. It ends when none is
// left, when as many as missing (if that is known, and returns counts) have come, or
// after gatherWaits times AckWait: a busy server is late.
func (a *Agent) gather(ctx context.Context, reader rpc.CastReader, missing int) {
	until := time.Now().Add(gatherWaits * a.cfg.AckWait)
	for said := false; ; {
		n, err := reader.Unacked(ctx)
		if err == nil && n == 0 || errors.Is(err, fault.NotFound) {
			return
		}
		if missing > 0 && a.returns.count() >= missing {
			return
		}
		left := time.Until(until)
		if left <= 0 {
			return
		}
		if !said {
			said = true
			logkit.From(ctx).Info("waiting for casts that were delivered and not acknowledged", logkit.Key("casts").Of(n), logkit.Err(err))
		}
		if green.Sleep(ctx, min(gatherBeat, left)) != nil {
			return
		}
	}
}
