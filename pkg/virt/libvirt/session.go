package libvirt

import (
	"context"
	"fmt"
	"sync"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/virt"
)

// eventIDs are the kinds of events asked for, by libvirt's virDomainEventID.
func eventIDs() []golibvirt.DomainEventID {
	return []golibvirt.DomainEventID{
		golibvirt.DomainEventIDLifecycle,          // 0
		golibvirt.DomainEventIDReboot,             // 1
		golibvirt.DomainEventIDMigrationIteration, // 20
		golibvirt.DomainEventIDJobCompleted,       // 21
	}
}

// session is one time of being connected: from the subscriptions to the loss of
// the events connection.
type session struct {
	events            *link
	control, blocking *duty
	gate              *gate
	suspect           chan struct{} // a call hung: see at once whether libvirt still answers
}

// connect dials, subscribes and only then makes the duties ready.
func connect(ctx context.Context, c Config, out *dispatcher) (*session, error) {
	s := &session{suspect: make(chan struct{}, 1)}
	s.gate = &gate{out: out}
	events, err := dialLink(ctx, c, s.gate.packet)
	if err != nil {
		return nil, err
	}
	s.events = events
	s.gate.fail = events.close
	if err := subscribe(ctx, c, events); err != nil {
		events.close()
		return nil, err
	}
	plain := func(ctx context.Context) (*link, error) { return dialLink(ctx, c, nil) }
	fail := func(err error) {
		c.Log(ctx, "a connection to libvirt can't be replaced; starting anew", err)
		events.close()
	}
	control, err := plain(ctx)
	if err != nil {
		events.close()
		return nil, err
	}
	s.control = newDuty(control, plain, fail)
	s.blocking = newDuty(nil, plain, fail)
	return s, nil
}

func subscribe(ctx context.Context, c Config, l *link) error {
	for _, id := range eventIDs() {
		if err := l.take(ctx); err != nil {
			return err
		}
		_, err := run(ctx, l, c.ConnectTimeout, func(lv *golibvirt.Libvirt) (int32, error) {
			return lv.ConnectDomainEventCallbackRegisterAny(int32(id), nil)
		})
		if err != nil {
			return fmt.Errorf("libvirt refused the subscription to events of kind %d: %w", id, err)
		}
	}
	return nil
}

// ping asks the least there is to ask, on the events connection.
func (s *session) ping(ctx context.Context, c Config) error {
	if err := s.events.take(ctx); err != nil {
		return err
	}
	_, err := run(ctx, s.events, c.ConnectTimeout, (*golibvirt.Libvirt).ConnectGetLibVersion)
	return err
}

// doubt asks the owner to ping now.
func (s *session) doubt() {
	select {
	case s.suspect <- struct{}{}:
	default:
	}
}

func (s *session) close() {
	s.gate.shut()
	s.events.close()
	s.control.close()
	s.blocking.close()
}

// gate lets events of one session through after its EventConnected and before
// its EventDisconnected.
type gate struct {
	out  *dispatcher
	fail func()

	mu   sync.Mutex
	open bool
	over bool
	held []virt.Event
}

// packet takes an event from the connection's reader.
func (g *gate) packet(procedure uint32, body []byte) {
	ev, ok := decodeEvent(procedure, body)
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.over:
	case !g.open:
		g.held = append(g.held, ev)
	case !g.out.push(ev):
		g.over = true
		g.fail() // the backlog is full: events are lost, so a new session and an inventory are due
	}
}

// begin sends EventConnected and what was held back.
func (g *gate) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = true
	g.out.pushAlways(virt.Event{Kind: virt.EventConnected})
	for _, ev := range g.held {
		g.out.pushAlways(ev)
	}
	g.held = nil
}

// shut lets nothing more through and sends EventDisconnected.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.over = true
	if g.open {
		g.open = false
		g.out.pushAlways(virt.Event{Kind: virt.EventDisconnected})
	}
}
