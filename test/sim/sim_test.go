package sim_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seeds = flag.Int("seeds", 0, "how many seeds to play; 0: as many as fit a test run")
	first = flag.Uint64("first", 0, "the first seed; 0: a fresh one")
	times = flag.Int("times", 1, "how often each seed is played")
	limit = flag.Duration("limit", 0, "no seed is begun later than this; 0: all are played")
	floor = flag.Uint64("floor", 0, "how many runs there must be at least when the limit ends them")
)

// TestSimulation plays fresh seeds. A failure names its seed.
func TestSimulation(t *testing.T) {
	n, seed := *seeds, *first
	if n == 0 {
		n = 100 // about 1,000 migrations; under the race detector this is slow
	}
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) >> 16 << 20
	}
	var next, played atomic.Uint64
	var mu sync.Mutex
	var total tally
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // short lives: less collecting is faster
	begin, worked := time.Now(), cpu(t)
	t.Run("runs", func(t *testing.T) {
		for w := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(w), func(t *testing.T) {
				t.Parallel()
				dir := workDir(t)
				for {
					i := next.Add(1) - 1
					if i >= uint64(n**times) || t.Failed() || *limit > 0 && time.Since(begin) > *limit {
						return
					}
					played.Add(1)
					got := one(t, seed+i/uint64(*times), dir, n == 1)
					mu.Lock()
					total.add(got)
					mu.Unlock()
				}
			})
		}
	})
	if n := min(*floor, uint64(n**times)); !t.Failed() && played.Load() < n {
		t.Errorf("only %d runs were begun within %v, want at least %d", played.Load(), *limit, n)
	}
	took, worked := time.Since(begin), cpu(t)-worked
	t.Logf("%d runs from seed %d in %v: %v: %.0f migrations a minute, %.0f for each minute of a core", played.Load(), seed,
		took.Round(time.Millisecond), total.String(), float64(total.migrations)/took.Minutes(), float64(total.migrations)/worked.Minutes())
}

// cpu is how long the process has worked so far, on all cores together.
func cpu(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestSeedsThatFailed plays seeds that found something once. What a seed draws changes
// with the drawing: then they are seeds like any others.
func TestSeedsThatFailed(t *testing.T) {
	dir := workDir(t)
	for _, seed := range []uint64{
		10000079, 10000595, 10000753, 10001040, 10001543, 12001975, 14001323, 20000499, 30000393, 30000819, 10278387601539860637, 60017784, 70025122, 80005621, 90016964, 120082457, 130047096, 140109636, 160036525,
	} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			for range 3 {
				one(t, seed, dir, false)
			}
		})
	}
}

// one plays one seed in a bubble of virtual time. With loud, the agents' log is shown
// when it fails.
func one(t *testing.T, seed uint64, dir string, loud bool) (got tally) {
	t.Helper()
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "--- seed %d: %v\n", seed, p)
			panic(p)
		}
	}()
	stuck := time.AfterFunc(time.Minute, func() { // real time: something spins, or a lock is held across a wait
		stacks := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "--- seed %d has run for a minute\n%s\n", seed, stacks[:runtime.Stack(stacks, true)])
		os.Exit(2)
	})
	defer stuck.Stop()
	s := draw(seed)
	state := filepath.Join(dir, fmt.Sprint(seed))
	synctest.Test(t, func(t *testing.T) {
		set := setup{dir: state}
		var log bytes.Buffer
		if loud {
			set.log = &log
		}
		got = s.play(t, t.Context(), set)
		if t.Failed() {
			t.Errorf("seed %d: play it again with: make sim SEED=%d", seed, seed)
			_, _ = log.WriteTo(os.Stderr)
		}
	})
	if err := os.RemoveAll(state); err != nil {
		t.Error(err)
	}
	return got
}

// workDir is where the journals of a test go: memory where there is some, for speed.
func workDir(t *testing.T) string {
	t.Helper()
	if info, err := os.Stat("/dev/shm"); err != nil || !info.IsDir() {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "compute-agent-sim-*") //nolint:usetesting // in memory, which t.TempDir is not
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// pass lets virtual time go by; every run is inside a synctest bubble.
func pass(d time.Duration) { time.Sleep(d) }
