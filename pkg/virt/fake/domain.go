package fake

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/virt"
)

// domain is one guest on one host. Guarded by World.mu.
type domain struct {
	id     int // -1 when off
	state  virt.State
	reason virt.Reason
	live   bool // the guest's CPUs belong to this host: false on a destination before its resume, and on a source after it

	job      *migration // leaving
	arriving *arrival   // coming
	torn     *migration // left in post-copy, and its stream broke
	button   *time.Timer

	def        virt.Definition // what the next start uses
	running    virt.Definition // what the present run uses
	foreign    bool
	persistent bool

	brain   brain
	saved   *brain
	console time.Duration // uptime at which this host's console log begins
}

// brain is what of a guest survives a move, a save and a restart of the process.
type brain struct {
	Guest   Guest         `json:"guest"`
	Uptime  time.Duration `json:"uptime"` // of CPU time until Since
	Since   time.Time     `json:"since"`  // when the CPUs began to run; zero: they stand still
	Pressed bool          `json:"pressed,omitempty"`
}

func (b *brain) uptime(now time.Time) time.Duration {
	if b.Since.IsZero() {
		return b.Uptime
	}
	return b.Uptime + now.Sub(b.Since)
}

func (b *brain) run(now time.Time) {
	if b.Since.IsZero() {
		b.Since = now
	}
}

func (b *brain) freeze(now time.Time) {
	b.Uptime, b.Since = b.uptime(now), time.Time{}
}

func (b *brain) up(now time.Time) bool { return b.uptime(now) >= b.Guest.Boot }

func (d *domain) active() bool { return d.id >= 0 }

// handing reports whether the guest leaves and its CPUs are on their way.
func (d *domain) handing() bool { return d.job != nil && d.job.stage >= stageSwitching }

// view is the domain as a driver shows it.
func (d *domain) view() virt.Domain {
	def := d.def
	if d.active() {
		def = d.running
	}
	v := virt.Domain{
		UUID: def.Spec.UUID, Name: def.Spec.Name, ID: d.id, State: d.state, Reason: d.reason, Saved: d.saved != nil,
		Persistent: d.persistent, Owned: !d.foreign, VCPUs: def.Spec.VCPUs, MemoryMiB: def.Spec.MemoryMiB,
	}
	if v.Name == "" {
		v.Name = def.Spec.UUID
	}
	if !d.foreign {
		v.Generation, v.Migration = def.Generation, def.Migration
	}
	return v
}

// maxConsole is how much of a console log is kept, in lines.
const maxConsole = 4096

// log renders the console: a line at the boot and one for each tick since then.
func (d *domain) log(now time.Time) string {
	g := d.brain.Guest
	up := d.brain.uptime(now)
	if g.Tick <= 0 || up < g.Boot || (d.arriving != nil && !d.live) {
		return ""
	}
	last := int64((up-g.Boot)/g.Tick) + 1
	first := int64(1)
	if d.console > g.Boot {
		first = int64(math.Ceil(float64(d.console-g.Boot)/float64(g.Tick))) + 1
	}
	first = max(first, last-maxConsole+1)
	var b strings.Builder
	for n := first; n <= last; n++ {
		fmt.Fprintf(&b, "tick %d\n", n)
	}
	return b.String()
}
