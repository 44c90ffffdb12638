package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// usage is what a process has used so far.
type usage struct {
	cpu   time.Duration // of all its threads, from their schedstat
	wakes int64         // voluntary context switches of all its threads
	at    time.Time
}

func usageOf(pid int) (usage, error) {
	u := usage{at: time.Now()}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return u, fmt.Errorf("process %d has no threads: %w", pid, os.ErrNotExist)
	}
	for _, t := range tasks {
		stat, err := os.ReadFile(filepath.Join(t, "schedstat"))
		if err != nil {
			continue // it has just ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(stat))[0], 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(ns)
		status, _ := os.ReadFile(filepath.Join(t, "status"))
		u.wakes += field(string(status), "voluntary_ctxt_switches:")
	}
	return u, nil
}

// since gives CPU in % of one core and wake-ups a second.
func (u usage) since(before usage) (percent, wakes float64) {
	took := u.at.Sub(before.at)
	return 100 * float64(u.cpu-before.cpu) / float64(took), float64(u.wakes-before.wakes) / took.Seconds()
}

// memory is what a process has resident, in MiB.
type memory struct{ rss, pss, anon float64 }

func memoryOf(pid int) (memory, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return memory{}, err
	}
	mib := func(key string) float64 { return float64(field(string(raw), key)) / 1024 }
	return memory{rss: mib("Rss:"), pss: mib("Pss:"), anon: mib("Anonymous:")}, nil
}

// field reads the number behind a key at the start of a line.
func field(text, key string) int64 {
	_, rest, found := strings.Cut("\n"+text, "\n"+key)
	if !found {
		return 0
	}
	n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	return n
}

// undisturbed keeps this process's own garbage until the end of a measurement: the
// collector of the one who measures is not what is measured.
func undisturbed() (end func()) {
	runtime.GC()
	before := debug.SetGCPercent(-1)
	return func() { debug.SetGCPercent(before) }
}
