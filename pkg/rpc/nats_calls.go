package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Call implements [Client]. A call that waits when the connection is lost is
// unavailable: its reply can no longer come.
func (c *natsConn) Call(ctx context.Context, host string, m Message) ([]byte, error) {
	if err := checkHost("call", host); err != nil {
		return nil, err
	}
	if err := c.usable(m.Method); err != nil {
		return nil, err
	}
	caller := ctx
	ctx, cancel, m := callDeadline(ctx, m, c.cfg.CallTimeout)
	defer cancel()
	h, err := encodeMessage(m)
	if err != nil {
		return nil, err
	}
	_, epoch := c.state()
	defer context.AfterFunc(epoch, cancel)()
	request := c.nc.RequestMsgWithContext
	if m.Heartbeat > 0 {
		request = c.requestWithHeartbeats
	}
	reply, err := request(ctx, &nats.Msg{Subject: c.names.call(host, m.Method), Header: h, Data: m.Args})
	switch {
	case err == nil:
		return decodeReply(reply.Header, reply.Data)
	case errors.Is(err, nats.ErrNoResponders):
		return nil, noAgent(m.Method, host)
	case errors.Is(err, errSilent):
		return nil, silent(host, m)
	case epoch.Err() != nil && caller.Err() == nil:
		return nil, fault.Wrap(context.Cause(epoch), m.Method, host)
	case ctx.Err() != nil:
		return nil, noAnswer(ctx, host, m)
	}
	return nil, natsFault(err, m.Method, host)
}

// errSilent: neither a heartbeat nor a reply came in time.
var errSilent = errors.New("the agent is silent")

