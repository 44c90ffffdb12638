package rpc

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// memAgent is one Serve.
type memAgent struct {
	conn    *memConn
	info    ServiceInfo
	handler Handler
	ctx     context.Context //nolint:containedctx // its end is the end of serving, which every call's context follows
	cancel  context.CancelCauseFunc
}

// Serve implements [Agent].
func (c *memConn) Serve(ctx context.Context, info ServiceInfo, h Handler) (stop func() error, err error) {
	if err := checkHost("serve", info.Host); err != nil {
		return nil, err
	}
	a := &memAgent{conn: c, info: info, handler: h}
	a.ctx, a.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	b := c.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := c.usableLocked("serve"); err != nil {
		return nil, err
	}
	for _, other := range b.agents[info.Host] {
		if !other.conn.cut && !sameAgent(other.info.Metadata, info.Metadata) {
			return nil, conflictingAgent(info.Host, other.info.Metadata)
		}
	}
	b.agents[info.Host] = append(b.agents[info.Host], a)
	c.agents = append(c.agents, a)
	return func() error { a.stop(); return nil }, nil
}

// stop ends serving; a second time it does nothing.
func (a *memAgent) stop() {
	b := a.conn.bus
	b.mu.Lock()
	b.agents[a.info.Host] = without(b.agents[a.info.Host], a)
	a.conn.agents = without(a.conn.agents, a)
	b.mu.Unlock()
	a.cancel(errStopped())
}

func without(list []*memAgent, gone *memAgent) []*memAgent {
	var rest []*memAgent
	for _, a := range list {
		if a != gone {
			rest = append(rest, a)
		}
	}
	return rest
}

// Call implements [Client].
func (c *memConn) Call(ctx context.Context, host string, m Message) ([]byte, error) {
	if err := checkHost("call", host); err != nil {
		return nil, err
	}
	ctx, cancel, m := callDeadline(ctx, m, c.bus.opts.callTimeout)
	defer cancel()
	h, err := encodeMessage(m)
	if err != nil {
		return nil, err
	}
	agents, err := c.reach(host, m.Method)
	if err != nil {
		return nil, err
	}
	replies := make(chan wireReply, 1)
	p := Passage{Leg: LegCall, Conn: c.name, Host: host, Subject: c.bus.names.call(host, m.Method), Request: m.RequestID}
	for _, a := range agents {
		carry(c.bus.fate(p), func() { a.take(h, m, p, c, replies) })
	}
	select {
	case r := <-replies:
		return decodeReply(r.header, r.body)
	case <-c.gone:
		return nil, fault.New(fault.Unavailable, m.Method, host, "the connection was closed while the call waited")
	case <-ctx.Done():
		return nil, noAnswer(ctx, host, m)
	}
}

type wireReply struct {
	header header
	body   []byte
}

// reach gives the agents that serve host and can be reached.
func (c *memConn) reach(host, method string) ([]*memAgent, error) {
	c.bus.mu.Lock()
	defer c.bus.mu.Unlock()
	if err := c.usableLocked(method); err != nil {
		return nil, err
	}
	var there []*memAgent
	for _, a := range c.bus.agents[host] {
		if !a.conn.cut {
			there = append(there, a)
		}
	}
	if len(there) == 0 {
		return nil, noAgent(method, host)
	}
	return there, nil
}

// take gives a call that arrived to the handler, with its headers as they came.
func (a *memAgent) take(h header, m Message, p Passage, caller *memConn, replies chan<- wireReply) {
	send := func(r Reply) {
		p.Leg, p.Conn = LegReply, a.conn.name
		rh, body := encodeReply(r)
		carry(a.conn.bus.fate(p), func() {
			if a.conn.bus.joined(a.conn, caller) {
				select {
				case replies <- wireReply{rh, body}:
				default: // a second reply: nobody waits for it
				}
			}
		})
	}
	dispatch(a.ctx, m.Method, h, m.Args, send, a.handler)
}

// joined reports whether both connections are on the bus.
func (b *Bus) joined(x, y *memConn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return x.usableLocked("") == nil && y.usableLocked("") == nil
}

// dispatch decodes a call and runs the handler; the two transports share it.
// send is called exactly once unless the handler never responds.
func dispatch(serving context.Context, method string, h header, args []byte, send func(Reply), handle Handler) {
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
	handle(ctx, m, func(r Reply) {
		if answered.CompareAndSwap(false, true) {
			send(r)
			cancel()
		}
	})
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
	return fault.Wrap(cause, m.Method, host)
}

func errStopped() error {
	return fault.New(fault.Unavailable, "serve", "", "the agent stops serving")
}

func errAway(op string) error {
	return fault.New(fault.Unavailable, op, "", "the connection to NATS is away").
		WithHint("it is tried again for as long as the process runs; check the server and rpc.url")
}
