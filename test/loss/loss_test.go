package loss_test

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

var (
	casts     = flag.Int("casts", 2000, "how many casts are sent in all")
	limit     = flag.Duration("limit", 4*time.Minute, "how long the run may take")
	seed      = flag.Uint64("seed", 1, "draws when the agent and the server are killed")
	ownServer = flag.Bool("own-server", false, "take the library's NATS server also where a nats-server is installed; its streams take batches")
)

const (
	host     = "node1"
	senders  = 4
	guests   = 8 // of each sender, that are paused and unpaused
	ackWait  = time.Second
	window   = 4000             // casts under way at most
	patience = 20 * time.Second // without progress, what has no end is sent again, as senders do
)

// rig is a server and an agent, each a process that is killed, and what is known of
// the requests.
type rig struct {
	t       *testing.T
	ctx     context.Context //nolint:containedctx // the test's
	stop    context.CancelCauseFunc
	dir     string
	address string
	server  *process
	agent   *process
	draw    *rand.Rand

	told         told
	sent, copies atomic.Int64
	sending      chan struct{} // closed when all is sent
}

// Every request id has one outcome and its effect happened exactly once.
func TestNothingIsLostAndNothingTwice(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), *limit)
	defer cancel()
	r := newRig(t, ctx)
	all := make([]*sender, senders)
	for i := range all {
		all[i] = r.newSender()
		defer all[i].close()
	}
	began := time.Now()
	var busy sync.WaitGroup
	for _, s := range all {
		busy.Go(func() { s.run(*casts / senders) })
	}
	go func() { busy.Wait(); close(r.sending) }()
	kills, restarts, resent := r.trouble(all)
	took := time.Since(began)
	r.until("the agent to answer", func() bool { // before, it does not hear a signal
		short, cancel := context.WithTimeout(r.ctx, time.Second)
		defer cancel()
		_, err := all[0].c.Call(short, host, rpc.Message{Method: api.GetHostInfo, RequestID: instance.NewUUID(), Args: []byte("{}")})
		return err == nil
	})
	if err := r.agent.end(syscall.SIGTERM); err != nil {
		t.Errorf("the agent's end by SIGTERM: %v", err)
	}
	for _, word := range []string{"DATA RACE", "panic:", `"level":"fatal"`} {
		if r.agent.said(word) {
			t.Errorf("the agent said %q:\n%s", word, r.agent.tail())
		}
	}
	r.judge(all)
	t.Logf("%d casts from %d senders in %s, %d copies beside them; SIGKILL to the agent %d times, the server restarted %d times (every second by SIGKILL), %d sent again for want of an outcome",
		r.sent.Load(), senders, took.Round(time.Millisecond), r.copies.Load(), kills, restarts, resent)
	if resent > 0 { // which would be lawful, had the machines lost their power
		t.Errorf("%d casts that the stream had taken were lost", resent)
	}
	if kills < 3 || restarts == 0 {
		t.Errorf("%d kills and %d restarts: the run shows nothing", kills, restarts)
	}
}

func newRig(t *testing.T, ctx context.Context) *rig {
	t.Helper()
	r := &rig{
		t: t, ctx: ctx, dir: t.TempDir(), draw: rand.New(rand.NewPCG(*seed, 0)), sending: make(chan struct{}),
		told: told{ends: map[string]map[api.TaskState]bool{}, errs: map[string]string{}},
	}
	r.server, r.address = newServer(t, r.dir)
	r.agent = newAgent(t, r.dir, "nats://"+r.address)
	t.Cleanup(func() {
		for _, p := range []*process{r.agent, r.server} {
			if p.cmd != nil && p.cmd.Process != nil {
				r.end(p, syscall.SIGKILL)
			}
			if t.Failed() {
				t.Logf("%s:\n%s", filepath.Base(p.log), p.tail())
			}
		}
	})
	r.begin(r.server)
	r.answers()
	c := r.dial("reader")
	var reading sync.WaitGroup
	r.ctx, r.stop = context.WithCancelCause(ctx)
	reading.Go(func() { r.follow(c) })
	t.Cleanup(func() { r.stop(nil); reading.Wait(); _ = c.Close() })
	r.begin(r.agent)
	return r
}

func (r *rig) begin(p *process) {
	r.t.Helper()
	if err := p.start(r.ctx); err != nil {
		r.t.Fatal(err)
	}
}

// end takes any end of a process by a signal for a good one, as long as it is one.
func (r *rig) end(p *process, sig syscall.Signal) {
	r.t.Helper()
	if err := p.end(sig); errors.Is(err, errStays) {
		r.t.Errorf("%v", err)
	}
}

