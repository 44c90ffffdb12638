package libvirt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"
)

// The procedures that the scripted daemon knows, by libvirt's remote_protocol.x.
const (
	procOpen       = 1
	procXML        = 14
	procLookup     = 24
	procHostname   = 59
	procAuthList   = 66
	procLibVersion = 157
	procState      = 212
	procMetadata   = 265
	procJobStats   = 298
	procPerform    = 305
	procRegister   = 316
)

// daemon is a libvirtd made of a script: it speaks the real protocol over pipes,
// and can be silent, cut its connections, refuse new ones and send nonsense. It
// knows one domain.
type daemon struct {
	mu      sync.Mutex
	away    error               // dialling fails with it
	stuck   bool                // reads, and answers nothing
	script  map[uint32]reaction // what is done instead of the plain answer
	conns   []*daemonConn       // open ones
	dials   []time.Time
	calls   map[uint32]int
	onOpen  func(*daemonConn) // after a connection subscribed to everything
	domains map[uuid.UUID]string
}

// reaction gives a reply's body, an error of libvirt's, or hangs until it returns.
type reaction func(c *daemonConn, args []byte) ([]byte, error)

type daemonConn struct {
	d          *daemon
	conn       net.Conn
	write      sync.Mutex
	registered int
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{script: map[uint32]reaction{}, calls: map[uint32]int{}, domains: map[uuid.UUID]string{}}
	t.Cleanup(d.cut)
	return d
}

// dial is Config.dial.
func (d *daemon) dial(context.Context) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dials = append(d.dials, time.Now())
	if d.away != nil {
		return nil, d.away
	}
	ours, theirs := net.Pipe()
	c := &daemonConn{d: d, conn: ours}
	d.conns = append(d.conns, c)
	go c.serve()
	return theirs, nil
}

// set changes the daemon under its lock.
func (d *daemon) set(f func(*daemon)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}

func (d *daemon) dialled() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.dials)
}

// open counts the connections that are not closed.
func (d *daemon) open() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns)
}

// cut closes every connection.
func (d *daemon) cut() {
	d.mu.Lock()
	conns := d.conns
	d.mu.Unlock()
	for _, c := range conns {
		_ = c.conn.Close()
	}
}

func (c *daemonConn) serve() {
	defer c.leave()
	for {
		var size uint32
		if binary.Read(c.conn, binary.BigEndian, &size) != nil {
			return
		}
		packet := make([]byte, size-4)
		if _, err := io.ReadFull(c.conn, packet); err != nil {
			return
		}
		go c.answer(packet[:24], packet[24:])
	}
}

func (c *daemonConn) leave() {
	_ = c.conn.Close()
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	for i, other := range c.d.conns {
		if other == c {
			c.d.conns = append(c.d.conns[:i:i], c.d.conns[i+1:]...)
			return
		}
	}
}

func (c *daemonConn) answer(header, args []byte) {
	proc := binary.BigEndian.Uint32(header[8:])
	c.d.mu.Lock()
	c.d.calls[proc]++
	stuck, special := c.d.stuck, c.d.script[proc]
	c.d.mu.Unlock()
	if stuck {
		return
	}
	react := special
	if react == nil {
		react = plain(proc)
	}
	body, err := react(c, args)
	if errors.Is(err, errSilent) {
		return
	}
	status := uint32(0)
	if lv, ok := errors.AsType[golibvirt.Error](err); ok {
		status, body = 1, xdr(lv.Code, uint32(10), uint32(1), lv.Message, uint32(2), uint32(0), uint32(0), uint32(0), uint32(0), uint32(0), uint32(0), uint32(0))
	}
	serial := binary.BigEndian.Uint32(header[16:])
	c.send(xdr(programRemote, uint32(1), proc, uint32(1), serial, status), body)
	if proc == procRegister {
		c.subscribed()
	}
}

// errSilent makes a reaction that never answers.
var errSilent = errors.New("silent")

func (c *daemonConn) subscribed() {
	c.write.Lock()
	c.registered++
	all := c.registered == len(eventIDs())
	c.write.Unlock()
	c.d.mu.Lock()
	f := c.d.onOpen
	c.d.mu.Unlock()
	if all && f != nil {
		f(c)
	}
}

func (c *daemonConn) send(header, body []byte) {
	c.write.Lock()
	defer c.write.Unlock()
	packet := append(xdr(uint32(4+len(header)+len(body))), header...)
	_, _ = c.conn.Write(append(packet, body...))
}

// event sends one event; body comes after the callback's id.
func (c *daemonConn) event(proc uint32, body ...any) {
	c.send(xdr(programRemote, uint32(1), proc, uint32(typeMessage), uint32(0), uint32(0)), xdr(append([]any{uint32(1)}, body...)...))
}

// lifecycle sends a lifecycle event of a domain.
func (c *daemonConn) lifecycle(id uuid.UUID, kind golibvirt.DomainEventType, detail int32) {
	c.event(procLifecycle, "d", id, uint32(1), int32(kind), detail)
}

// events gives the connection that has subscribed.
func (d *daemon) events(t *testing.T) *daemonConn {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		c.write.Lock()
		n := c.registered
		c.write.Unlock()
		if n == len(eventIDs()) {
			return c
		}
	}
	t.Fatal("nobody has subscribed")
	return nil
}

// plain is what a healthy daemon with one domain answers.
func plain(proc uint32) reaction {
	return func(c *daemonConn, args []byte) ([]byte, error) {
		switch proc {
		case procAuthList:
			return xdr(uint32(0)), nil
		case procOpen:
			return nil, nil
		case procLibVersion:
			return xdr(uint64(9_000_000)), nil
		case procHostname:
			return xdr("h1"), nil
		case procRegister:
			return xdr(uint32(1)), nil
		case procLookup:
			return c.lookup(args)
		case procState:
			return xdr(int32(golibvirt.DomainRunning), int32(golibvirt.DomainRunningBooted)), nil
		case procXML:
			return xdr(c.describe(args)), nil
		case procMetadata:
			_, meta, _ := strings.Cut(c.describe(args), "<metadata>")
			meta, _, _ = strings.Cut(meta, "</metadata>")
			return xdr(meta), nil
		case procJobStats:
			return xdr(uint32(0), uint32(0)), nil
		default:
			return nil, golibvirt.Error{Code: uint32(golibvirt.ErrNoSupport), Message: "not in the script"}
		}
	}
}

func (c *daemonConn) lookup(args []byte) ([]byte, error) {
	id, err := uuid.FromBytes(args)
	if err != nil {
		return nil, err
	}
	c.d.mu.Lock()
	_, ok := c.d.domains[id]
	c.d.mu.Unlock()
	if !ok {
		return nil, golibvirt.Error{Code: uint32(golibvirt.ErrNoDomain), Message: "Domain not found"}
	}
	return xdr("d", id, uint32(1)), nil
}

// describe gives the XML of the domain that is named first in args.
func (c *daemonConn) describe(args []byte) string {
	r := &reader{rest: args}
	id := uuid.MustParse(r.domain())
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	return c.d.domains[id]
}

// xdr encodes by RFC 4506.
func xdr(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range values {
		switch v := v.(type) {
		case string:
			_ = binary.Write(&b, binary.BigEndian, uint32(len(v)))
			b.WriteString(v)
			b.Write(make([]byte, -len(v)&3))
		case int:
			_ = binary.Write(&b, binary.BigEndian, uint32(v))
		default:
			if err := binary.Write(&b, binary.BigEndian, v); err != nil {
				panic(err)
			}
		}
	}
	return b.Bytes()
}
