package rpc

import "time"

// The defaults of [Config] and of the bus in memory.
const (
	DefaultPrefix          = "compute"
	DefaultConnectTimeout  = 2 * time.Second
	DefaultCallTimeout     = 60 * time.Second // oslo.messaging's rpc_response_timeout
	DefaultPublishTimeout  = 5 * time.Second
	DefaultAckWait         = 5 * time.Second
	DefaultMaxAge          = 7 * 24 * time.Hour
	DefaultEventsMaxAge    = 24 * time.Hour
	DefaultConflictTimeout = 250 * time.Millisecond
)
