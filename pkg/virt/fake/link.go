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
The link between two processes: one TCP connection for each migration, on
loopback, one JSON object a line, at most maxLine bytes long.

	source                        destination
	  │ ── {begin: offer} ──────────▶ │ paused domain
	  │ ◀────────────────── {error} ── │
	  │ ── {post_copy: handover} ───▶ │ resumed (only in post-copy)
	  │ ◀────────────────── {error} ── │
	  │ ── {mend: handover} ────────▶ │ goes on (on a new connection, after a break in post-copy)
	  │ ◀────────────────── {error} ── │
	  │ ── {finish: handover} ──────▶ │ resumed, defined
	  │ ◀────────────────── {error} ── │

Either side closes the connection to give up; the destination then drops a guest
that it has not resumed.
*/

// maxLine bounds a message in bytes: a spec is a few KiB.
const maxLine = 1 << 20

// message is what the source sends: exactly one member is set.
type message struct {
	Begin    *offer    `json:"begin,omitempty"`
	PostCopy *handover `json:"post_copy,omitempty"`
	Mend     *handover `json:"mend,omitempty"`
	Finish   *handover `json:"finish,omitempty"`
}

// answer is what the destination replies.
type answer struct {
	Error *fault.Error `json:"error,omitempty"`
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
			green.SpawnN(ctx, func(context.Context) error { l.serve(c); return nil })
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

// serve is one guest's arrival.
func (l *listener) serve(c net.Conn) {
	defer func() {
		_ = c.Close()
		l.mu.Lock()
		delete(l.conns, c)
		l.mu.Unlock()
	}()
	in, limit := newScanner(c), l.host.cfg.LinkTimeout
	var begun *offer
	for {
		silence := limit
		if begun != nil {
			silence = 360 * limit
		}
		_ = c.SetReadDeadline(time.Now().Add(silence))
		if !in.Scan() {
			break
		}
		var m message
		err := json.Unmarshal(in.Bytes(), &m)
		if err == nil {
			err = l.do(c, &begun, m)
		}
		if write(c, limit, answer{Error: fault.Wire(err)}) != nil {
			break
		}
	}
	if begun != nil {
		mu := &l.host.world.mu
		mu.Lock()
		defer mu.Unlock()
		l.host.abandonLocked(begun.Instance, begun.Migration)
		_ = l.host.changedLocked(begun.Instance) // kept for the next call
	}
}

// do carries a message out. A handover must be for the guest that began here.
func (l *listener) do(c net.Conn, begun **offer, m message) error {
	mu := &l.host.world.mu
	mu.Lock()
	defer mu.Unlock()
	switch o := *begun; {
	case m.Begin != nil && o == nil:
		if err := l.host.arriveLocked(*m.Begin, func() { _ = c.Close() }); err != nil {
			return err
		}
		*begun = m.Begin
		return nil
	case m.Mend != nil && o == nil:
		if err := l.host.mendArrivalLocked(*m.Mend); err != nil {
			return err
		}
		*begun = &offer{Instance: m.Mend.Instance, Migration: m.Mend.Migration}
		return nil
	case m.PostCopy != nil && o.owns(m.PostCopy):
		return l.host.postCopyLocked(*m.PostCopy)
	case m.Finish != nil && o.owns(m.Finish):
		return l.host.finishLocked(*m.Finish)
	}
	return fault.New(fault.InvalidArgument, "link", "", "a message out of its turn")
}

func (o *offer) owns(h *handover) bool {
	return o != nil && o.Instance == h.Instance && o.Migration == h.Migration
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

// stranger is a destination in another process.
type stranger struct {
	address string
	host    *Host // the source

	mu      sync.Mutex
	conn    net.Conn
	aborted bool
	answers chan answer // closed when the connection ends
}

func (s *stranger) begin(ctx context.Context, o offer, lostLocked func()) error {
	if err := s.dial(ctx, o.Instance, lostLocked); err != nil {
		return err
	}
	return s.exchange(message{Begin: &o}, o.Instance)
}

// dial connects with the other process.
func (s *stranger) dial(ctx context.Context, id string, lostLocked func()) error {
	if err := loopback(s.address); err != nil {
		return err
	}
	dialer := net.Dialer{Timeout: s.host.cfg.LinkTimeout}
	c, err := dialer.DialContext(ctx, "tcp", s.address)
	if err != nil {
		return fault.WrapAs(fault.Internal, err, "Migrate", s.address)
	}
	if !s.connect(c) {
		_ = c.Close()
		return fault.New(fault.Cancelled, "Migrate", id, "the job was aborted")
	}
	green.SpawnN(ctx, func(context.Context) error { s.listen(c, lostLocked); return nil })
	return nil
}

// connect takes a connection; false: the job was aborted meanwhile.
func (s *stranger) connect(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted {
		return false
	}
	s.conn, s.answers = c, make(chan answer, 1)
	return true
}

// listen reads answers until the connection ends.
func (s *stranger) listen(c net.Conn, lostLocked func()) {
	in := newScanner(c)
	for in.Scan() {
		var a answer
		if err := json.Unmarshal(in.Bytes(), &a); err != nil {
			break
		}
		select {
		case s.answers <- a:
		default: // an answer that nobody asked for
		}
	}
	_ = c.Close()
	close(s.answers)
	mu := &s.host.world.mu
	mu.Lock()
	defer mu.Unlock()
	lostLocked()
}

// exchange sends a message and waits for its answer. What could not be sent was
// not carried out; what was sent and not answered may have been (unavailable).
func (s *stranger) exchange(m message, id string) error {
	limit := s.host.cfg.LinkTimeout
	if err := write(s.conn, limit, m); err != nil {
		return fault.WrapAs(fault.Internal, err, "Migrate", s.address)
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case a, ok := <-s.answers:
		if ok {
			return a.err()
		}
	case <-timer.C:
	}
	return fault.New(fault.Unavailable, "Migrate", id, "the destination did not answer: whether the guest runs there is not known")
}

func (s *stranger) postCopy(_ context.Context, h handover) error {
	return s.exchange(message{PostCopy: &h}, h.Instance)
}

func (s *stranger) finish(_ context.Context, h handover) error {
	err := s.exchange(message{Finish: &h}, h.Instance)
	if err == nil {
		_ = s.conn.Close() // its work is done
	}
	return err
}

func (s *stranger) abortLocked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aborted = true
	if s.conn != nil {
		_ = s.conn.Close()
	}
}
