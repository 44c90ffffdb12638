package libvirt

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
)

// The shape of a packet: a length that counts itself, six words of header, the body.
const (
	wordSize   = 4
	headerSize = 7 * wordSize
	maxPacket  = 32 << 20 // libvirt's VIR_NET_MESSAGE_MAX
)

// programRemote is the number of libvirt's main protocol; events come with it.
const programRemote = 0x20008086

// typeMessage marks a packet that answers no call: an event.
const typeMessage = 2

// frames is a connection to libvirtd that hands on whole packets of a lawful
// length and shows events to a sink as they pass, in order. go-libvirt's own
// reader would panic on a short length. Read is called by one goroutine.
type frames struct {
	net.Conn
	sink func(procedure uint32, body []byte) // nil: nobody listens
	gone func(error)                         // called once, with what ended the reading or writing

	once sync.Once
	rest []byte // what is left of the packet read last
	buf  []byte
}

// Read gives the next bytes of the current packet.
func (f *frames) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if err := f.packet(); err != nil {
			f.end(err)
			return 0, err
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// packet reads one packet; an event is shown to the sink and not handed on.
func (f *frames) packet() error {
	var head [headerSize]byte
	if _, err := io.ReadFull(f.Conn, head[:wordSize]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < headerSize || size > maxPacket {
		return fmt.Errorf("libvirtd sent a packet of %d bytes, which can't be", size)
	}
	if cap(f.buf) < int(size) {
		f.buf = make([]byte, size)
	}
	buf := f.buf[:size]
	copy(buf, head[:wordSize])
	if _, err := io.ReadFull(f.Conn, buf[wordSize:]); err != nil {
		return err
	}
	word := func(i int) uint32 { return binary.BigEndian.Uint32(buf[i*wordSize:]) }
	if word(1) == programRemote && word(4) == typeMessage {
		if f.sink != nil {
			f.sink(word(3), buf[headerSize:])
		}
		return nil
	}
	f.rest = buf
	return nil
}

// Write passes bytes on and notes the loss of the connection.
func (f *frames) Write(p []byte) (int, error) {
	n, err := f.Conn.Write(p)
	if err != nil {
		f.end(err)
	}
	return n, err
}

// Close closes the socket; reads, writes and go-libvirt's pending calls end.
func (f *frames) Close() error {
	f.end(errGone)
	return f.Conn.Close()
}

func (f *frames) end(err error) { f.once.Do(func() { f.gone(err) }) }
