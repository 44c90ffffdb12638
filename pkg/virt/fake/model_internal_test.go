package fake

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The whole life of a pre-copy, with a look at random moments of each iteration.
type ride struct {
	flow       flow
	elapsed    time.Duration
	iterations int
	converged  bool
}

// run lets a flow go on until it fits the downtime, or for so many iterations.
// see is called at each look.
func run(f flow, downtime time.Duration, most int, see func(before, after flow)) ride {
	r := ride{flow: f}
	for r.iterations < most {
		for parts := 4; parts > 0; parts-- {
			d := r.flow.left() / time.Duration(parts)
			before := r.flow
			r.flow = r.flow.advance(d, true)
			r.elapsed += d
			see(before, r.flow)
		}
		r.iterations++
		before := r.flow
		r.flow = r.flow.next()
		see(before, r.flow)
		if r.flow.fits(downtime) {
			r.converged = true
			return r
		}
	}
	return r
}

func drawGuest(t *rapid.T) Guest {
	return Guest{
		UsedPercent:   rapid.IntRange(0, 100).Draw(t, "used"),
		WorkingSetMiB: rapid.Uint64Range(0, 4096).Draw(t, "working set"),
		DirtyMiB:      rapid.Uint64Range(0, 4096).Draw(t, "dirty"),
	}
}

func TestFlowFiguresAreSane(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		memory := rapid.Uint64Range(16, 1<<18).Draw(t, "memory") * mib
		f := newFlow(memory, drawGuest(t), rapid.Float64Range(0.5, 1<<15).Draw(t, "bandwidth")*mib)
		f.autoConverge = rapid.Bool().Draw(t, "auto-converge")
		downtime := time.Duration(rapid.IntRange(1, 2000).Draw(t, "downtime")) * time.Millisecond
		run(f, downtime, 40, func(before, after flow) {
			b, a := before.job(), after.job()
			if a.Memory.Total != memory {
				t.Fatalf("total %d, want the guest's memory %d", a.Memory.Total, memory)
			}
			if a.Memory.Processed < b.Memory.Processed {
				t.Fatalf("processed fell from %d to %d", b.Memory.Processed, a.Memory.Processed)
			}
			if a.Memory.Remaining > a.Memory.Total {
				t.Fatalf("remaining %d is more than the total %d", a.Memory.Remaining, a.Memory.Total)
			}
			if a.Iteration == b.Iteration && a.Memory.Remaining > b.Memory.Remaining {
				t.Fatalf("remaining rose within iteration %d: %d to %d", a.Iteration, b.Memory.Remaining, a.Memory.Remaining)
			}
			if percent := 100 * float64(a.Memory.Total-a.Memory.Remaining) / float64(a.Memory.Total); percent < 0 || percent > 100 {
				t.Fatalf("percent %v", percent)
			}
			if a.Throttle < 0 || a.Throttle > 99 {
				t.Fatalf("throttle %d %%", a.Throttle)
			}
			if after.pending() < 0 || math.IsNaN(after.pending()) {
				t.Fatalf("pending %v", after.pending())
			}
		})
	})
}

func TestFlowConvergesBelowTheBandwidth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGuest(t)
		bandwidth := rapid.Float64Range(1, 1<<14).Draw(t, "bandwidth") * mib
		ratio := rapid.Float64Range(0, 0.95).Draw(t, "dirty/bandwidth")
		f := newFlow(rapid.Uint64Range(16, 1<<18).Draw(t, "memory")*mib, g, bandwidth)
		f.dirtyRate = bandwidth * ratio
		if r := run(f, 300*time.Millisecond, 1000, func(_, _ flow) {}); !r.converged {
			t.Fatalf("after %d iterations %v bytes are pending", r.iterations, r.flow.pending())
		}
	})
}

func TestFlowDoesNotConvergeAboveTheBandwidth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bandwidth := rapid.Float64Range(1, 1<<10).Draw(t, "bandwidth") * mib
		downtime := time.Duration(rapid.IntRange(1, 1000).Draw(t, "downtime")) * time.Millisecond
		f := newFlow(1<<36, Guest{UsedPercent: 50}, bandwidth) // larger than any working set below
		f.workingSet = bandwidth * downtime.Seconds() * rapid.Float64Range(1.1, 50).Draw(t, "working set/downtime")
		f.dirtyRate = bandwidth * rapid.Float64Range(1.01, 100).Draw(t, "dirty/bandwidth")
		if r := run(f, downtime, 100, func(_, _ flow) {}); r.converged {
			t.Fatalf("converged after %d iterations with %v bytes pending", r.iterations, r.flow.pending())
		}
		f.autoConverge = true
		if r := run(f, downtime, 100, func(_, _ flow) {}); !r.converged && f.dirtyRate < bandwidth*90 {
			t.Fatalf("with auto-converge: not converged at %d %% after %d iterations", r.flow.throttle, r.iterations)
		}
	})
}

func TestFlowByTheFigures(t *testing.T) {
	g := Guest{UsedPercent: 50, WorkingSetMiB: 64, DirtyMiB: 16}
	f := newFlow(1024*mib, g, 64*mib)
	wire := 512*mib + float64(512*mib)/pageSize*zeroPage
	first := seconds(wire / (64 * mib))
	if got := f.left(); got != first {
		t.Errorf("the first iteration takes %v, want %v: used memory and a little for each page of zeros", got, first)
	}
	f = f.advance(first/2, true)
	if got := f.job(); got.Memory.Remaining < 511*mib || got.Memory.Remaining > 513*mib || got.Iteration != 1 {
		t.Errorf("half-way: %+v, want half of the memory remaining", got)
	}
	f = f.advance(first, true).next()
	if f.remaining() != 64*mib || f.iteration != 2 {
		t.Errorf("the second iteration has %v bytes, want the working set", f.remaining())
	}
	if got, want := f.left(), time.Second; got != want {
		t.Errorf("the second iteration takes %v, want %v", got, want)
	}
	if f.fits(999 * time.Millisecond) {
		t.Error("64 MiB at 64 MiB/s fit into less than a second")
	}
	if !f.fits(time.Second) {
		t.Error("64 MiB at 64 MiB/s do not fit into a second")
	}
	f = f.advance(time.Second, true).next()
	if f.remaining() != 16*mib || f.job().DirtyRate != 16*mib {
		t.Errorf("the third iteration: %+v, want 16 MiB at a dirty rate of 16 MiB/s", f.job())
	}
	if f.job().Memory.Processed < 576*mib || f.drained().job().Memory.Processed != f.job().Memory.Processed+16*mib {
		t.Errorf("processed %d, want all that was sent", f.job().Memory.Processed)
	}
	still := f.advance(time.Second, false)
	if still.dirtied != 0 || still.next().pending() != 0 {
		t.Errorf("a guest that stands still dirtied %v bytes", still.dirtied)
	}
}
