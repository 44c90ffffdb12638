// Package rpc is the transport between controllers and agents: calls, casts,
// events and views over NATS, and the same in memory for simulations. It knows
// no method. The wire (subjects, headers, streams, buckets) is design section 4.
//
// An agent uses [Agent], a controller [Client]; both come from one [Transport],
// made by Dial for NATS or by a Bus in memory. The contract suite in rpctest
// holds both to the same promises.
package rpc

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/internal/jsonkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Message is a request as it travels: headers and one JSON object.
type Message struct {
	Method    string
	RequestID string    // Compute-Request-Id; may span many hosts
	Version   string    // Compute-Version; empty counts as 1.0
	Expires   time.Time // Compute-Expires: a cast read later is refused; a call's caller waits no longer. Zero: none
	Trace     string    // traceparent, passed on untouched
	// Heartbeat, Compute-Heartbeat, of a call: the agent says so often that it is still
	// at it, and a caller that hears nothing for twice as long gives up. Zero: one
	// reply and nothing else. It needs an inbox below _INBOX.
	Heartbeat time.Duration
	Args      []byte // one JSON object
}

// Reply answers a call: a JSON object, or an error.
type Reply struct {
	Body []byte
	Err  *fault.Error
}

// Handler takes one call. It must not block: it hands the work on and calls
// respond exactly once, from any goroutine. ctx ends when the caller's deadline
// passes or the agent stops serving.
type Handler func(ctx context.Context, m Message, respond func(Reply))

// ServiceInfo is what an agent tells of itself in $SRV.INFO.
type ServiceInfo struct {
	Host       string
	Version    string            // of the software
	Metadata   map[string]string // host, machine_id, state_dir
	Stats      func() any        // per-method figures, for $SRV.STATS; may be nil
	MaxPending int               // calls buffered at most; 0: the library's default
}

// Delivery is one cast that was read. Ack removes it from the stream; it is to be
// called when the cast stands in the journal, not before.
type Delivery struct {
	Message
	Sequence  uint64       // in the stream: the order of casts
	Delivered int          // 1 on the first delivery
	Sent      time.Time    // when the stream stored it
	Pending   int          // casts that waited in the stream behind it when it was delivered
	Malformed *fault.Error // set when headers or subject can't be read; Message holds what could
	Ack       func() error // safe to call once; an error only delays: the cast comes again
}

// CastReader reads one host's casts in order.
type CastReader interface {
	// Next waits for at least one cast and gives up to limit that are there. When it
	// gives an error no cast is lost. ctx's end is its cause; unavailable means that
	// the bus is away, try again.
	Next(ctx context.Context, limit int) ([]Delivery, error)
	// Unacked tells how many casts were delivered earlier, to this or a former
	// reader, and are not acknowledged; they come again within AckWait.
	Unacked(ctx context.Context) (int, error)
	// Close stops reading; what was delivered and not acknowledged comes again.
	Close() error
}

// Event is one message of the event stream.
type Event struct {
	Host     string
	Kind     string // task, instance, migration, vif, host
	ID       string // request id, UUID; what the last token of the subject is
	MsgID    string // Nats-Msg-Id: publishing it again within the window stores it once
	Body     []byte
	Sequence uint64    // set when read
	At       time.Time // set when read: when the stream stored it
}

// EventFilter selects events; an empty field means any.
type EventFilter struct {
	Host, Kind, ID string
	// From: where to begin: FromNow, FromLast (the last one of each subject first), FromAll.
	From Start
	// Sequence, if not zero, begins at that event and From is not read.
	Sequence uint64
}

// Start says where reading events begins.
type Start int

// The starts.
const (
	FromNow Start = iota
	FromLast
	FromAll
)

// EventReader reads events in stream order.
type EventReader interface {
	Next(ctx context.Context) (Event, error)
	Close() error
}

// Bucket is a view: a key-value bucket that agents write and anyone reads.
type Bucket string

// The views, without the prefix of their real names.
const (
	Hosts      Bucket = "HOSTS"      // key <host>
	Instances  Bucket = "INSTANCES"  // <host>.<instance>
	Migrations Bucket = "MIGRATIONS" // <source>.<migration>
)

// Buckets lists all views.
func Buckets() []Bucket { return []Bucket{Hosts, Instances, Migrations} }

// Entry is one key of a view.
type Entry struct {
	Bucket   Bucket
	Key      []string // unescaped tokens: [host], [host, uuid]
	Value    []byte
	Revision uint64
	At       time.Time
	Deleted  bool // seen by watchers only
	Initial  bool // seen by watchers: part of what was there at the start
}

