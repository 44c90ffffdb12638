package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// wave is some casts that come into the stream at a moment.
type wave struct {
	at time.Duration
	n  int
}

// happened is how many casts were read, acknowledged or begun together at a moment.
type happened struct {
	At time.Duration
	N  int
}

// tally counts what happens at the same moment as one.
type tally struct {
	mu    sync.Mutex
	began time.Time
	list  []happened
}

func (c *tally) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := time.Since(c.began)
	if last := len(c.list) - 1; last >= 0 && c.list[last].At == at {
		c.list[last].N += n
		return
	}
	c.list = append(c.list, happened{at, n})
}

// script is a reader of casts that come as it is written.
type script struct {
	began time.Time
	casts []rpc.Delivery
	due   []time.Duration // of each
	reads []happened      // each of them
	acked tally
}

func (s *script) Next(ctx context.Context, limit int) ([]rpc.Delivery, error) {
	for {
		now, there := time.Since(s.began), 0
		for there < len(s.due) && s.due[there] <= now {
			there++
		}
		if n := min(there, limit); n > 0 {
			batch := s.casts[:n]
			batch[n-1].Pending = there - n
			s.casts, s.due, s.reads = s.casts[n:], s.due[n:], append(s.reads, happened{now, n})
			return batch, nil
		}
		var next <-chan time.Time
		if len(s.due) > 0 {
			next = time.After(s.due[0] - now)
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (*script) Unacked(context.Context) (int, error) { return 0, nil }
func (*script) Close() error                         { return nil }

// add writes a cast into the script.
func (s *script) add(at time.Duration, method string, args any) (id string) {
	id = instance.NewUUID()
	body, err := json.Marshal(args)
	if err != nil {
		panic(err)
	}
	s.casts = append(s.casts, rpc.Delivery{
		Message:  rpc.Message{Method: method, RequestID: id, Version: api.Version, Args: body},
		Sequence: uint64(len(s.casts) + 1), Sent: time.Now(), Delivered: 1,
		Ack: func() error { s.acked.add(1); return nil },
	})
	s.due = append(s.due, at)
	return id
}

// desk is an agent of which only the intake and the lanes run; tasks take a second, each
// a bit longer than the one before, and do nothing.
type desk struct {
	t      *testing.T
	agent  *Agent
	script *script
	begun  tally
	broken atomic.Bool // the journal's disk
	mu     sync.Mutex
	orders []uint64 // of the tasks as they began
	ids    map[string]bool
}

// atDesk runs a test on virtual time.
func atDesk(t *testing.T, cfg Config, test func(d *desk)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := &desk{t: t, ids: map[string]bool{}, script: &script{began: time.Now()}}
		d.begun.began, d.script.acked.began = d.script.began, d.script.began
		store, err := state.Open(t.Context(), dir, state.Options{NoSync: true, Trouble: func() error {
			if d.broken.Load() {
				return errors.New("no disk")
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = store.Close() }()
		machine, err := fake.NewHost(fake.NewWorld(t.Context()), fake.Config{Name: "a", VCPUs: 4, MemoryMiB: 4096})
		if err != nil {
			t.Fatal(err)
		}
		driver := machine.Open()
		defer func() { _ = driver.Close() }()
		cfg.Host = "a"
		d.agent = New(cfg, Ports{Store: store, Hypervisor: driver})
		defer d.agent.source.Close()
		ctx, cancel := context.WithCancelCause(t.Context())
		d.agent.base = ctx
		test(d)
		cancel(errors.New("the test is over"))
		synctest.Wait()
	})
}

// guest makes an instance that runs.
func (d *desk) guest() string {
	id := instance.NewUUID()
	d.agent.ledger.instances[id] = &instance.Instance{
		UUID: id, Host: "a", Generation: 1, VMState: instance.VMActive, PowerState: instance.PowerRunning,
		Spec: instance.Spec{UUID: id, VCPUs: 1, MemoryMiB: 64},
	}
	return id
}

// run lets the intake and the lanes work for so long.
func (d *desk) run(how time.Duration) {
	handle := func(_ context.Context, t *turn) bool {
		d.begun.add(1)
		d.mu.Lock()
		d.orders, d.ids[t.task.ID] = append(d.orders, t.task.Sequence), true
		d.mu.Unlock()
		<-time.After(time.Second + time.Duration(t.task.Sequence)*10*ms)
		return true
	}
	a := d.agent
	a.spawn(func(ctx context.Context) { _ = a.lanes.run(ctx, handle, func(virt.Event) {}) })
	a.spawn(func(ctx context.Context) { _ = a.readCasts(ctx, d.script) })
	<-time.After(how)
	synctest.Wait()
}

func (d *desk) want(what string, got, want []happened) {
	d.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		d.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

const ms = time.Millisecond

// waves are so many of n casts, that far from each other.
func waves(apart time.Duration, times, n int) (list []wave) {
	for i := range times {
		list = append(list, wave{time.Duration(i) * apart, n})
	}
	return list
}

// together is what is read when each wave is read by itself.
func together(list []wave) (reads []happened) {
	for _, w := range list {
		reads = append(reads, happened{w.at, w.n})
	}
	return reads
}

// Of a burst all that waits is accepted before its tasks begin, within bounds; what comes
// alone begins at once.
func TestBursts(t *testing.T) {
	cases := []struct {
		name   string
		most   int // accepted
		broken time.Duration
		waves  []wave
		reads  []happened
		begun  []happened
	}{
		{
			name: "one", waves: []wave{{0, 1}, {5 * ms, 1}},
			reads: []happened{{0, 1}, {5 * ms, 1}}, begun: []happened{{0, 1}, {5 * ms, 1}},
		},
		{
			name: "not yet a burst", waves: []wave{{0, burstSize - 1}},
			reads: []happened{{0, burstSize - 1}}, begun: []happened{{0, burstSize - 1}},
		},
		{
			name: "a burst that ends waits for the next ones as long as burstWait", waves: []wave{{0, burstSize}},
			reads: []happened{{0, burstSize}}, begun: []happened{{burstWait, burstSize}},
		},
		{
			name: "what comes meanwhile belongs to it", waves: []wave{{0, burstSize}, {burstWait - ms, burstPart}},
			reads: []happened{{0, burstSize}, {burstWait - ms, burstPart}}, begun: []happened{{2*burstWait - ms, burstSize + burstPart}},
		},
		{
			name: "a small part waits for more as long as partWait, and ends it", waves: []wave{{0, burstSize}, {ms, burstSize - 1}},
			reads: []happened{{0, burstSize}, {ms, burstSize - 1}}, begun: []happened{{ms + partWait, 2*burstSize - 1}},
		},
		{
			name: "small parts are taken together", waves: []wave{{0, burstSize}, {ms, 10}, {2 * ms, 10}},
			reads: []happened{{0, burstSize}, {ms, 10}, {2 * ms, 10}}, begun: []happened{{2*ms + burstWait, burstSize + 20}},
		},
		{
			name: "no more than burstRoom wait", waves: []wave{{0, burstRoom + readBatch/2}},
			reads: []happened{{0, readBatch}, {0, readBatch}, {0, readBatch}, {0, readBatch}, {0, readBatch / 2}},
			begun: []happened{{0, burstRoom}, {burstWait, readBatch / 2}},
		},
		{
			name: "a burst that does not end is launched after burstTime", waves: waves(6*ms, 30, burstSize),
			reads: together(waves(6*ms, 30, burstSize)), begun: []happened{{104 * ms, 18 * burstSize}, {174*ms + partWait + burstWait, 12 * burstSize}},
		},
		{
			name: "when no more may be accepted, those that are begin", most: 2 * burstSize, waves: []wave{{0, 2*burstSize + 3}},
			reads: []happened{{0, 2 * burstSize}, {1010 * ms, 1}, {1020 * ms, 1}, {1030 * ms, 1}},
			begun: []happened{{0, 2 * burstSize}, {1010 * ms, 1}, {1020 * ms, 1}, {1030 * ms, 1}},
		},
		{
			name: "what the journal refuses is kept, and taken before anything else", broken: 250 * ms,
			waves: []wave{{0, burstSize}, {50 * ms, 5}}, // tried again after 100 ms, and after 200 more
			reads: []happened{{0, burstSize}, {300 * ms, 5}}, begun: []happened{{300*ms + partWait, burstSize + 5}},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			atDesk(t, Config{MaxAcceptedTasks: c.most}, func(d *desk) {
				total := 0
				for _, w := range c.waves {
					for range w.n {
						d.script.add(w.at, api.PauseInstance, api.InstanceArgs{Instance: d.guest()})
					}
					total += w.n
				}
				d.broken.Store(c.broken > 0)
				time.AfterFunc(c.broken, func() { d.broken.Store(false) })
				d.run(time.Minute)
				d.want("read", d.script.reads, c.reads)
				d.want("begun", d.begun.list, c.begun)
				acked := 0
				for _, h := range d.script.acked.list {
					if acked += h.N; h.At < c.broken {
						t.Errorf("%d casts were acknowledged after %v, without a journal", h.N, h.At)
					}
				}
				if acked != total {
					t.Errorf("%d of %d casts were acknowledged", acked, total)
				}
			})
		})
	}
}

// What the journal refused comes before what was read after it, of one instance too.
func TestRefusedBatchKeepsItsPlace(t *testing.T) {
	atDesk(t, Config{}, func(d *desk) {
		id := d.guest()
		var want []uint64
		for i := range 6 {
			method := api.PauseInstance
			if i%2 == 1 {
				method = api.UnpauseInstance
			}
			d.script.add(time.Duration(i)*60*ms, method, api.InstanceArgs{Instance: id})
			want = append(want, uint64(i+1))
		}
		d.broken.Store(true)
		time.AfterFunc(150*ms, func() { d.broken.Store(false) })
		d.run(time.Minute)
		if diff := cmp.Diff(want, d.orders); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

// An abort is carried out at once, also of a migration of the same burst that is
// accepted and not yet let go on: it is taken out of its lane and never begins.
func TestAbortWithinABurst(t *testing.T) {
	atDesk(t, Config{}, func(d *desk) {
		id, mig := d.guest(), instance.NewUUID()
		moves := d.script.add(0, api.LiveMigration, api.MigrateArgs{Instance: id, Dest: "b", Migration: mig})
		for range burstSize {
			d.script.add(0, api.PauseInstance, api.InstanceArgs{Instance: d.guest()})
		}
		abort := d.script.add(ms, api.LiveMigrationAbort, api.MigrationRefArgs{Instance: id})
		for range burstPart {
			d.script.add(ms, api.PauseInstance, api.InstanceArgs{Instance: d.guest()})
		}
		d.run(time.Minute)
		d.want("begun", d.begun.list, []happened{{ms + burstWait, burstSize + burstPart}})
		if d.ids[moves] {
			t.Error("the migration began")
		}
		known, _, err := d.agent.ledger.tasks([]string{moves, abort})
		got := fmt.Sprint(known[moves].State, " ", known[abort].State)
		if err != nil || got != fmt.Sprint(api.TaskFailed, " ", api.TaskSucceeded) {
			t.Errorf("the migration and its abort are %s, %v; want failed and succeeded", got, err)
		}
		if e := known[moves].Error; e == nil || known[moves].EndedAt.Sub(d.script.began) != ms {
			t.Errorf("the migration ended after %v: %v, want at once", known[moves].EndedAt.Sub(d.script.began), e)
		}
	})
}

// What a burst made is told when it is over, also when nothing of it is to be begun and
// nothing follows.
func TestBurstOfRefusedCastsIsTold(t *testing.T) {
	atDesk(t, Config{}, func(d *desk) {
		for range 2 * burstSize {
			d.script.add(0, api.PauseInstance, api.InstanceArgs{Instance: instance.NewUUID()})
		}
		d.run(burstWait)
		events, _, err := d.agent.ledger.out.next(d.agent.store)
		if err != nil || len(events) != 2*burstSize {
			t.Errorf("%d events may be told, %v; want %d", len(events), err, 2*burstSize)
		}
	})
}
