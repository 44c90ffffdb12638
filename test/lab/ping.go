package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"
)

// PingInterval is the spacing that outages are measured with.
const PingInterval = 5 * time.Millisecond

// ICMP echo, RFC 792.
const (
	echoRequest = 8
	echoReply   = 0
	echoBytes   = 8
)

// Pinger sends ICMP echo requests to one address at a steady pace and notes when replies come. It is used once and needs
// root. The zero Interval is PingInterval.
type Pinger struct {
	Target   netip.Addr
	Interval time.Duration

	conn *net.IPConn
	id   uint16
}

// PingReport is what a Pinger saw.
type PingReport struct {
	Began, Ended time.Time
	Sent         int
	Replies      []time.Time // when each reply arrived
}

// Gap is a time without a reply.
type Gap struct{ From, To time.Time }

// Length of the gap.
func (g Gap) Length() time.Duration { return g.To.Sub(g.From) }

// Run pings until ctx ends and then returns what it saw; an end of ctx is no error, neither is silence. It blocks, so its
// caller runs it beside what is measured.
func (p *Pinger) Run(ctx context.Context) (PingReport, error) {
	if p.Interval == 0 {
		p.Interval = PingInterval
	}
	if err := p.open(); err != nil {
		return PingReport{}, err
	}
	defer p.conn.Close() //nolint:errcheck // nothing to lose
	report := PingReport{Began: time.Now()}
	for next := report.Began; ctx.Err() == nil; next = next.Add(p.Interval) {
		if behind := time.Since(next); behind > p.Interval {
			next = time.Now() // the machine stalled: no burst to catch up
		}
		if err := p.send(report.Sent); err != nil {
			return report, err
		}
		report.Sent++
		if err := p.receiveUntil(next.Add(p.Interval), &report); err != nil {
			return report, err
		}
	}
	report.Ended = time.Now()
	return report, nil
}

// LongestGap returns the longest time without a reply between two moments; both ends count as borders, so that a guest
// that stays silent shows. The zero times mean the whole run.
func (r PingReport) LongestGap(from, to time.Time) Gap {
	if from.IsZero() {
		from = r.Began
	}
	if to.IsZero() {
		to = r.Ended
	}
	longest, last := Gap{From: from, To: from}, from
	for _, reply := range append(slices.Clip(r.Replies), to) {
		if reply.Before(from) || reply.After(to) {
			continue
		}
		if reply.Sub(last) > longest.Length() {
			longest = Gap{From: last, To: reply}
		}
		last = reply
	}
	return longest
}

// WaitPing waits until the address answers, at most limit.
func WaitPing(ctx context.Context, target netip.Addr, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	p := Pinger{Target: target}
	if err := p.open(); err != nil {
		return err
	}
	defer p.conn.Close() //nolint:errcheck // nothing to lose
	var report PingReport
	for ; ctx.Err() == nil; report.Sent++ {
		if err := p.send(report.Sent); err != nil {
			return err
		}
		if err := p.receiveUntil(time.Now().Add(20*time.Millisecond), &report); err != nil {
			return err
		}
		if len(report.Replies) > 0 {
			return nil
		}
	}
	return fmt.Errorf("%s does not answer ping after %s and %d requests: %w", target, limit, report.Sent, context.Cause(ctx))
}

// open makes the raw socket. The identifier tells this pinger's replies from others'.
func (p *Pinger) open() error {
	conn, err := net.ListenIP("ip4:icmp", nil)
	if err != nil {
		return fmt.Errorf("cannot ping: %w", err)
	}
	p.conn, p.id = conn, uint16(os.Getpid())^uint16(time.Now().UnixNano())
	return nil
}

// send sends one request. A network that refuses it (no neighbour answers yet) is the same as no reply.
func (p *Pinger) send(seq int) error {
	message := make([]byte, echoBytes)
	message[0] = echoRequest
	binary.BigEndian.PutUint16(message[4:], p.id)
	binary.BigEndian.PutUint16(message[6:], uint16(seq))
	binary.BigEndian.PutUint16(message[2:], checksum(message))
	_, err := p.conn.WriteToIP(message, &net.IPAddr{IP: p.Target.AsSlice()})
	silent := errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.ENOBUFS)
	if err != nil && !silent {
		return fmt.Errorf("cannot ping %s: %w", p.Target, err)
	}
	return nil
}

// receiveUntil notes the replies that arrive before the deadline.
func (p *Pinger) receiveUntil(deadline time.Time, report *PingReport) error {
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("cannot ping %s: %w", p.Target, err)
	}
	buffer := make([]byte, 256)
	for {
		n, from, err := p.conn.ReadFromIP(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read replies of %s: %w", p.Target, err)
		}
		if p.isReply(buffer[:n], from) {
			report.Replies = append(report.Replies, time.Now())
		}
	}
}

// isReply tells whether a message answers one of this pinger's requests.
func (p *Pinger) isReply(message []byte, from *net.IPAddr) bool {
	source, ok := netip.AddrFromSlice(from.IP.To4())
	return ok && source == p.Target && len(message) >= echoBytes && message[0] == echoReply &&
		binary.BigEndian.Uint16(message[4:]) == p.id
}

// checksum is the internet checksum, RFC 1071, of a message of even length.
func checksum(message []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(message); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(message[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