// Views reads and writes the buckets. Keys are token lists; hosts are escaped here.
type Views interface {
	Put(ctx context.Context, b Bucket, key []string, value []byte) error
	Delete(ctx context.Context, b Bucket, key []string) error
	// PutAll writes entries (Bucket, Key and Value; Deleted: removes them) with many on
	// their way at once, and tells how many from the front are stored; fewer than all
	// come with an error. What is behind them may be stored or not. A key must not be
	// in it twice.
	PutAll(ctx context.Context, entries []Entry) (stored int, err error)
	// Get gives one entry, not_found without it.
	Get(ctx context.Context, b Bucket, key []string) (Entry, error)
	// List gives the entries whose key matches; "*" stands for one token.
	List(ctx context.Context, b Bucket, pattern []string) ([]Entry, error)
	// Watch calls fn for what is there and then for each change, in order, until ctx
	// ends (its cause) or fn returns an error (that error).
	Watch(ctx context.Context, b Bucket, pattern []string, fn func(Entry) error) error
}

// Agent is the transport as an agent uses it.
type Agent interface {
	// Serve answers calls to host until stop. It refuses (conflict) when another agent
	// with this host name and another machine_id or state_dir runs.
	Serve(ctx context.Context, info ServiceInfo, h Handler) (stop func() error, err error)
	// Casts opens the host's durable reader.
	Casts(ctx context.Context, host string) (CastReader, error)
	// Publish stores an event and returns when the stream has it.
	Publish(ctx context.Context, e Event) error
	// PublishAll stores events in this order with many on their way at once, and tells
	// how many from the front are stored; fewer than all come with an error. What is
	// behind them may be stored or not: publish it again with the same MsgIDs.
	PublishAll(ctx context.Context, events []Event) (stored int, err error)
	Views
}

// Client is the transport as a controller, or an agent towards a peer, uses it.
type Client interface {
	// Call sends m and waits for the one reply: its body, or its error as *fault.Error.
	// No agent there is unavailable at once. ctx must have a deadline or the default holds.
	Call(ctx context.Context, host string, m Message) ([]byte, error)
	// Cast stores m in the stream. nil means stored, not yet accepted by the agent.
	Cast(ctx context.Context, host string, m Message) error
	// Events opens a reader.
	Events(ctx context.Context, f EventFilter) (EventReader, error)
	Views
}

// Transport is one connection of one process to the bus.
type Transport interface {
	Agent
	Client
	// OnState calls fn at each change of the connection: true connected, false away.
	// fn must not block. cancel ends it.
	OnState(fn func(connected bool)) (cancel func())
	// Close ends the connection.
	Close() error
}

// EscapeHost writes a host name as one subject token, durable name and key:
// every byte outside [A-Za-z0-9_-] becomes =XX.
func EscapeHost(host string) string {
	if isToken(host) {
		return host
	}
	var b strings.Builder
	for i := range len(host) {
		c := host[i]
		if plain(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String()
}

// plain reports whether a byte stands for itself in a token.
func plain(c byte) bool {
	return c == '_' || c == '-' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// isToken reports whether s needs no escape.
func isToken(s string) bool {
	for i := range len(s) {
		if !plain(s[i]) {
			return false
		}
	}
	return true
}

// UnescapeHost reverses EscapeHost; what is not escaped lawfully is refused.
func UnescapeHost(token string) (string, error) {
	if isToken(token) {
		return token, nil
	}
	var b strings.Builder
	for i := 0; i < len(token); i++ {
		if token[i] != '=' {
			b.WriteByte(token[i])
			continue
		}
		var c byte
		if i+2 >= len(token) {
			return "", fault.Newf(fault.InvalidArgument, "", token, "the escape at byte %d is cut short", i)
		}
		if _, err := fmt.Sscanf(token[i+1:i+3], "%02X", &c); err != nil {
			return "", fault.Newf(fault.InvalidArgument, "", token, "the escape at byte %d is not =XX", i)
		}
		b.WriteByte(c)
		i += 2
	}
	if EscapeHost(b.String()) != token {
		return "", fault.New(fault.InvalidArgument, "", token, "the token is not in its canonical form")
	}
	return b.String(), nil
}

// JSON encodes a body; a value that can't be encoded is a defect of the caller.
func JSON(v any) ([]byte, error) {
	raw, err := jsonkit.Marshal(v)
	if err != nil {
		return nil, fault.WrapAs(fault.Internal, err, "encode", fmt.Sprintf("%T", v))
	}
	return raw, nil
}
