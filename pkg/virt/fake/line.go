package fake

import (
	"context"
	"encoding/json"
	"net"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
)

// lines are a host's connections to other processes, by address. mu guards them and
// what their fields say; nothing is waited for under it, and World.mu is not taken.
type lines struct {
	mu sync.Mutex
	by map[string]*line
}

// line is one connection, shared by all guests that leave for its address.
//
//	dialled ──▶ open ──the last guest is through, the peer's end──▶ ended
//	   └── no answer ──────────────────────────────────────────────▲
type line struct {
	host    *Host
	address string
	ready   chan struct{} // closed when out or err is set
	out     *mouth
	err     error

	// Guarded by lines.mu.
	seq     uint64
	waiting map[uint64]chan answer // closed when the connection ends
	guests  map[passage]func()     // what to call with World.mu when the guest can't arrive
	ended   bool
}

// board gives a guest its place on the line to an address, which is opened now if
// there is none.
func (l *lines) board(ctx context.Context, h *Host, address string, p passage, lostLocked func()) (*line, error) {
	l.mu.Lock()
	n := l.by[address]
	first := n == nil
	if first {
		n = &line{host: h, address: address, ready: make(chan struct{}), waiting: map[uint64]chan answer{}, guests: map[passage]func(){}}
		if l.by == nil {
			l.by = map[string]*line{}
		}
		l.by[address] = n
	}
	n.guests[p] = lostLocked
	l.mu.Unlock()
	if first {
		n.open(ctx)
	}
	<-n.ready // Config.LinkTimeout at most
	return n, n.err
}

// open dials; what fails here was never begun.
func (n *line) open(ctx context.Context) {
	defer close(n.ready)
	limit := n.host.cfg.LinkTimeout
	dialer := net.Dialer{Timeout: limit}
	c, err := dialer.DialContext(ctx, "tcp", n.address)
	if err != nil {
		n.err = fault.WrapAs(fault.Internal, err, "Migrate", n.address)
		n.end()
		return
	}
	n.out = &mouth{conn: c, limit: limit}
	green.SpawnN(ctx, func(context.Context) error { n.listen(c); return nil })
}

// leave takes a guest off the line; the last one closes it.
func (n *line) leave(p passage) {
	l := &n.host.lines
	l.mu.Lock()
	delete(n.guests, p)
	last := len(n.guests) == 0 && !n.ended
	if last {
		n.endLocked()
	}
	l.mu.Unlock()
	if last && n.out != nil {
		_ = n.out.conn.Close()
	}
}

// end lets go of everybody who waits, and gives what is to be called for the guests
// that were on their way.
func (n *line) end() map[passage]func() {
	l := &n.host.lines
	l.mu.Lock()
	defer l.mu.Unlock()
	return n.endLocked()
}

func (n *line) endLocked() map[passage]func() {
	lost := n.guests
	for _, c := range n.waiting {
		close(c)
	}
	n.ended, n.guests, n.waiting = true, nil, nil
	if l := &n.host.lines; l.by[n.address] == n {
		delete(l.by, n.address)
	}
	return lost
}

// listen reads until the connection ends.
func (n *line) listen(c net.Conn) {
	in := newScanner(c)
	for in.Scan() {
		var a answer
		if err := json.Unmarshal(in.Bytes(), &a); err != nil {
			break
		}
		if a.Lost != nil {
			n.lose(*a.Lost)
		} else {
			n.deliver(a)
		}
	}
	_ = c.Close()
	lost := n.end()
	mu := &n.host.world.mu
	mu.Lock()
	defer mu.Unlock()
	for _, lostLocked := range lost {
		lostLocked()
	}
}

func (n *line) deliver(a answer) {
	l := &n.host.lines
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := n.waiting[a.Seq]; c != nil { // else nobody waits for it any more
		delete(n.waiting, a.Seq)
		c <- a // has room for one
	}
}

func (n *line) lose(p passage) {
	l := &n.host.lines
	l.mu.Lock()
	lostLocked := n.guests[p]
	l.mu.Unlock()
	if lostLocked == nil {
		return
	}
	mu := &n.host.world.mu
	mu.Lock()
	defer mu.Unlock()
	lostLocked()
}

// ask reserves the number of a message and the place of its answer.
func (n *line) ask() (uint64, chan answer) {
	l := &n.host.lines
	l.mu.Lock()
	defer l.mu.Unlock()
	n.seq++
	c := make(chan answer, 1)
	if n.ended {
		close(c)
	} else {
		n.waiting[n.seq] = c
	}
	return n.seq, c
}

func (n *line) forget(seq uint64) {
	l := &n.host.lines
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(n.waiting, seq)
}

// stranger is a destination in another process.
type stranger struct {
	address string
	host    *Host // the source
	guest   passage

	mu      sync.Mutex // held while begin is said, so that giveUp comes after it
	line    *line
	aborted bool
}

func (s *stranger) begin(ctx context.Context, o offer, lostLocked func()) error {
	return s.open(ctx, message{Begin: &o}, lostLocked)
}

// open boards the line and says a guest's first message there.
func (s *stranger) open(ctx context.Context, m message, lostLocked func()) error {
	if err := loopback(s.address); err != nil {
		return err
	}
	line, err := s.host.lines.board(ctx, s.host, s.address, s.guest, lostLocked)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.line = line
	if s.aborted {
		s.mu.Unlock()
		line.leave(s.guest)
		return fault.New(fault.Cancelled, "Migrate", s.guest.Instance, "the job was aborted")
	}
	seq, reply := line.ask()
	m.Seq = seq
	err = line.out.say(m)
	s.mu.Unlock()
	return s.hear(seq, reply, err)
}

// exchange sends a message and waits for its answer.
func (s *stranger) exchange(m message) error {
	seq, reply := s.line.ask()
	m.Seq = seq
	return s.hear(seq, reply, s.line.out.say(m))
}

// hear waits for an answer. What could not be sent was not carried out; what was sent
// and not answered may have been (unavailable).
func (s *stranger) hear(seq uint64, reply <-chan answer, unsent error) error {
	if unsent != nil {
		s.line.forget(seq)
		return fault.WrapAs(fault.Internal, unsent, "Migrate", s.address)
	}
	timer := time.NewTimer(s.host.cfg.LinkTimeout)
	defer timer.Stop()
	select {
	case a, ok := <-reply:
		if ok {
			return a.err()
		}
	case <-timer.C:
		s.line.forget(seq)
	}
	return fault.New(fault.Unavailable, "Migrate", s.guest.Instance, "the destination did not answer: whether the guest runs there is not known")
}

func (s *stranger) postCopy(_ context.Context, h handover) error {
	return s.exchange(message{PostCopy: &h})
}

func (s *stranger) finish(_ context.Context, h handover) error {
	err := s.exchange(message{Finish: &h})
	if err == nil {
		s.line.leave(s.guest) // its work is done
	}
	return err
}

// abortLocked has the guest given up; writing may wait, so it is not done here.
func (s *stranger) abortLocked() {
	green.SpawnN(s.host.world.ctx, func(context.Context) error { s.giveUp(); return nil })
}

func (s *stranger) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aborted = true
	if s.line == nil || s.line.out == nil {
		return
	}
	_ = s.line.out.say(message{GiveUp: &s.guest}) // else the connection has ended: that says it too
	s.line.leave(s.guest)
}
