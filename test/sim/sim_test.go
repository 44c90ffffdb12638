package sim_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seeds = flag.Int("seeds", 0, "how many seeds to play; 0: as many as fit a test run")
	first = flag.Uint64("first", 0, "the first seed; 0: a fresh one")
	times = flag.Int("times", 1, "how often each seed is played")
)

// TestSimulation plays fresh seeds. A failure names its seed.
func TestSimulation(t *testing.T) {
	n, seed := *seeds, *first
	if n == 0 {
		n = 300
	}
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) >> 16 << 20 //nolint:gosec // a fresh seed
	}
	var log *os.File
	if n == 1 {
		log = os.Stderr
	}
	var next atomic.Uint64
	var mu sync.Mutex
	var total tally
	begin := time.Now()
	t.Run("runs", func(t *testing.T) {
		for w := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(w), func(t *testing.T) {
				t.Parallel()
				dir := workDir(t)
				for {
					i := next.Add(1) - 1
					if i >= uint64(n**times) || t.Failed() { //nolint:gosec // not negative
						return
					}
					got := one(t, seed+i/uint64(*times), dir, log) //nolint:gosec // not negative
					mu.Lock()
					total.add(got)
					mu.Unlock()
				}
			})
		}
	})
	took := time.Since(begin)
	t.Logf("%d runs from seed %d in %v: %v: %.0f migrations a minute", n**times, seed, took.Round(time.Millisecond), total,
		float64(total.migrations)/took.Minutes())
}

// one plays one seed in a bubble of virtual time.
func one(t *testing.T, seed uint64, dir string, log *os.File) (got tally) {
	t.Helper()
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "--- seed %d: %v\n", seed, p)
			panic(p)
		}
	}()
	s := draw(seed)
	state := filepath.Join(dir, fmt.Sprint(seed))
	synctest.Test(t, func(t *testing.T) {
		set := setup{dir: state}
		if log != nil {
			set.log = log
		}
		got = s.play(t, t.Context(), set)
		if t.Failed() {
			t.Errorf("seed %d: play it again with: make sim SEED=%d", seed, seed)
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
	dir, err := os.MkdirTemp("/dev/shm", strings.ReplaceAll("compute-agent-sim-*", "/", ""))
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
