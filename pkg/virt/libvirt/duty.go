package libvirt

import (
	"context"
	"errors"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// duty is one kind of calls with its connection. A connection that was taken out
// of service by a hung call is replaced when the next call comes.
type duty struct {
	dial func(ctx context.Context) (*link, error)
	fail func(err error) // a new connection can't be made: the hypervisor is away

	turn chan struct{} // one dials at a time

	mu   sync.Mutex
	link *link
	over bool
}

func newDuty(first *link, dial func(context.Context) (*link, error), fail func(error)) *duty {
	return &duty{link: first, dial: dial, fail: fail, turn: make(chan struct{}, 1)}
}

// current gives the connection in service, or nil; over tells that there will be none.
func (p *duty) current() (l *link, over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link != nil && p.link.usable() {
		return p.link, p.over
	}
	return nil, p.over
}

// get gives a connection in service, dialling one if need be.
func (p *duty) get(ctx context.Context) (*link, error) {
	if l, over := p.current(); l != nil || over {
		return l, goneIf(over)
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-p.turn }()
	if l, over := p.current(); l != nil || over {
		return l, goneIf(over)
	}
	fresh, err := p.dial(ctx)
	if err != nil {
		p.fail(err)
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		fresh.close()
		return nil, errGone
	}
	p.link = fresh
	return fresh, nil
}

func goneIf(over bool) error {
	if over {
		return errGone
	}
	return nil
}

// close ends the duty and its connection.
func (p *duty) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if p.link != nil {
		p.link.close()
	}
}

// do carries out one call of a duty: a place on the connection within bound, then
// the call within bound.
func do[T any](ctx context.Context, p *duty, bound time.Duration, fn func(*golibvirt.Libvirt) (T, error)) (T, error) {
	var none T
	l, err := p.place(ctx, bound)
	if err != nil {
		return none, err
	}
	return run(ctx, l, bound, fn)
}

// place takes a place on the connection in service, on the next one if that is
// lost while waiting.
func (p *duty) place(ctx context.Context, bound time.Duration) (*link, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bound, errSlots)
	defer cancel()
	for {
		l, err := p.get(ctx)
		if err != nil {
			return nil, err
		}
		switch err := l.take(ctx); {
		case err == nil:
			return l, nil
		case !errors.Is(err, errGone):
			return nil, err
		}
	}
}
