package rpc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// natsConn is the transport over one NATS connection.
type natsConn struct {
	cfg   Config
	names names
	nc    *nats.Conn
	js    jetstream.JetStream

	batches batches

	life context.Context         //nolint:containedctx // ends with Close
	end  context.CancelCauseFunc // ends life

	mu      sync.Mutex
	up      chan struct{}           // closed while connected
	epoch   context.Context         //nolint:containedctx // a part of life: ends when the connection is lost, and all that waits for an answer with it
	lose    context.CancelCauseFunc // ends epoch
	watches []*stateWatch
}

var _ Transport = (*natsConn)(nil)

// Dial connects to NATS. It gives up (unavailable) when no server answers within
// ConnectTimeout; once it has succeeded the connection is re-established for as
// long as the process runs, with growing, jittered pauses.
func Dial(ctx context.Context, cfg Config) (Transport, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, fault.Wrap(err, "connect", redactURLs(cfg.URLs))
	}
	if err := cfg.checkFiles(); err != nil {
		return nil, err
	}
	c := &natsConn{cfg: cfg, names: names{cfg.Prefix}, up: make(chan struct{})}
	c.life, c.end = context.WithCancelCause(context.WithoutCancel(ctx))
	c.epoch, c.lose = context.WithCancelCause(c.life)
	opts, err := c.options()
	if err != nil {
		return nil, err
	}
	if c.nc, err = nats.Connect(strings.Join(cfg.URLs, ","), opts...); err != nil {
		c.end(err)
		return nil, connectFault(err, cfg)
	}
	if c.js, err = jetstream.New(c.nc, jetstream.WithDefaultTimeout(cfg.PublishTimeout), jetstream.WithPublishAsyncTimeout(cfg.PublishTimeout)); err != nil {
		_ = c.Close()
		return nil, fault.WrapAs(fault.Internal, err, "connect", "")
	}
	c.setUp()
	if cfg.AutoSetup {
		if err := Setup(ctx, c); err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	return c, nil
}

// options translates the configuration.
func (c *natsConn) options() ([]nats.Option, error) {
	cfg := c.cfg
	opts := []nats.Option{
		nats.Name(cfg.Name),
		nats.Timeout(cfg.ConnectTimeout),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // a credential that is refused today may be accepted tomorrow
		nats.CustomReconnectDelay(c.reconnectDelay),
		nats.ReconnectBufSize(-1), // nothing is promised while the server is away
		nats.PingInterval(cfg.PingInterval),
		nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { c.setDown() }),
		nats.ReconnectHandler(func(*nats.Conn) { c.setUp() }),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) { c.asyncError(s, err) }),
	}
	if cfg.InboxPrefix != "" {
		opts = append(opts, nats.CustomInboxPrefix(cfg.InboxPrefix))
	}
	if cfg.InProcess != nil {
		opts = append(opts, nats.InProcessServer(cfg.InProcess))
	}
	if cfg.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(cfg.CredsFile))
	}
	if cfg.NKeyFile != "" {
		nkey, err := nats.NkeyOptionFromSeed(cfg.NKeyFile)
		if err != nil {
			return nil, fault.New(fault.InvalidArgument, "connect", "rpc.nkey_file", "the file holds no user's NKey seed").Because(err).
				WithHint("a seed begins with SU; make one with: nk -gen user")
		}
		opts = append(opts, nkey)
	}
	if cfg.TLSCAFile != "" {
		opts = append(opts, nats.RootCAs(cfg.TLSCAFile))
	}
	if cfg.TLSCertFile != "" {
		opts = append(opts, nats.ClientCert(cfg.TLSCertFile, cfg.TLSKeyFile))
	}
	return opts, nil
}

// reconnectDelay grows from 50 ms to ReconnectLimit; half of it is chance, so that
// a restarted server does not see all hosts at once.
func (c *natsConn) reconnectDelay(attempts int) time.Duration {
	return jittered(50*time.Millisecond, attempts-1, c.cfg.ReconnectLimit)
}

