package rpc

import (
	"context"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Bus is the transport in memory, for simulations and tests: it keeps the same
// promises as NATS (the contract suite in rpctest runs on both) and can be told
// to break them ([Bus.SetFaults], [Bus.Partition]). It starts no goroutine and
// holds no lock while it waits, so it runs under testing/synctest as well.
//
//	bus := rpc.NewBus()
//	agent, controller := bus.Connect("node1"), bus.Connect("controller")
type Bus struct {
	opts  busOptions
	names names

	mu     sync.Mutex // guards everything below; never held while waiting or calling out
	conns  map[*memConn]struct{}
	agents map[string][]*memAgent // by host
	casts  castStore
	events eventStore
	views  map[Bucket]*viewStore
	faults func(Passage) Fate
}

type busOptions struct {
	ackWait      time.Duration
	castsMaxAge  time.Duration
	eventsMaxAge time.Duration
	callTimeout  time.Duration
}

// BusOption changes a Bus from its defaults, which are those of [Config].
type BusOption func(*busOptions)

// WithAckWait sets after which time an unacknowledged cast comes again (default
// 5 s). The duplicate window is twice that.
func WithAckWait(d time.Duration) BusOption { return func(o *busOptions) { o.ackWait = d } }

// WithCallTimeout sets how long a call without a deadline waits (default 60 s).
func WithCallTimeout(d time.Duration) BusOption { return func(o *busOptions) { o.callTimeout = d } }

// NewBus makes an empty bus. It needs no end: it holds nothing but memory.
func NewBus(opts ...BusOption) *Bus {
	o := busOptions{ackWait: DefaultAckWait, castsMaxAge: DefaultMaxAge, eventsMaxAge: DefaultEventsMaxAge, callTimeout: DefaultCallTimeout}
	for _, set := range opts {
		set(&o)
	}
	b := &Bus{
		opts: o, names: names{DefaultPrefix},
		conns: map[*memConn]struct{}{}, agents: map[string][]*memAgent{}, views: make(map[Bucket]*viewStore, len(Buckets())),
	}
	b.casts.queues, b.casts.seen = map[string]*castQueue{}, newDedup(2*o.ackWait)
	b.events.seen = newDedup(2 * o.ackWait)
	for _, bucket := range Buckets() {
		b.views[bucket] = &viewStore{entries: map[string]Entry{}}
	}
	return b
}

// Connect opens a connection. name is what [Bus.Partition] and a [Passage] call it;
// several connections may have one name.
func (b *Bus) Connect(name string) Transport {
	c := &memConn{bus: b, name: name, gone: make(chan struct{}), up: make(chan struct{}), landed: map[string]uint64{}}
	close(c.up)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conns[c] = struct{}{}
	return c
}

// Partition cuts every connection of that name from the bus: its calls and
// publishes are unavailable, its agents can't be reached, its readers wait.
func (b *Bus) Partition(name string) { b.setConnected(name, false) }

// Heal undoes Partition.
func (b *Bus) Heal(name string) { b.setConnected(name, true) }

// Restart behaves as a server that goes away, stays away while the function runs,
// and comes back with its store: casts read but not acknowledged stay so.
func (b *Bus) Restart(while func()) {
	for _, c := range b.all() {
		c.setConnected(false)
	}
	while()
	for _, c := range b.all() {
		c.setConnected(true)
	}
}

func (b *Bus) setConnected(name string, up bool) {
	for _, c := range b.all() {
		if c.name == name {
			c.setConnected(up)
		}
	}
}

func (b *Bus) all() []*memConn {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]*memConn, 0, len(b.conns))
	for c := range b.conns {
		list = append(list, c)
	}
	return list
}

// memConn is one connection to a Bus.
type memConn struct {
	bus  *Bus
	name string
	gone chan struct{} // closed by Close

	// guarded by bus.mu
	closed  bool
	cut     bool
	up      chan struct{} // closed while connected
	watches []*stateWatch
	agents  []*memAgent
	puts    uint64            // view entries put so far
	landed  map[string]uint64 // by subject: the newest of them that is stored
}

type stateWatch struct{ fn func(bool) }

// Compile-time check that the bus is a whole transport.
var _ Transport = (*memConn)(nil)

func (c *memConn) setConnected(up bool) {
	b := c.bus
	b.mu.Lock()
	if c.closed || c.cut != up {
		b.mu.Unlock()
		return
	}
	c.cut = !up
	if up {
		close(c.up)
	} else {
		c.up = make(chan struct{})
	}
	watches := append([]*stateWatch(nil), c.watches...)
	b.mu.Unlock()
	for _, w := range watches {
		w.fn(up)
	}
}

// OnState implements [Transport].
func (c *memConn) OnState(fn func(connected bool)) (cancel func()) {
	w := &stateWatch{fn}
	c.bus.mu.Lock()
	defer c.bus.mu.Unlock()
	c.watches = append(c.watches, w)
	return func() {
		c.bus.mu.Lock()
		defer c.bus.mu.Unlock()
		for i := range c.watches {
			if c.watches[i] == w {
				c.watches = append(c.watches[:i:i], c.watches[i+1:]...)
				return
			}
		}
	}
}

// Close implements [Transport].
func (c *memConn) Close() error {
	c.bus.mu.Lock()
	if c.closed {
		c.bus.mu.Unlock()
		return nil
	}
	c.closed = true
	delete(c.bus.conns, c)
	agents := c.agents
	c.bus.mu.Unlock()
	close(c.gone)
	for _, a := range agents {
		a.stop()
	}
	return nil
}

// usableLocked refuses work on a connection that is closed or cut off.
func (c *memConn) usableLocked(op string) error {
	switch {
	case c.closed:
		return fault.New(fault.Unavailable, op, "", "the connection is closed")
	case c.cut:
		return errAway(op)
	}
	return nil
}

// wait blocks until the reader's queue is woken, the connection is closed, ctx
// ends, or until passes (zero: no limit). While the connection is cut off it
// waits for that too.
func (c *memConn) wait(ctx context.Context, wake <-chan struct{}, until time.Time) error {
	c.bus.mu.Lock()
	up, cut := c.up, c.cut
	c.bus.mu.Unlock()
	var due <-chan time.Time
	if cut {
		wake = up
	} else if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-wake:
	case <-due:
	case <-c.gone:
		return fault.New(fault.Unavailable, "read", "", "the connection is closed")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// dedup is a duplicate window: ids seen lately.
type dedup struct {
	window time.Duration
	at     map[string]time.Time
	order  []string
}

func newDedup(window time.Duration) dedup { return dedup{window: window, at: map[string]time.Time{}} }

// seen reports whether id was noted within the window, and notes it if not. An
// empty id is always new.
func (d *dedup) seen(id string, now time.Time) bool {
	for len(d.order) > 0 && now.Sub(d.at[d.order[0]]) >= d.window {
		delete(d.at, d.order[0])
		d.order = d.order[1:]
	}
	if id == "" {
		return false
	}
	if _, known := d.at[id]; known {
		return true
	}
	d.at[id] = now
	d.order = append(d.order, id)
	return false
}

// signal wakes one waiter of a channel with room for one wake-up.
func signal(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}
