package rpc

import (
	"net"
	"regexp"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// The defaults of [Config] and of the bus in memory.
const (
	DefaultURL             = "nats://127.0.0.1:4222"
	DefaultPrefix          = "compute"
	DefaultConnectTimeout  = 2 * time.Second
	DefaultCallTimeout     = 60 * time.Second // oslo.messaging's rpc_response_timeout
	DefaultPublishTimeout  = 5 * time.Second
	DefaultConflictTimeout = 250 * time.Millisecond
	DefaultReconnectLimit  = 5 * time.Second
	DefaultPingInterval    = 10 * time.Second
	DefaultHeartbeat       = 5 * time.Second
	DefaultAckWait         = 5 * time.Second
	DefaultMaxAge          = 7 * 24 * time.Hour
	DefaultEventsMaxAge    = 24 * time.Hour
)

// Config says how to reach NATS and how to behave there. The zero value of a
// member means its default.
type Config struct {
	URLs   []string // servers of one cluster; default nats://127.0.0.1:4222
	Name   string   // of this client, as the server lists it
	Prefix string   // of subjects; streams and buckets are named by it in upper case; default compute
	// InboxPrefix is where replies come; an agent's credential is limited to
	// _INBOX_<host>. Default _INBOX.
	InboxPrefix string

	CredsFile   string // JWT and seed, as nsc writes them
	NKeyFile    string // seed of an NKey
	TLSCAFile   string // PEM; who signs the servers' certificates
	TLSCertFile string // PEM; the client's certificate
	TLSKeyFile  string // PEM; its key

	ConnectTimeout  time.Duration // for one server at Dial and at each reconnect; default 2 s
	ReconnectLimit  time.Duration // longest pause between two attempts, which never end; default 5 s, jittered
	PingInterval    time.Duration // a connection is taken for dead after two unanswered pings; default 10 s
	CallTimeout     time.Duration // for a call whose context has no deadline; default 60 s
	PublishTimeout  time.Duration // until a stream confirms, and for each question to JetStream; default 5 s
	ConflictTimeout time.Duration // Serve waits so long for a running agent's answer; default 250 ms, at once when nobody serves the host
	Heartbeat       time.Duration // a reader whose server says nothing for twice as long starts afresh; default 5 s

	// AutoSetup makes streams, buckets and durables when they are missing. Without it
	// compute-agent nats-setup does that with a controller's credential.
	AutoSetup bool
	Replicas  int // of streams and buckets; 0: 1 for new ones, existing ones keep theirs
	// Batches says whether Setup has streams and buckets take many messages with one
	// confirmation, which makes bursts cheaper. Default BatchesKeep.
	Batches Batches

	AckWait      time.Duration // an unacknowledged cast comes again after it; the duplicate window is twice that; default 5 s
	MaxAge       time.Duration // of casts; default 7 days
	EventsMaxAge time.Duration // of events; default 24 h

	// InProcess connects to a server in this process instead of URLs.
	InProcess interface{ InProcessConn() (net.Conn, error) }
	// OnError is told of what happens beside a call: a refused permission, a slow
	// reader. It must not block. May be nil.
	OnError func(error)
}

// Batches says whether streams and buckets take many messages with one confirmation.
// All servers must be NATS 2.14 or newer for that: an older one can't keep such a stream.
type Batches string

// The values of [Config].Batches.
const (
	BatchesKeep Batches = "keep" // what is there stays as it is, what is new takes none
	BatchesOn   Batches = "on"
	BatchesOff  Batches = "off" // before a server goes back to an older version
)

// WithDefaults fills what was left open.
func (c Config) WithDefaults() Config {
	if len(c.URLs) == 0 {
		c.URLs = []string{DefaultURL}
	}
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&c.ConnectTimeout, DefaultConnectTimeout},
		{&c.ReconnectLimit, DefaultReconnectLimit},
		{&c.PingInterval, DefaultPingInterval},
		{&c.CallTimeout, DefaultCallTimeout},
		{&c.PublishTimeout, DefaultPublishTimeout},
		{&c.ConflictTimeout, DefaultConflictTimeout},
		{&c.Heartbeat, DefaultHeartbeat},
		{&c.AckWait, DefaultAckWait},
		{&c.MaxAge, DefaultMaxAge},
		{&c.EventsMaxAge, DefaultEventsMaxAge},
	} {
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	if c.Batches == "" {
		c.Batches = BatchesKeep
	}
	if c.OnError == nil {
		c.OnError = func(error) {}
	}
	return c
}

func (c Config) validate() error {
	bad := func(option, format string, args ...any) error {
		return fault.Newf(fault.InvalidArgument, "rpc", option, format, args...)
	}
	if !regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`).MatchString(c.Prefix) {
		return bad("prefix", "%s is not 1 to 32 letters, digits, _ and -", quoted(c.Prefix))
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		return bad("tls", "a certificate file needs a key file, and a key file a certificate file")
	}
	if c.CredsFile != "" && c.NKeyFile != "" {
		return bad("credentials", "give a credentials file or an NKey file, not both")
	}
	if c.Replicas < 0 || c.Replicas > 5 {
		return bad("replicas", "%d replicas: NATS keeps 1 to 5", c.Replicas)
	}
	if !slices.Contains([]Batches{"", BatchesKeep, BatchesOn, BatchesOff}, c.Batches) {
		return bad("batches", "%s is none of %s, %s and %s", quoted(string(c.Batches)), BatchesKeep, BatchesOn, BatchesOff)
	}
	for option, d := range map[string]time.Duration{
		"connect_timeout": c.ConnectTimeout, "reconnect_limit": c.ReconnectLimit, "ping_interval": c.PingInterval, "call_timeout": c.CallTimeout,
		"publish_timeout": c.PublishTimeout, "conflict_timeout": c.ConflictTimeout, "heartbeat": c.Heartbeat,
		"ack_wait": c.AckWait, "max_age": c.MaxAge, "events_max_age": c.EventsMaxAge,
	} {
		if d < 0 {
			return bad(option, "%s is negative", d)
		}
	}
	return nil
}