// requestWithHeartbeats sends a request and gives the reply that follows any number
// of heartbeats; two of them missed are the end.
func (c *natsConn) requestWithHeartbeats(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	every, bad := decodeHeartbeat(headerGet(header(m.Header), headerHeartbeat))
	if bad != nil {
		return nil, bad
	}
	came := make(chan *nats.Msg, 16)
	m.Reply = c.nc.NewInbox()
	sub, err := c.nc.ChanSubscribe(m.Reply, came)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only when the connection is closed
	if err := c.nc.PublishMsg(m); err != nil {
		return nil, err
	}
	silence := time.NewTimer(2 * every)
	defer silence.Stop()
	for {
		select {
		case r := <-came:
			switch {
			case len(r.Data) == 0 && r.Header.Get("Status") == "503":
				return nil, nats.ErrNoResponders
			case !isHeartbeat(header(r.Header)):
				return r, nil
			}
			silence.Reset(2 * every)
		case <-silence.C:
			return nil, errSilent
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Serve implements [Agent]. The agent is a NATS micro service named by the prefix
// with one endpoint, <prefix>.call.<host>.*, in no queue group: two agents of one
// host must not share its calls. So a second one is looked for first, with a
// request on the endpoint's own subject: where nobody serves the host the server
// answers "no responders" in one round trip, and nobody else is disturbed (asking
// $SRV.INFO would make every agent of the cluster answer every start).
func (c *natsConn) Serve(ctx context.Context, info ServiceInfo, h Handler) (stop func() error, err error) {
	if err := checkHost("serve", info.Host); err != nil {
		return nil, err
	}
	if err := c.usable("serve"); err != nil {
		return nil, err
	}
	if err := c.refuseSecond(ctx, info); err != nil {
		return nil, err
	}
	s := &natsService{conn: c, info: info, handler: h, prefix: len(c.names.call(info.Host, ""))}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := s.start(ctx); err != nil {
		s.cancel(err)
		return nil, err
	}
	context.AfterFunc(c.life, func() { s.cancel(errStopped()) })
	return sync.OnceValue(s.stop), nil
}

// refuseSecond asks who serves the host. Silence is consent: it comes from a
// connection that the server has not found dead yet, such as a rebooted host's.
func (c *natsConn) refuseSecond(ctx context.Context, info ServiceInfo) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ConflictTimeout)
	defer cancel()
	reply, err := c.nc.RequestWithContext(ctx, c.names.call(info.Host, methodInfo), nil)
	if errors.Is(err, nats.ErrNoResponders) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	if err != nil {
		return natsFault(err, "serve", info.Host)
	}
	var other map[string]string
	if err := json.Unmarshal(reply.Data, &other); err != nil {
		return fault.New(fault.Conflict, "serve", info.Host, "something that is not an agent answers calls to this host").Because(err)
	}
	if sameAgent(other, info.Metadata) {
		return nil
	}
	return conflictingAgent(info.Host, other)
}

// natsService is one Serve.
type natsService struct {
	conn    *natsConn
	info    ServiceInfo
	handler Handler
	prefix  int // bytes of the subject before the method
	service micro.Service
	ctx     context.Context //nolint:containedctx // its end is the end of serving, which every call's context follows
	cancel  context.CancelCauseFunc
}

func (s *natsService) start(ctx context.Context) (err error) {
	c := s.conn
	cfg := micro.Config{Name: c.names.prefix, Version: s.info.Version, Metadata: s.info.Metadata, Description: "compute-agent of " + s.info.Host}
	if s.info.Stats != nil {
		cfg.StatsHandler = func(*micro.Endpoint) any { return s.info.Stats() }
	}
	if s.service, err = micro.AddService(c.nc, cfg); errors.Is(err, micro.ErrConfigValidation) {
		cfg.Version = "0.0.0" // a build whose version is no semantic version serves as well
		s.service, err = micro.AddService(c.nc, cfg)
	}
	if err != nil {
		return natsFault(err, "serve", s.info.Host)
	}
	opts := []micro.EndpointOpt{micro.WithEndpointSubject(c.names.call(s.info.Host, "*")), micro.WithEndpointQueueGroupDisabled()}
	if s.info.MaxPending > 0 {
		opts = append(opts, micro.WithEndpointPendingLimits(s.info.MaxPending, -1))
	}
	err = s.service.AddEndpoint("call", micro.HandlerFunc(s.take), opts...)
	if err == nil {
		ctx, cancel := c.bounded(ctx)
		defer cancel()
		err = c.nc.FlushWithContext(ctx) // from here on the server knows where calls go
	}
	if err != nil {
		return errors.Join(natsFault(err, "serve", s.info.Host), s.stop())
	}
	return nil
}

// take runs in the subscription's goroutine, one call after the other: it only
// hands over. What names no inbox is no call and is dropped: a server sends what it
// stores, and its own words, to any subject that a request for them named as its
// reply, and never with an inbox to answer to; and an answer to another subject
// would be published with this host's rights.
func (s *natsService) take(req micro.Request) {
	subject, to := req.Subject(), req.Reply()
	method := subject[s.prefix:]
	if !strings.HasPrefix(to, defaultInbox) {
		s.conn.cfg.OnError(fault.Newf(fault.Unauthorized, clip(method), s.info.Host, "a message that names no inbox (%s) was dropped: it is no call", quoted(to)))
		return
	}
	if method == methodInfo {
		body, err := JSON(s.info.Metadata)
		s.send(to, method, Reply{Body: body, Err: fault.Wire(err)})
		return
	}
	h := header(req.Headers())
	dispatch(s.ctx, method, h, req.Data(), outlet{
		send: func(r Reply) { s.send(to, method, r) },
		beat: func() {
			_ = s.conn.nc.PublishMsg(&nats.Msg{Subject: to, Header: nats.Header{headerHeartbeat: h[headerHeartbeat]}}) // lost with the connection
		},
	}, s.handler)
}

// send publishes a reply. It does not use the request's own methods: they write
// what the library reads when the handler has returned.
func (s *natsService) send(to, method string, r Reply) {
	h, body := encodeReply(r)
	err := s.conn.nc.PublishMsg(&nats.Msg{Subject: to, Header: h, Data: body})
	if errors.Is(err, nats.ErrMaxPayload) {
		h, body = encodeReply(Reply{Err: fault.Newf(fault.Internal, method, s.info.Host, "the answer of %d bytes is bigger than the server's max_payload of %d", len(body), s.conn.nc.MaxPayload()).
			WithHint("raise max_payload of the NATS server")})
		err = s.conn.nc.PublishMsg(&nats.Msg{Subject: to, Header: h, Data: body})
	}
	if err != nil {
		s.conn.cfg.OnError(natsFault(err, "reply", method))
	}
}

// stop ends serving: the server learns it first, then the handlers.
func (s *natsService) stop() error {
	err := s.service.Stop()
	if s.conn.nc.IsConnected() {
		ctx, cancel := s.conn.bounded(context.WithoutCancel(s.ctx))
		defer cancel()
		err = errors.Join(err, s.conn.nc.FlushWithContext(ctx))
	}
	s.cancel(errStopped())
	if err != nil && !s.conn.nc.IsClosed() && s.conn.nc.IsConnected() {
		return natsFault(err, "stop", s.info.Host)
	}
	return nil
}
