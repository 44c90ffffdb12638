package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"

	"github.com/compute-agent/compute-agent/pkg/green"
)

/*
link is one connection to libvirtd. It is never used again after its end, so
that no callback of an earlier connection can be mistaken for one of this.

	dialled ──▶ in service ──a call over its bound──▶ retired ──neighbours ended──▶ closed
	                 └───────────lost, or close──────────┴───────────────────────────▲
*/
type link struct {
	lv    *golibvirt.Libvirt
	conn  net.Conn
	slots chan struct{} // one token per call in flight

	retired chan struct{} // closed: no new calls
	gone    chan struct{} // closed: the socket is

	mu     sync.Mutex
	why    error // what ended it
	out    bool  // retired
	flight int   // calls on the way
	hung   int   // of these, over their bound
}

// dialLink connects and greets, bounded by ConnectTimeout. sink sees events.
func dialLink(ctx context.Context, c Config, sink func(uint32, []byte)) (*link, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.ConnectTimeout, errBound)
	defer cancel()
	raw, err := c.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to libvirt: %w", err)
	}
	l := &link{slots: make(chan struct{}, c.CallsPerConnection), retired: make(chan struct{}), gone: make(chan struct{})}
	f := &frames{Conn: raw, sink: sink, gone: l.lost}
	l.conn, l.lv = f, golibvirt.NewWithDialer(dialers.NewAlreadyConnected(f))
	greet := green.Spawn(context.WithoutCancel(ctx), func(context.Context) (struct{}, error) {
		if err := l.lv.ConnectToURI(golibvirt.ConnectURI(c.URI)); err != nil {
			return struct{}{}, err
		}
		_, err := l.lv.ConnectGetLibVersion() // also orders go-libvirt's own set-up before its end
		return struct{}{}, err
	})
	if _, err := greet.Wait(ctx); err != nil {
		l.close()
		return nil, fmt.Errorf("libvirt did not greet: %w", givenUp(ctx, err))
	}
	return l, nil
}

// givenUp names why a wait ended early instead of green's word for it, so that
// nobody above takes it for the end of a wait of their own.
func givenUp(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, green.ErrWaitGivenUp) {
		return cause
	}
	return err
}

// lost notes the end of the socket.
func (l *link) lost(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why = err
	close(l.gone)
}

// reason is what ended the link.
func (l *link) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why == nil || errors.Is(l.why, errGone) {
		return errGone
	}
	return fmt.Errorf("%w: %w", errGone, l.why)
}

// close ends the link and every call on it.
func (l *link) close() {
	_ = l.conn.Close() // it is gone either way
}

// usable reports whether new calls may be put on it.
func (l *link) usable() bool {
	select {
	case <-l.gone:
		return false
	case <-l.retired:
		return false
	default:
		return true
	}
}

// take waits for a place among the calls in flight; errGone when the link is no
// longer in service, so that the caller tries the next one.
func (l *link) take(ctx context.Context) error {
	if !l.usable() {
		return errGone
	}
	select {
	case l.slots <- struct{}{}:
	case <-l.gone:
		return errGone
	case <-l.retired:
		return errGone
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flight++
	return nil
}

// release gives the place back; the last neighbour of a hung call closes the socket.
func (l *link) release(wasHung bool) {
	l.mu.Lock()
	l.flight--
	if wasHung {
		l.hung--
	}
	last := l.out && l.flight == l.hung
	l.mu.Unlock()
	<-l.slots
	if last {
		l.close()
	}
}

// hang takes the link out of service because of one call over its bound.
func (l *link) hang() {
	l.mu.Lock()
	l.hung++
	if !l.out {
		l.out = true
		close(l.retired)
	}
	last := l.flight == l.hung
	l.mu.Unlock()
	if last {
		l.close()
	}
}

// pending is one call on its way, which ends or passes its bound, whichever is first.
type pending struct {
	l     *link
	mu    sync.Mutex
	ended bool
	over  bool
}

// expire is the end of the bound.
func (p *pending) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended && !p.over {
		p.over = true
		p.l.hang()
	}
}

// end is the end of the call; its place is free again.
func (p *pending) end() {
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.l.release(p.over)
}

func (p *pending) hung() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over
}

// run carries out one call on a place that was taken, in its own thread. It
// answers when the call ends, when bound has passed or when ctx ends; in the last
// two cases the call goes on until the link's end, at the latest at its bound.
func run[T any](ctx context.Context, l *link, bound time.Duration, fn func(*golibvirt.Libvirt) (T, error)) (T, error) {
	p := &pending{l: l}
	timer := time.AfterFunc(bound, p.expire)
	call := green.Spawn(context.WithoutCancel(ctx), func(context.Context) (T, error) {
		defer p.end()
		defer timer.Stop()
		return fn(l.lv)
	})
	waiting, cancel := context.WithTimeoutCause(ctx, bound, errBound)
	defer cancel()
	v, err := call.Wait(waiting)
	if err == nil {
		return v, nil
	}
	if errors.Is(err, green.ErrWaitGivenUp) {
		if err = givenUp(waiting, err); errors.Is(err, errBound) {
			p.expire()
		}
		return v, err
	}
	if p.hung() {
		return v, errBound
	}
	return v, l.explain(err)
}

// explain names the loss of the connection instead of go-libvirt's words for it.
func (l *link) explain(err error) error {
	var lv golibvirt.Error
	if err == nil || errors.As(err, &lv) || errors.Is(err, golibvirt.ErrUnsupported) {
		return err
	}
	if !l.usable() {
		return l.reason()
	}
	return err
}
