package instance

import (
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Migration is one move of one instance, as its source conducts it and as the
// view COMPUTE_MIGRATIONS shows it.
type Migration struct {
	UUID       string          `json:"uuid"`
	Generation uint64          `json:"generation"` // the generation that the destination will own
	Instance   string          `json:"instance"`
	Source     string          `json:"source"`
	Dest       string          `json:"dest"`
	RequestID  string          `json:"request_id,omitempty"`
	Status     MigrationStatus `json:"status"`
	Phase      string          `json:"phase"`
	Mode       MigrationMode   `json:"mode,omitempty"`
	Policy     string          `json:"policy,omitempty"`
	Progress   Progress        `json:"progress,omitzero"`
	Result     *Result         `json:"result,omitempty"` // set at the end
	Fault      *fault.Error    `json:"fault,omitempty"`
	StartedAt  time.Time       `json:"started_at"`
	UpdatedAt  time.Time       `json:"updated_at"`
	EndedAt    time.Time       `json:"ended_at,omitzero"`
}

// MigrationStatus is the coarse state that people and nova's tools know.
type MigrationStatus string

/*
The states of a migration. Everything before post-migrating can still end in
failed or cancelled; error means that the outcome is unknown and people decide.

	accepted ─▶ queued ─▶ preparing ─▶ running ─▶ post-migrating ─▶ completed
	    │          │           │          │
	    └──────────┴───────────┴──────────┴─▶ failed | cancelled | error
*/
const (
	MigrationAccepted  MigrationStatus = "accepted"
	MigrationQueued    MigrationStatus = "queued"
	MigrationPreparing MigrationStatus = "preparing"
	MigrationRunning   MigrationStatus = "running"
	MigrationPost      MigrationStatus = "post-migrating"
	MigrationCompleted MigrationStatus = "completed"
	MigrationFailed    MigrationStatus = "failed"
	MigrationCancelled MigrationStatus = "cancelled"
	MigrationError     MigrationStatus = "error"
)

// Ended reports whether the migration will not change by itself any more.
func (s MigrationStatus) Ended() bool {
	switch s {
	case MigrationCompleted, MigrationFailed, MigrationCancelled, MigrationError:
		return true
	case MigrationAccepted, MigrationQueued, MigrationPreparing, MigrationRunning, MigrationPost:
		return false
	}
	return false
}

// MigrationMode says how memory moves at the moment.
type MigrationMode string

// The modes.
const (
	ModePreCopy  MigrationMode = "pre-copy"
	ModePostCopy MigrationMode = "post-copy"
	ModePaused   MigrationMode = "paused"
)

// The policies: what makes a migration end.
const (
	PolicyAdaptive    = "adaptive"      // it watches what remains
	PolicyNova        = "nova"          // nova's time steps
	PolicyPauseNow    = "pause_now"     // the guest stands still from the begin
	PolicyPostCopyNow = "post_copy_now" // the guest moves first, its memory follows
)

// Policies gives the names that there are.
func Policies() []string {
	return []string{PolicyAdaptive, PolicyNova, PolicyPauseNow, PolicyPostCopyNow}
}

// The compressions of a migration's memory, by libvirt's names.
const (
	CompressXBZRLE = "xbzrle" // what changed in a page that was sent before
	CompressMT     = "mt"     // every page, on threads of its own; QEMU 9.1 has it no more
	CompressZlib   = "zlib"   // every page, on each of the parallel connections; libvirt 9.4
	CompressZstd   = "zstd"   // the same, faster
)

// CompressNone is the word for none of them, also where the host has a default.
const CompressNone = "none"

// Compressions gives the names that there are.
func Compressions() []string {
	return []string{CompressXBZRLE, CompressMT, CompressZlib, CompressZstd}
}

// CompressionWords gives what a request or a host's options may say: a name, or CompressNone.
func CompressionWords() []string { return append(Compressions(), CompressNone) }

// Amount counts bytes of one kind.
type Amount struct {
	Total     uint64 `json:"total"`
	Processed uint64 `json:"processed"`
	Remaining uint64 `json:"remaining"`
}

// Progress is a snapshot of a running migration. Bytes, bytes/s, milliseconds.
type Progress struct {
	Memory              Amount `json:"memory"`
	Disk                Amount `json:"disk,omitzero"`
	Bandwidth           uint64 `json:"bandwidth,omitempty"`  // bytes/s on the wire
	DirtyRate           uint64 `json:"dirty_rate,omitempty"` // bytes/s
	Iteration           uint64 `json:"iteration,omitempty"`
	PermittedDowntimeMS int64  `json:"permitted_downtime_ms,omitempty"`
	ImpliedDowntimeMS   int64  `json:"implied_downtime_ms,omitempty"`
	Percent             int    `json:"percent"` // monotone, at most 99 until done
	ElapsedMS           int64  `json:"elapsed_ms"`
}

// Result is what is known after the end. Unknown figures are zero.
type Result struct {
	DowntimeMS int64  `json:"downtime_ms"` // measured by the hypervisor
	TotalMS    int64  `json:"total_ms"`
	Bytes      uint64 `json:"bytes"`
	Iterations uint64 `json:"iterations"`
	Reason     string `json:"reason,omitempty"` // why it ended as it did, one sentence

	ThrottlePercent int      `json:"throttle_percent,omitempty"` // the most that auto-converge took from the guest's CPUs
	CompressedPages uint64   `json:"compressed_pages,omitempty"` // pages of which xbzrle sent the changes only
	CompressedBytes uint64   `json:"compressed_bytes,omitempty"` // and what that came to
	Timeline        []Moment `json:"timeline,omitempty"`         // how the job went, oldest first; bounded
}

// Moment is one look at a migration's job, and what the policy did then.
type Moment struct {
	AtMS            int64  `json:"at_ms"` // since the job's begin
	RemainingBytes  uint64 `json:"remaining_bytes"`
	PermittedMS     int64  `json:"permitted_ms,omitempty"` // the downtime that was permitted
	Iteration       uint64 `json:"iteration,omitempty"`
	ThrottlePercent int    `json:"throttle_percent,omitempty"`
	Action          string `json:"action,omitempty"` // set_downtime, post_copy, pause or abort; empty: nothing was done
	Reason          string `json:"reason,omitempty"`
}