func (r *rig) dial(name string) rpc.Transport {
	r.t.Helper()
	cfg := rpc.Config{URLs: []string{"nats://" + r.address}, Name: name, AutoSetup: true, AckWait: ackWait, ReconnectLimit: 200 * time.Millisecond}
	if r.server.env != nil { // the library's: it knows them
		cfg.Batches = rpc.BatchesOn
	}
	c, err := rpc.Dial(r.ctx, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// retry waits a moment after an error that time may mend; any other one ends the run.
// False: the run is over.
func (r *rig) retry(err error) bool {
	if r.ctx.Err() == nil && !fault.Retryable(err) {
		r.stop(err)
	}
	return r.beat()
}

// room waits until another cast may be under way; false: the run is over.
func (r *rig) room() bool {
	for r.sent.Load()-r.told.all() >= min(window, int64(*casts)/8) {
		if !r.beat() {
			return false
		}
	}
	return r.ctx.Err() == nil
}

// beat waits a moment; false: the run is over.
func (r *rig) beat() bool {
	if r.ctx.Err() != nil {
		return false
	}
	timer := time.NewTimer(5 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// trouble kills the agent whenever some more requests have ended, at a moment drawn at
// random, and with every fourth kill restarts the server, until all has ended.
func (r *rig) trouble(all []*sender) (kills, restarts, resent int) {
	r.t.Helper()
	step := min(max(int64(*casts)/10, 50), 1000)
	for tenth := int64(1); ; {
		if now := r.told.all(); now >= tenth*int64(*casts)/10 {
			r.t.Logf("%d of %d requests have ended; %d kills, %d restarts", now, *casts, kills, restarts)
			tenth = now*10/int64(*casts) + 1
		}
		goal := r.told.all() + step/2 + r.draw.Int64N(step)
		n, over := r.progress(goal, all)
		resent += n
		if over {
			return kills, restarts, resent
		}
		late := time.Now().Add(time.Duration(r.draw.Int64N(int64(100 * time.Millisecond))))
		r.until("a moment", func() bool { return time.Now().After(late) })
		kills++
		r.end(r.agent, syscall.SIGKILL)
		if kills%4 == 0 {
			restarts++
			how := []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[restarts%2]
			if r.draw.IntN(2) == 0 { // the agent is there when the server goes
				r.begin(r.agent)
				late := time.Now().Add(time.Second)
				r.until("the agent at work", func() bool { return time.Now().After(late) })
				r.end(r.server, how)
				r.begin(r.server)
				continue
			}
			r.end(r.server, how)
			r.begin(r.server)
		}
		r.begin(r.agent)
	}
}

// progress waits until so many requests have ended, or all of them. When nothing moves
// for long, what has no end is sent again: what the stream has taken may be lost with it.
func (r *rig) progress(goal int64, all []*sender) (resent int, over bool) {
	r.t.Helper()
	last, since := r.told.all(), time.Now()
	for now := last; now < goal; now = r.told.all() {
		if now > last {
			last, since = now, time.Now()
		}
		sent := false
		select {
		case <-r.sending:
			sent = true
		default:
		}
		switch {
		case sent && now >= r.sent.Load():
			return resent, true
		case r.agent.ended():
			r.t.Fatalf("the agent ended by itself: %v", r.agent.err)
		case !r.beat():
			r.t.Fatalf("the run is over, %v: %d of %d requests have ended", context.Cause(r.ctx), now, r.sent.Load())
		case sent && time.Since(since) > patience:
			since = time.Now()
			for _, s := range all {
				resent += s.resend()
			}
		}
	}
	return resent, false
}

// resend sends what has no outcome again.
func (s *sender) resend() (n int) {
	for _, m := range s.sent {
		if !s.r.told.ended(m.RequestID) {
			n++
			s.again(m)
		}
	}
	return n
}

// judge compares what was asked for with what was told and with what happened.
func (r *rig) judge(all []*sender) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	machine, err := fake.NewHost(fake.NewWorld(ctx), fake.Config{Name: host, Dir: filepath.Join(r.dir, "state", host, "machine")})
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = machine.Close() }()
	sum, kinds := fake.Effects{}, map[string]int{}
	for _, s := range all {
		for _, m := range s.sent {
			kinds[m.Method]++
			r.told.mu.Lock()
			if o := r.told.ends[m.RequestID]; len(o) != 1 || !o[api.TaskSucceeded] {
				r.t.Errorf("%s %s %s has the outcomes %v: %s", m.Method, m.RequestID, m.Args, o, r.told.errs[m.RequestID])
			}
			r.told.mu.Unlock()
		}
		for id, want := range s.want {
			got := machine.Counts(id)
			got.Defines = 0 // a definition may be given again
			if diff := cmp.Diff(*want, got); diff != "" {
				r.t.Errorf("guest %s (-asked for +happened):\n%s", id, diff)
			}
			sum.Pauses, sum.Unpauses, sum.Starts = sum.Pauses+got.Pauses, sum.Unpauses+got.Unpauses, sum.Starts+got.Starts
			sum.Stops, sum.Undefines = sum.Stops+got.Stops, sum.Undefines+got.Undefines
		}
	}
	r.t.Logf("asked for: %v", kinds)
	r.t.Logf("happened: %d pauses, %d unpauses, %d starts, %d stops, %d removals", sum.Pauses, sum.Unpauses, sum.Starts, sum.Stops, sum.Undefines)
	if kinds[api.RebootInstance] == 0 || kinds[api.TerminateInstance] == 0 {
		r.t.Error("nothing was rebooted or deleted: the run shows less than it should")
	}
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for !ok() {
		if !r.beat() {
			r.t.Fatalf("the run is over, %v: waiting for %s", context.Cause(r.ctx), what)
		}
	}
}
