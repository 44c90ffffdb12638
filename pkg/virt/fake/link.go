package fake

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
)

/*
The link between two processes: one TCP connection for all guests that go from one
host to another process, on loopback, one JSON object a line, at most maxLine bytes
long. It is opened for the first guest and closed after the last.

	source                                destination
	  │ ── {seq, begin: offer} ──────────▶ │ paused domain
	  │ ◀────────────────── {seq, error} ── │
	  │ ── {seq, post_copy: handover} ───▶ │ resumed (only in post-copy)
	  │ ◀────────────────── {seq, error} ── │
	  │ ── {seq, mend: handover} ────────▶ │ goes on (after a break in post-copy)
	  │ ◀────────────────── {seq, error} ── │
	  │ ── {seq, finish: handover} ──────▶ │ resumed, defined
	  │ ◀────────────────── {seq, error} ── │

	  │ ── {give_up: passage} ───────────▶ │ the guest is dropped, unless it was resumed
	  │ ◀──────────────── {lost: passage} ── │ the arriving domain is gone

The end of the connection is a give_up, or lost, for every guest on its way.
*/

// maxLine bounds a message in bytes: a spec is a few KiB.
const maxLine = 1 << 20

// passage names a guest on its way.
type passage struct {
	Instance  string `json:"instance"`
	Migration string `json:"migration"`
}

// message is what the source sends: exactly one member is set beside Seq, which the
// answer repeats; give_up has neither number nor answer.
type message struct {
	Seq      uint64    `json:"seq,omitempty"`
	Begin    *offer    `json:"begin,omitempty"`
	PostCopy *handover `json:"post_copy,omitempty"`
	Mend     *handover `json:"mend,omitempty"`
	Finish   *handover `json:"finish,omitempty"`
	GiveUp   *passage  `json:"give_up,omitempty"`
}

// answer is what the destination sends: a reply, or that a guest was lost.
type answer struct {
	Seq   uint64       `json:"seq,omitempty"`
	Error *fault.Error `json:"error,omitempty"`
	Lost  *passage     `json:"lost,omitempty"`
}

func (a answer) err() error {
	if a.Error == nil {
		return nil
	}
	return a.Error
}

// listener accepts guests of other processes.
type listener struct {
	host *Host
	ln   net.Listener

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

// loopback refuses an address that other machines could reach.
func loopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fault.WrapAs(fault.InvalidArgument, err, "link", address)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fault.New(fault.InvalidArgument, "link", address, "the fake driver's link is for loopback addresses only").
			WithHint("write 127.0.0.1:0")
	}
	return nil
}

func listen(ctx context.Context, h *Host, address string) (*listener, error) {
	if err := loopback(address); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fault.Wrap(err, "link", address)
	}
	l := &listener{host: h, ln: ln, conns: map[net.Conn]bool{}}
	context.AfterFunc(ctx, func() { _ = l.close() })
	green.SpawnN(ctx, l.accept)
	return l, nil
}

func (l *listener) address() string { return l.ln.Addr().String() }

func (l *listener) accept(ctx context.Context) error {
	for {
		c, err := l.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil { // out of descriptors, for example: give others time to close theirs
			if err := green.Sleep(ctx, 100*time.Millisecond); err != nil {
				return nil //nolint:nilerr // the world ends
			}
			continue
		}
		if l.keep(c) {
			green.SpawnN(ctx, func(ctx context.Context) error { l.serve(ctx, c); return nil })
		}
	}
}

// keep remembers a connection; false: the listener was closed meanwhile.
func (l *listener) keep(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = c.Close()
		return false
	}
	l.conns[c] = true
	return true
}

func (l *listener) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	for c := range l.conns {
		_ = c.Close()
	}
	return l.ln.Close()
}

// serve takes the guests of one connection.
func (l *listener) serve(ctx context.Context, c net.Conn) {
	defer func() {
		_ = c.Close()
		l.mu.Lock()
		delete(l.conns, c)
		l.mu.Unlock()
	}()
	h := &harbour{host: l.host, out: &mouth{conn: c, limit: l.host.cfg.LinkTimeout}, begun: map[passage]bool{}}
	in := newScanner(c)
	for silence := h.out.limit; ; silence = 360 * h.out.limit {
		_ = c.SetReadDeadline(time.Now().Add(silence))
		if !in.Scan() {
			break
		}
		var m message
		err := json.Unmarshal(in.Bytes(), &m)
		if err == nil {
			err = h.do(ctx, m)
		}
		if m.GiveUp == nil && h.out.say(answer{Seq: m.Seq, Error: fault.Wire(err)}) != nil {
			break
		}
	}
	h.abandon()
}

// harbour is one connection's guests on their way in.
type harbour struct {
	host  *Host
	out   *mouth
	begun map[passage]bool // guarded by World.mu
}

// do carries a message out. A handover must be for a guest that began here.
func (h *harbour) do(ctx context.Context, m message) error {
	mu := &h.host.world.mu
	mu.Lock()
	defer mu.Unlock()
	switch {
	case m.Begin != nil:
		return h.beginLocked(ctx, *m.Begin)
	case m.GiveUp != nil:
		delete(h.begun, *m.GiveUp)
		h.host.abandonLocked(m.GiveUp.Instance, m.GiveUp.Migration)
		return h.host.changedLocked(m.GiveUp.Instance)
	case m.PostCopy != nil && h.begun[m.PostCopy.passage()]:
		return h.host.postCopyLocked(*m.PostCopy)
	case m.Finish != nil && h.begun[m.Finish.passage()]:
		err := h.host.finishLocked(*m.Finish)
		if err == nil {
			delete(h.begun, m.Finish.passage())
		}
		return err
	case m.Mend != nil:
		err := h.host.mendArrivalLocked(*m.Mend)
		if err == nil {
			h.begun[m.Mend.passage()] = true
		}
		return err
	}
	return fault.New(fault.InvalidArgument, "link", "", "a message out of its turn")
}

func (h *harbour) beginLocked(ctx context.Context, o offer) error {
	p := passage{o.Instance, o.Migration}
	err := h.host.arriveLocked(o, func() {
		delete(h.begun, p)
		green.SpawnN(ctx, func(context.Context) error { _ = h.out.say(answer{Lost: &p}); return nil }) // else the connection has ended: that says it too
	})
	if err == nil {
		h.begun[p] = true
	}
	return err
}

// abandon is the end of the connection.
func (h *harbour) abandon() {
	mu := &h.host.world.mu
	mu.Lock()
	defer mu.Unlock()
	for p := range h.begun {
		h.host.abandonLocked(p.Instance, p.Migration)
		_ = h.host.changedLocked(p.Instance) // kept for the next call
	}
}

func (h *handover) passage() passage { return passage{h.Instance, h.Migration} }

// mouth writes to a connection, one message after the other.
type mouth struct {
	limit time.Duration

	mu   sync.Mutex
	conn net.Conn
}

// say writes one message. A connection that took only a part of it is closed.
func (w *mouth) say(v any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := write(w.conn, w.limit, v)
	if err != nil {
		_ = w.conn.Close()
	}
	return err
}

func newScanner(r io.Reader) *bufio.Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), maxLine)
	return s
}

func write(c net.Conn, limit time.Duration, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(line) >= maxLine {
		return fmt.Errorf("a message of %d bytes is longer than %d", len(line), maxLine)
	}
	if err := c.SetWriteDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, err = c.Write(append(line, '\n'))
	return err
}
