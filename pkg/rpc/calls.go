package rpc

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// dispatch decodes a call and runs the handler; the two transports share it.
// send is called exactly once unless the handler never responds; beat before it, as
// often as the caller asked for.
func dispatch(serving context.Context, method string, h header, args []byte, out outlet, handle Handler) { //nolint:revive // six: a call, where its answer goes, who handles it
	send := out.send
	m, bad := decodeMessage(method, h, args, false)
	if bad != nil {
		send(Reply{Err: bad})
		return
	}
	ctx, cancel := serving, context.CancelFunc(func() {})
	if !m.Expires.IsZero() {
		if late := time.Since(m.Expires); late >= 0 {
			send(Reply{Err: fault.Newf(fault.Expired, method, "", "the call's deadline had passed %s before it was read", late.Round(time.Millisecond)).
				WithHint("compare the clocks of the two hosts if the caller was still waiting")})
			return
		}
		ctx, cancel = context.WithDeadline(serving, m.Expires)
	}
	var answered atomic.Bool
	quiet := heartbeats(ctx, m.Heartbeat, func() bool { return !answered.Load() }, out.beat)
	handle(ctx, m, func(r Reply) {
		if answered.CompareAndSwap(false, true) {
			quiet()
			send(r)
			cancel()
		}
	})
}

// outlet is how a call's caller is spoken to.
type outlet struct {
	send func(Reply)
	beat func()
}

// heartbeats calls beat every so often while wanted and until ctx ends. No beat
// comes after quiet has returned, so none follows the reply.
func heartbeats(ctx context.Context, every time.Duration, wanted func() bool, beat func()) (quiet func()) {
	if every <= 0 {
		return func() {}
	}
	var mu sync.Mutex // held while beating
	var timer *time.Timer
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(every, func() {
		mu.Lock()
		defer mu.Unlock()
		if wanted() && ctx.Err() == nil {
			beat()
			timer.Reset(every)
		}
	})
	return func() {
		timer.Stop()
		mu.Lock() // one that is at it
		defer mu.Unlock()
	}
}

// heartbeatHeader marks a message that is no reply.
func heartbeatHeader(every time.Duration) header { return header{headerHeartbeat: {every.String()}} }

func isHeartbeat(h header) bool { return headerGet(h, headerHeartbeat) != "" }

func silent(host string, m Message) error {
	return fault.Newf(fault.Unavailable, m.Method, host, "the agent has sent no heartbeat for %s", 2*m.Heartbeat).
		WithHint("the request may still be carried out; repeat it with the same request id to learn its outcome")
}

// callDeadline gives a call its deadline: the sooner of ctx's and m.Expires, else
// the default; the message carries it.
func callDeadline(ctx context.Context, m Message, byDefault time.Duration) (context.Context, context.CancelFunc, Message) {
	until, has := ctx.Deadline()
	if !m.Expires.IsZero() && (!has || m.Expires.Before(until)) {
		until, has = m.Expires, true
	}
	if !has {
		until = time.Now().Add(byDefault)
	}
	m.Expires = until
	// a deadline of ctx that is as soon needs no second timer, WithDeadline sees to that
	ctx, cancel := context.WithDeadline(ctx, until)
	return ctx, cancel, m
}

// sameAgent compares two agents' identities: one that was restarted may find its
// former self still leaving.
func sameAgent(a, b map[string]string) bool {
	return a["machine_id"] == b["machine_id"] && a["state_dir"] == b["state_dir"]
}

func conflictingAgent(host string, other map[string]string) error {
	return fault.Newf(fault.Conflict, "serve", host, "another agent serves this host: machine id %q, state directory %q", other["machine_id"], other["state_dir"]).
		WithHint("stop the other agent, or give this one a host name of its own (--host)").
		WithDetail("machine_id", other["machine_id"]).WithDetail("state_dir", other["state_dir"])
}

func noAgent(method, host string) error {
	return fault.New(fault.Unavailable, method, host, "no agent serves this host").
		WithHint("compute-agent host list shows the agents there are and when they last reported")
}

func noAnswer(ctx context.Context, host string, m Message) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		return fault.New(fault.Timeout, m.Method, host, "the agent did not answer in time").Because(cause).
			WithHint("the request may still be carried out; repeat it with the same request id to learn its outcome")
	}
	if fault.KindOf(cause) == fault.Internal { // the caller's own reason
		return fault.WrapAs(fault.Cancelled, cause, m.Method, host)
	}
	return fault.Wrap(cause, m.Method, host)
}

func errStopped() error {
	return fault.New(fault.Unavailable, "serve", "", "the agent stops serving")
}

// ErrAway is in the chain of an error when the bus can't be reached at the moment,
// or its servers have no leader: the same may succeed soon, without anybody doing
// anything. That no agent serves a host is another matter.
var ErrAway = errors.New("the bus is away")

func errAway(op string) error {
	return fault.New(fault.Unavailable, op, "", "the connection to NATS is away").Because(ErrAway).
		WithHint("it is tried again for as long as the process runs; check the server and rpc.url")
}
