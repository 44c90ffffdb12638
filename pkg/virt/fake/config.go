package fake

import (
	"strconv"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

const (
	mib      = 1 << 20
	pageSize = 4096
)

// Config is one host. Only Name is required.
type Config struct {
	Name      string // the host name, unique in its World
	VCPUs     int    // default 64
	MemoryMiB int    // default 262144
	DiskGiB   int    // default 4096, all of it free

	// MachineTypes that Check accepts; default pc-q35-7.2, q35 and pc.
	MachineTypes []string
	// Storage names what the disks are on: hosts with the same name share them, and nothing
	// needs to be copied. Empty: each host has its own.
	Storage string
	// Missing are path prefixes under which Check finds no file; default /nonexistent/.
	Missing []string

	BandwidthMiB uint64        // MiB/s of one migration without a limit; default 1024
	Setup        time.Duration // from Migrate to the first iteration; default 5 ms
	SwitchOver   time.Duration // the fixed part of the downtime; default 5 ms
	Finish       time.Duration // from the destination's resume to the source's end; default 20 ms (QEMU: about 1.6 s)
	MaxDowntime  time.Duration // permitted until SetMaxDowntime; default 300 ms, as libvirt's

	// Guest is how guests behave; the zero Guest is DefaultGuest. A spec's metadata
	// overrides single figures (see [Guest]).
	Guest Guest

	// Dir keeps definitions, running guests and [Effects], so that they outlive the
	// process; empty: memory only.
	Dir string
	// Listen is a loopback address (127.0.0.1:0) where guests of other processes may
	// arrive; empty: only from the same World.
	Listen string
	// LinkTimeout bounds one exchange with a host of another process, default 10 s; a
	// migration over a link that says nothing for 360 times as long has failed.
	LinkTimeout time.Duration
}

func (c Config) withDefaults() Config {
	orInt := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	orDuration := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	orInt(&c.VCPUs, 64)
	orInt(&c.MemoryMiB, 256<<10)
	orInt(&c.DiskGiB, 4096)
	orDuration(&c.Setup, 5*time.Millisecond)
	orDuration(&c.SwitchOver, 5*time.Millisecond)
	orDuration(&c.Finish, 20*time.Millisecond)
	orDuration(&c.LinkTimeout, 10*time.Second)
	orDuration(&c.MaxDowntime, 300*time.Millisecond)
	if c.BandwidthMiB == 0 {
		c.BandwidthMiB = 1024
	}
	if c.MachineTypes == nil {
		c.MachineTypes = []string{"pc-q35-7.2", "q35", "pc"}
	}
	if c.Missing == nil {
		c.Missing = []string{"/nonexistent/"}
	}
	if c.Guest == (Guest{}) {
		c.Guest = DefaultGuest()
	}
	return c
}

// ACPI is what a guest does with the power button.
type ACPI string

// The answers to the power button.
const (
	ACPIAnswers ACPI = "answers" // goes off after Guest.ACPIAfter
	ACPIIgnores ACPI = "ignores" // does nothing, as a guest without acpid
)

// Guest is how a guest behaves. Each field can be set for one instance through
// its spec's metadata, by the key in the comment.
type Guest struct {
	Boot          time.Duration `json:"boot"`            // fake.boot: from the start to the first console line
	Tick          time.Duration `json:"tick"`            // fake.tick: between console lines; 1 s if zero
	ACPI          ACPI          `json:"acpi"`            // fake.acpi: answers or ignores
	ACPIAfter     time.Duration `json:"acpi_after"`      // fake.acpi_after: from the button to off
	Agent         bool          `json:"agent"`           // fake.agent: a guest agent takes shutdown requests
	UsedPercent   int           `json:"used_percent"`    // fake.used_percent: of the memory, that is not zero pages
	WorkingSetMiB uint64        `json:"working_set_mib"` // fake.working_set_mib: memory it writes again and again
	DirtyMiB      uint64        `json:"dirty_mib"`       // fake.dirty_mib: MiB/s it writes there
}

// DefaultGuest is an idle guest: up after 100 ms, a line each second, off 100 ms
// after the power button, half of its memory in use, 1 MiB/s written to 8 MiB.
func DefaultGuest() Guest {
	return Guest{
		Boot: 100 * time.Millisecond, Tick: time.Second, ACPI: ACPIAnswers, ACPIAfter: 100 * time.Millisecond,
		UsedPercent: 50, WorkingSetMiB: 8, DirtyMiB: 1,
	}
}

// of gives the guest's behaviour after the overrides of its spec. A value that
// can't be read changes nothing: this is a fake.
func (g Guest) of(s instance.Spec) Guest {
	duration := func(key string, v *time.Duration) {
		if d, err := time.ParseDuration(s.Metadata[key]); err == nil {
			*v = d
		}
	}
	number := func(key string, v *uint64) {
		if n, err := strconv.ParseUint(s.Metadata[key], 10, 32); err == nil {
			*v = n
		}
	}
	duration("fake.boot", &g.Boot)
	duration("fake.tick", &g.Tick)
	duration("fake.acpi_after", &g.ACPIAfter)
	number("fake.working_set_mib", &g.WorkingSetMiB)
	number("fake.dirty_mib", &g.DirtyMiB)
	if a, set := s.Metadata["fake.acpi"]; set {
		g.ACPI = ACPI(a)
	}
	if b, err := strconv.ParseBool(s.Metadata["fake.agent"]); err == nil {
		g.Agent = b
	}
	if n, err := strconv.ParseUint(s.Metadata["fake.used_percent"], 10, 7); err == nil {
		g.UsedPercent = int(min(n, 100))
	}
	if g.Tick <= 0 {
		g.Tick = time.Second
	}
	return g
}
