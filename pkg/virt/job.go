package virt

import (
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// JobType is libvirt's virDomainJobType.
type JobType int

// The job types, by libvirt's numbers.
const (
	JobNone      JobType = 0
	JobBounded   JobType = 1
	JobUnbounded JobType = 2 // a live migration that runs
	JobCompleted JobType = 3
	JobFailed    JobType = 4
	JobCancelled JobType = 5
)

// String gives the type's name.
func (t JobType) String() string {
	switch t {
	case JobNone:
		return "none"
	case JobBounded:
		return "bounded"
	case JobUnbounded:
		return "unbounded"
	case JobCompleted:
		return "completed"
	case JobFailed:
		return "failed"
	case JobCancelled:
		return "cancelled"
	}
	return "unknown"
}

// Job is a snapshot of a domain's job, or the statistics of the last completed
// one. Unknown figures are zero. Rates are bytes per second (libvirt's dirty
// rate, in pages, is already multiplied).
type Job struct {
	Type        JobType
	Elapsed     time.Duration
	Downtime    time.Duration // expected while it runs; measured when completed
	Setup       time.Duration
	Memory      instance.Amount
	Disk        instance.Amount
	Bandwidth   uint64 // memory bytes/s
	DirtyRate   uint64 // bytes/s
	Iteration   uint64
	Throttle    int // auto-converge, percent
	PostCopyReq uint64
	Compressed  Compressed
	Error       string
}

// Compressed counts what xbzrle did; of the other compressions nothing is told.
type Compressed struct {
	Pages  uint64 // pages of which only the changes were sent
	Bytes  uint64 // what that came to
	Misses uint64 // pages that were not in the cache any more, and were sent whole
	Cache  uint64 // its size, bytes
}

// Incoming is a guest that is to arrive here.
type Incoming struct {
	Definition
	Source string // the host it comes from
}

// Inbound tells the source where to send a guest.
type Inbound struct {
	URI        string `json:"uri"`                   // the destination's hypervisor, for peer-to-peer: qemu+tcp://host/system
	MigrateURI string `json:"migrate_uri,omitempty"` // the memory stream's address, when it differs
	TLSName    string `json:"tls_name,omitempty"`    // the name that the destination's certificate is for; empty: the URI's host
}

// Leaving is what a source says of a guest before it moves.
type Leaving struct {
	Reasons []string // everything against it; never nil
	// CPU is the guest's CPU as the hypervisor describes it, for [Definition]; empty: there is
	// nothing to compare.
	CPU string
	// Cached are the targets of disks that are opened through this host's page cache, on a file
	// system that does not keep hosts' caches alike: another host could read stale data.
	Cached []string
}

// MigrateRequest is one perform. All fields but Instance, Migration, Generation
// and Inbound may be zero.
type MigrateRequest struct {
	Instance     string
	Migration    string
	Generation   uint64 // written into the destination's XML: the new owner from birth
	Inbound      Inbound
	BandwidthMiB uint64 // MiB/s; 0: no limit
	PostCopyMiB  uint64 // MiB/s of what is sent ahead in post-copy; 0: no limit
	Parallel     int    // connections; 0: one stream
	PostCopy     bool   // allow a later switch to post-copy
	AutoConverge bool
	Compression  string   // one of [instance.Compressions]; empty: none
	Disks        []string // block migration: the targets to copy; empty: none
	Shared       []string // the writable targets that are known to be the same at both hosts
}
