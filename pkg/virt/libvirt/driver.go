package libvirt

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

/*
Driver is the libvirt driver (virttest.Driver). Its own state:

	connecting ──greeted, subscribed──▶ connected ──lost, or no answer to a ping──▶ connecting
	     └──────────────────────────── Close ◀──────────────┘
*/
type Driver struct {
	cfg    Config
	events *dispatcher

	ctx    context.Context //nolint:containedctx // the life of the driver's own threads
	cancel context.CancelCauseFunc
	own    *green.Pool // the owner of the connection and the dispatcher

	session   atomic.Pointer[session] // nil: not connected
	lastError atomic.Pointer[error]   // why not

	performs chan struct{} // one token per running perform
	mu       sync.Mutex
	extra    map[*link]struct{}  // the connections of performs
	moving   map[string]struct{} // the instances of performs, waiting ones too
	virtType string              // found once if Config says auto
	files    keyed               // one at a time per instance's folder
}

// Open starts the driver. It fails only for a Config that can't work: libvirt
// may be away, the driver connects as soon as it can and says EventConnected. ctx
// gives the logger and other values; Close ends the driver.
func Open(ctx context.Context, c Config) (*Driver, error) {
	c = c.WithDefaults()
	if err := c.check(); err != nil {
		return nil, err
	}
	d := &Driver{
		cfg:      c,
		events:   newDispatcher(c.EventBacklog),
		own:      green.NewPool(2), //nolint:contextcheck // nothing runs in it yet
		performs: make(chan struct{}, c.MaxMigrations),
		extra:    map[*link]struct{}{},
		moving:   map[string]struct{}{},
	}
	d.ctx, d.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	first := error(fault.New(fault.Unavailable, "", "", "the first attempt has not ended yet"))
	d.lastError.Store(&first)
	if err := d.own.SpawnN(d.ctx, d.events.run); err != nil { //nolint:contextcheck // the driver lives longer than Open
		return nil, fault.Wrap(err, "libvirt_open", "")
	}
	if err := d.own.SpawnN(d.ctx, d.keepConnected); err != nil { //nolint:contextcheck // the same
		d.cancel(errClosed)
		return nil, fault.Wrap(err, "libvirt_open", "")
	}
	return d, nil
}

// Close ends the driver's threads and connections. Running migrations go on:
// the two libvirtd own them.
func (d *Driver) Close() error {
	d.cancel(errClosed)
	d.mu.Lock()
	for l := range d.extra {
		l.close()
	}
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), d.cfg.ConnectTimeout)
	defer cancel()
	return fault.Wrap(d.own.WaitAll(ctx), "libvirt_close", "")
}

// Subscribe calls fn for every event from now on, in order, from one goroutine.
func (d *Driver) Subscribe(fn func(virt.Event)) (cancel func()) { return d.events.subscribe(fn) }

// keepConnected is the one owner of the session.
func (d *Driver) keepConnected(ctx context.Context) error {
	for ctx.Err() == nil {
		s, err := d.connectAgain(ctx)
		if err != nil {
			return nil //nolint:nilerr // only the driver's end ends the retries
		}
		d.session.Store(s)
		s.gate.begin()
		d.cfg.Log(ctx, "connected to libvirt", nil)
		err = d.watch(ctx, s)
		d.lastError.Store(&err)
		d.session.Store(nil)
		s.close()
		if ctx.Err() == nil {
			d.cfg.Log(ctx, "lost libvirt", err)
		}
		_ = green.Sleep(ctx, d.cfg.ReconnectFirst) // a libvirt that greets and falls must not be hammered
	}
	return nil
}

// connectAgain tries until it has a session or ctx ends.
func (d *Driver) connectAgain(ctx context.Context) (*session, error) {
	retry := green.Retry{
		Max: -1, First: d.cfg.ReconnectFirst, Limit: d.cfg.ReconnectLimit, Jitter: 0.3,
		Retryable: func(error) bool { return ctx.Err() == nil },
		OnRetry: func(try int, err error, _ time.Duration) {
			d.lastError.Store(&err)
			if try == 1 {
				d.cfg.Log(ctx, "libvirt is away; trying again", err)
			}
		},
	}
	return green.RetryCall(ctx, retry, func(ctx context.Context) (*session, error) {
		return connect(ctx, d.cfg, d.events)
	})
}

// watch pings until the session is lost, and gives what ended it.
func (d *Driver) watch(ctx context.Context, s *session) error {
	beat := time.NewTicker(d.cfg.PingInterval)
	defer beat.Stop()
	for {
		select {
		case <-s.events.gone:
			return s.events.reason()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-beat.C:
		case <-s.suspect:
		}
		if err := s.ping(ctx, d.cfg); err != nil {
			return err
		}
	}
}

// connected gives the session, or unavailable with what is known of the reason.
func (d *Driver) connected(op, subject string) (*session, error) {
	if s := d.session.Load(); s != nil {
		return s, nil
	}
	why := *d.lastError.Load()
	if d.ctx.Err() != nil {
		why = errClosed
	}
	return nil, fault.New(fault.Unavailable, op, subject, "not connected to libvirt").Because(why).
		WithHint("see whether libvirtd runs (systemctl status libvirtd) and whether this user may use %s", d.cfg.SocketPath)
}

// control carries out a short call.
func control[T any](ctx context.Context, d *Driver, op, id string, fn func(*golibvirt.Libvirt) (T, error)) (T, error) {
	return bounded(ctx, d, call{op, id, d.cfg.CallTimeout, false}, fn)
}

// call says what a call is about, how long it may take and on which duty.
type call struct {
	op, id   string
	bound    time.Duration
	blocking bool
}

func bounded[T any](ctx context.Context, d *Driver, c call, fn func(*golibvirt.Libvirt) (T, error)) (T, error) {
	var none T
	s, err := d.connected(c.op, c.id)
	if err != nil {
		return none, err
	}
	p := s.control
	if c.blocking {
		p = s.blocking
	}
	v, err := do(ctx, p, c.bound, fn)
	if errors.Is(err, errBound) {
		d.cfg.Log(ctx, "a call to libvirt hung: "+c.op+" "+c.id, err)
		s.doubt()
	}
	return v, fromLibvirt(err, c.op, c.id)
}
