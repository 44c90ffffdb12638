package migration

import (
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// OnStall says what a policy does with a migration that cannot end by itself.
type OnStall string

// The answers to a stall or a passed completion timeout.
const (
	StallPostCopy OnStall = "post_copy" // pause instead where post-copy is not possible
	StallPause    OnStall = "pause"
	StallAbort    OnStall = "abort"
)

// Config says how this host migrates. A zero field means its default; every wait
// of the package is named here.
type Config struct {
	Host string // required: this host's name

	OutboundSlots int // migrations that leave at the same time; 2
	InboundSlots  int // migrations that arrive at the same time; 2

	CheckTimeout    time.Duration // one pre-check of the destination; 60 s
	BusyTimeout     time.Duration // how long a source comes back to a destination whose slots are full; 600 s
	PrepareTimeout  time.Duration // the whole of pre_live_migration; 1800 s
	VIFTimeout      time.Duration // until the ports are ready on the destination (nova's vif_plugging_timeout); 300 s
	VIFNotFatal     bool          // go on when they are not (nova's vif_plugging_is_fatal = false); false
	ClaimTimeout    time.Duration // after which a destination that saw no guest asks the source; 600 s
	SettleTimeout   time.Duration // how long facts are gathered before an outcome is called unknown; 600 s
	RecoverTimeout  time.Duration // how long a broken post-copy is taken up again and again before it is left to people; 1 h
	PeerTimeout     time.Duration // one try of post, rollback or show; 60 s
	PostTimeout     time.Duration // how long a source asks a destination to own; 24 h
	RollbackTimeout time.Duration // how long a source asks a destination to undo; 120 s
	CleanTimeout    time.Duration // how long a source tries to remove what stayed behind; 24 h
	HypervisorWait  time.Duration // one short call to the hypervisor (lookup, job, abort); 30 s
	WorkerGrace     time.Duration // between a failed job's event and the blocking call's own error; 5 s
	ForceWait       time.Duration // how long force-complete waits for its confirmation; 10 s
	RetryFirst      time.Duration // the first pause between tries, the next ones grow; 1 s
	RetryLimit      time.Duration // and end here; 30 s
	MonitorInterval time.Duration // the beat of the monitor; 0.5 s

	// What a beat saw is told to the Reporter when it has changed, at most once each
	// ProgressInterval and migration, and for all migrations together at most ProgressRate
	// times a second: with more of them than that each is told less often. A change of
	// status or phase is told at once.
	ProgressInterval time.Duration // 1 s
	ProgressRate     int           // a second; 500

	Policy         string  // for requests without one; adaptive
	OnStall        OnStall // abort
	PermitPostCopy bool    // nova's live_migration_permit_post_copy; false
	PermitAutoConv bool    // nova's live_migration_permit_auto_converge, not beside post-copy; false
	BandwidthMiB   uint64  // MiB/s for requests without one; 0: no limit
	BudgetMiB      uint64  // MiB/s for all migrations that leave at the same time, divided among them; 0: no limit
	// PostCopyBandwidthMiB is the limit, in MiB/s, of what is sent ahead in post-copy; 0: no limit.
	PostCopyBandwidthMiB uint64
	Parallel             int            // connections for requests without one; 0: one stream, with TLS 4
	Compression          string         // of the memory, one of instance.Compressions, for requests without one; empty: none
	NativeTLS            bool           // guests leave over the hypervisor's own TLS (nova's live_migration_with_native_tls); false
	Downtime             ScheduleConfig // of the policy nova; 500 ms, 10 steps, 75 s/GiB
	CompletionTimeout    time.Duration  // per GiB of memory and copied disks; 800 s. Negative: none
	Adaptive             AdaptiveConfig
}

// or gives v, or fallback for the zero value.
func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// WithDefaults fills what was left open.
func (c Config) WithDefaults() Config {
	c.OutboundSlots = or(c.OutboundSlots, 2)
	c.InboundSlots = or(c.InboundSlots, 2)
	c.CheckTimeout = or(c.CheckTimeout, 60*time.Second)
	c.BusyTimeout = or(c.BusyTimeout, 600*time.Second)
	c.PrepareTimeout = or(c.PrepareTimeout, 1800*time.Second)
	c.VIFTimeout = or(c.VIFTimeout, 300*time.Second)
	c.ClaimTimeout = or(c.ClaimTimeout, 600*time.Second)
	c.SettleTimeout = or(c.SettleTimeout, 600*time.Second)
	c.RecoverTimeout = or(c.RecoverTimeout, time.Hour)
	c.PeerTimeout = or(c.PeerTimeout, 60*time.Second)
	c.PostTimeout = or(c.PostTimeout, 24*time.Hour)
	c.RollbackTimeout = or(c.RollbackTimeout, 120*time.Second)
	c.CleanTimeout = or(c.CleanTimeout, 24*time.Hour)
	c.HypervisorWait = or(c.HypervisorWait, 30*time.Second)
	c.WorkerGrace = or(c.WorkerGrace, 5*time.Second)
	c.ForceWait = or(c.ForceWait, 10*time.Second)
	c.RetryFirst = or(c.RetryFirst, time.Second)
	c.RetryLimit = or(c.RetryLimit, 30*time.Second)
	c.MonitorInterval = or(c.MonitorInterval, 500*time.Millisecond)
	c.ProgressInterval = or(c.ProgressInterval, time.Second)
	c.ProgressRate = or(c.ProgressRate, 500)
	c.Policy = or(c.Policy, instance.PolicyAdaptive)
	c.OnStall = or(c.OnStall, StallAbort)
	c.Downtime.MaxDowntime = or(c.Downtime.MaxDowntime, 500*time.Millisecond)
	c.Downtime.Steps = or(c.Downtime.Steps, 10)
	c.Downtime.DelayPerGB = or(c.Downtime.DelayPerGB, 75*time.Second)
	c.CompletionTimeout = or(c.CompletionTimeout, 800*time.Second)
	c.Adaptive = c.Adaptive.WithDefaults()
	return c
}
