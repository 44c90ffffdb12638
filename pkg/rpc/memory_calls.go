package rpc

import (
	"context"
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
	replies := make(chan wireReply, 1+min(int(m.Heartbeat), 1)*8) // with heartbeats, room for those that were not read yet
	p := Passage{Leg: LegCall, Conn: c.name, Host: host, Subject: c.bus.names.call(host, m.Method), Request: m.RequestID}
	for _, a := range agents {
		carry(c.bus.fate(p), func() { a.take(h, m, p, c, replies) })
	}
	return c.await(ctx, host, m, replies)
}

// await gives the first reply that is no heartbeat.
func (c *memConn) await(ctx context.Context, host string, m Message, replies <-chan wireReply) ([]byte, error) {
	var silence <-chan time.Time
	for {
		if m.Heartbeat > 0 {
			timer := time.NewTimer(2 * m.Heartbeat)
			defer timer.Stop()
			silence = timer.C
		}
		select {
		case r := <-replies:
			if !isHeartbeat(r.header) {
				return decodeReply(r.header, r.body)
			}
		case <-silence:
			return nil, silent(host, m)
		case <-c.gone:
			return nil, fault.New(fault.Unavailable, m.Method, host, "the connection was closed while the call waited")
		case <-ctx.Done():
			return nil, noAnswer(ctx, host, m)
		}
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
	p.Leg, p.Conn = LegReply, a.conn.name
	back := func(r wireReply) {
		carry(a.conn.bus.fate(p), func() {
			if a.conn.bus.joined(a.conn, caller) {
				select {
				case replies <- r:
				default: // a second reply: nobody waits for it
				}
			}
		})
	}
	dispatch(a.ctx, m.Method, h, m.Args, outlet{
		send: func(r Reply) { rh, body := encodeReply(r); back(wireReply{rh, body}) },
		beat: func() { back(wireReply{header: heartbeatHeader(m.Heartbeat)}) },
	}, a.handler)
}

// joined reports whether both connections are on the bus.
func (b *Bus) joined(x, y *memConn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return x.usableLocked("") == nil && y.usableLocked("") == nil
}