// jittered doubles first n times up to limit and takes a random half off.
func jittered(first time.Duration, n int, limit time.Duration) time.Duration {
	d := limit
	if n < 20 {
		d = min(first<<max(n, 0), limit)
	}
	return d/2 + rand.N(d/2+1) //nolint:gosec // spreads load, hides nothing
}

func (c *natsConn) asyncError(s *nats.Subscription, err error) {
	subject := ""
	if s != nil {
		subject = s.Subject
	}
	c.cfg.OnError(natsFault(err, "receive", subject))
}

// setDown notes the loss of the connection; what waits for an answer learns it.
func (c *natsConn) setDown() {
	c.mu.Lock()
	select {
	case <-c.up:
	default: // it was down already
		c.mu.Unlock()
		return
	}
	c.up = make(chan struct{})
	lose := c.lose
	c.epoch, c.lose = context.WithCancelCause(c.life)
	c.mu.Unlock()
	lose(errAway("wait"))
	c.tell(false)
}

func (c *natsConn) setUp() {
	c.mu.Lock()
	select {
	case <-c.up:
		c.mu.Unlock()
		return
	default:
	}
	close(c.up)
	c.mu.Unlock()
	c.batches.forget()
	c.tell(true)
}

func (c *natsConn) tell(up bool) {
	c.mu.Lock()
	watches := append([]*stateWatch(nil), c.watches...)
	c.mu.Unlock()
	for _, w := range watches {
		w.fn(up)
	}
}

// state gives the channel that is closed while connected, and the context that
// ends when this connection is lost.
func (c *natsConn) state() (up <-chan struct{}, epoch context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up, c.epoch
}

// OnState implements [Transport].
func (c *natsConn) OnState(fn func(connected bool)) (cancel func()) {
	w := &stateWatch{fn}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watches = append(c.watches, w)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i := range c.watches {
			if c.watches[i] == w {
				c.watches = append(c.watches[:i:i], c.watches[i+1:]...)
				return
			}
		}
	}
}

// Close implements [Transport].
func (c *natsConn) Close() error {
	c.end(errClosed("wait"))
	c.nc.Close()
	return nil
}

// usable refuses work at once that could only wait for the server to come back.
func (c *natsConn) usable(op string) error {
	switch {
	case c.nc.IsClosed():
		return errClosed(op)
	case !c.nc.IsConnected():
		return errAway(op)
	}
	return nil
}

// bounded limits a question to JetStream.
func (c *natsConn) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.cfg.PublishTimeout)
}

func errClosed(op string) error {
	return fault.New(fault.Unavailable, op, "", "the connection is closed")
}

// natsFault gives an error of the library its kind.
func natsFault(err error, op, subject string) *fault.Error {
	if known, ok := errors.AsType[*fault.Error](err); ok {
		return known
	}
	f := fault.New(fault.Internal, op, subject, "").Because(err)
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api) && api.Code == http.StatusServiceUnavailable && !errors.Is(err, jetstream.ErrJetStreamNotEnabled):
		f.Kind, f.Err = fault.Unavailable, fmt.Errorf("%w: %w", ErrAway, err)
		f.Hint = "the servers elect a leader, or too few of them run; it is tried again"
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrPermissionViolation):
		f.Kind = fault.Unauthorized
		f.Hint = "compute-agent nats-permissions prints what the server has to allow this credential"
	case errors.Is(err, nats.ErrMaxPayload):
		f.Kind = fault.InvalidArgument
		f.Hint = "the message is bigger than the server's max_payload"
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders),
		errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		f.Kind = fault.Unavailable
		f.Hint = "run compute-agent nats-setup once for this NATS, and see that its servers run with JetStream"
	case errors.Is(err, nats.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		f.Kind = fault.Timeout
	case errors.Is(err, context.Canceled):
		f.Kind = fault.Cancelled
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionReconnecting),
		errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrNoServers), errors.Is(err, nats.ErrStaleConnection), errors.Is(err, nats.ErrSlowConsumer):
		f.Kind = fault.Unavailable
	}
	return f
}
