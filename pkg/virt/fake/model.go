package fake

import (
	"math"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// minIteration is the shortest time between two looks at the dirty bitmap.
const minIteration = time.Millisecond

// zeroPage is what a page of zeros costs on the wire, in bytes (QEMU: the
// page's header and a byte).
const zeroPage = 9

// flow is an iterative pre-copy at one instant. It is a value and knows no
// clock: whoever holds it advances it by elapsed time.
//
// An iteration sends what was dirty when it began (the first one: everything);
// at its end the pages dirtied meanwhile, at most the working set, are the next
// iteration's work. Without limits in the way it converges if and only if the
// dirty rate is below the bandwidth or the working set fits the permitted
// downtime.
type flow struct { //nolint:recvcheck // a value, but where it is read twenty thousand times a second
	total      float64 // bytes of guest memory, zero pages included
	workingSet float64 // bytes that are dirtied again and again
	dirtyRate  float64 // bytes/s, before the throttle
	bandwidth  float64 // bytes/s, above zero

	autoConverge bool
	throttle     int // percent

	iteration uint64
	spent     time.Duration // in this iteration
	atStart   float64       // Remaining when this iteration began
	wireStart float64       // bytes on the wire that this iteration takes
	wire      float64       // of them, not sent yet
	dirtied   float64       // distinct bytes dirtied since this iteration began
	measured  float64       // dirty rate of the iteration before
	processed float64       // bytes sent in all
}

// newFlow is the first iteration of a guest's memory.
func newFlow(memory uint64, g Guest, bandwidth float64) flow {
	total := float64(memory)
	used := total * float64(g.UsedPercent) / 100
	set := math.Min(float64(g.WorkingSetMiB)*mib, total)
	used = math.Max(used, set)
	wire := used + (total-used)/pageSize*zeroPage
	return flow{
		total: total, workingSet: set, dirtyRate: float64(g.DirtyMiB) * mib, bandwidth: bandwidth,
		iteration: 1, atStart: total, wireStart: wire, wire: wire,
	}
}

// left is the time to the end of this iteration.
func (f *flow) left() time.Duration {
	return max(seconds(f.wire/f.bandwidth), minIteration-f.spent)
}

// seconds rounds up to a nanosecond, so that a timer never fires before its work is done.
func seconds(s float64) time.Duration {
	const longest = 1 << 62 // 146 years
	return time.Duration(math.Min(math.Ceil(s*float64(time.Second)), longest))
}

// advance gives the flow d later; the end of the iteration is not crossed.
// dirties tells whether the guest runs.
func (f flow) advance(d time.Duration, dirties bool) flow {
	f.pass(d, dirties)
	return f
}

// pass is advance in place.
func (f *flow) pass(d time.Duration, dirties bool) {
	d = max(0, min(d, f.left()))
	sent := math.Min(f.wire, f.bandwidth*d.Seconds())
	f.wire -= sent
	f.processed += sent
	f.spent += d
	if dirties {
		f.dirtied = math.Min(f.workingSet, f.dirtied+f.dirtying()*d.Seconds())
	}
}

// dirtying is the rate that the throttle leaves, in bytes/s.
func (f *flow) dirtying() float64 { return f.dirtyRate * float64(100-f.throttle) / 100 }

// next ends the iteration, whatever of it is left, and begins the next one with
// what was dirtied.
func (f flow) next() flow {
	f.processed += f.wire
	f.measured = 0
	if f.spent > 0 {
		f.measured = f.dirtied / f.spent.Seconds()
	}
	if f.autoConverge && f.dirtied > f.wireStart/2 { // QEMU's trigger: half of what was sent is dirty again
		f.throttle = min(99, max(20, f.throttle+10))
	}
	f.iteration++
	f.atStart, f.wireStart, f.wire = f.dirtied, f.dirtied, f.dirtied
	f.dirtied, f.spent = 0, 0
	return f
}

// remaining is what this iteration still has to move: QEMU's figure, which does
// not know what is being dirtied meanwhile.
func (f *flow) remaining() float64 {
	if f.wireStart == 0 {
		return 0
	}
	return f.atStart * f.wire / f.wireStart
}

// pending is all that would have to move if the guest stopped now.
func (f flow) pending() float64 { return f.wire + f.dirtied }

// fits reports whether the guest may stop now: what is pending moves within the
// permitted downtime.
func (f *flow) fits(downtime time.Duration) bool {
	return f.pending() <= f.bandwidth*max(downtime, minIteration).Seconds()
}

// drained is the flow after all that was pending has moved.
func (f flow) drained() flow {
	f.processed += f.pending()
	f.wire, f.dirtied, f.wireStart, f.atStart = 0, 0, 0, 0
	return f
}

// job renders the flow as the statistics of a running job.
func (f flow) job() (j virt.Job) {
	f.read(&j)
	return j
}

// read is job into a place that is there.
func (f *flow) read(j *virt.Job) {
	j.Type = virt.JobUnbounded
	j.Downtime = seconds(f.pending() / f.bandwidth).Round(time.Millisecond)
	j.Memory = instance.Amount{Total: uint64(f.total), Processed: uint64(f.processed), Remaining: uint64(math.Floor(f.remaining()))}
	j.Bandwidth, j.DirtyRate = uint64(f.bandwidth), uint64(f.measured)
	j.Iteration, j.Throttle = f.iteration, f.throttle
}
