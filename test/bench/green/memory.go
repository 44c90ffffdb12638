package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/green"
)

// parked is one way of having many things wait.
type parked struct {
	kind  string
	count int
	most  float64 // target in bytes of resident memory each; 0 is none
}

func memoryCases() []parked {
	return []parked{
		{kind: "raw", count: 100_000},
		{kind: "event", count: 100_000, most: 3300},
		{kind: "context", count: 100_000, most: 3300},
		{kind: "sleep", count: 100_000},
		{kind: "raw-sleep", count: 100_000},
		{kind: "event", count: 1_000_000}, // they fit
		{kind: "afterfunc", count: 100_000},
		{kind: "spawnafter", count: 100_000, most: 400},
		{kind: "spawnafter-cancellable", count: 100_000},
	}
}

// measureMemory takes the median of three fresh processes for each case.
func measureMemory() bool {
	fmt.Printf("\nmemory, resident bytes each (three fresh processes)\n")
	met := true
	for _, c := range memoryCases() {
		var got []float64
		for range 3 {
			got = append(got, parkElsewhere(c))
		}
		line := fmt.Sprintf("  %-24s %9d %9.0f  %7.0f MB in all", c.kind, c.count, median(got), median(got)*float64(c.count)/1e6)
		if c.most > 0 {
			ok := median(got) <= c.most
			line += fmt.Sprintf("  at most %.0f: %s", c.most, word(ok))
			met = met && ok
		}
		fmt.Println(line)
	}
	return met
}

func parkElsewhere(c parked) float64 {
	self := must(os.Executable())
	cmd := exec.CommandContext(context.Background(), self, "-park", fmt.Sprintf("%s:%d", c.kind, c.count))
	cmd.Stderr = os.Stderr
	return must(strconv.ParseFloat(strings.TrimSpace(string(must(cmd.Output()))), 64))
}

// parkAndPrint parks, collects, and prints the resident bytes of each.
func parkAndPrint(arg string) {
	kind, number, _ := strings.Cut(arg, ":")
	count := must(strconv.Atoi(number))
	keep := make([]any, count)
	for i := range keep {
		keep[i] = &keep[0] // touch the pages now
	}
	before := resident()
	var begun sync.WaitGroup
	begun.Add(count)
	park := parker(kind, &begun)
	for i := range keep {
		keep[i] = park()
	}
	begun.Wait()
	runtime.Gosched()
	after := resident()
	fmt.Println(float64(after-before) / float64(count))
	runtime.KeepAlive(keep)
}

// parker gives a function that starts one thing of that kind. begun is told
// when its goroutine is about to wait; where there is none, at once.
func parker(kind string, begun *sync.WaitGroup) func() any {
	ctx, cancel := context.WithCancel(context.Background())
	context.AfterFunc(ctx, cancel)
	event := &green.Event[int]{}
	block := make(chan struct{})
	wait := func(ctx context.Context) (int, error) { begun.Done(); return event.Wait(ctx) }
	switch kind {
	case "raw":
		return func() any { go func() { begun.Done(); <-block }(); return nil }
	case "event":
		return func() any { return green.Spawn(ctx, wait) }
	case "sleep":
		return func() any {
			return green.Spawn(ctx, func(ctx context.Context) (int, error) {
				begun.Done()
				return 0, green.Sleep(ctx, time.Hour)
			})
		}
	case "context":
		return func() any {
			return green.Spawn(ctx, func(ctx context.Context) (int, error) {
				begun.Done()
				<-ctx.Done()
				return 0, nil
			})
		}
	case "raw-sleep":
		return func() any { go rawSleep(ctx, begun); return nil }
	case "afterfunc":
		return func() any { begun.Done(); return time.AfterFunc(time.Hour, func() {}) }
	case "spawnafter":
		plain := context.WithoutCancel(ctx)
		return func() any { begun.Done(); return green.SpawnAfter(plain, time.Hour, one) }
	case "spawnafter-cancellable":
		return func() any { begun.Done(); return green.SpawnAfter(ctx, time.Hour, one) }
	default:
		panic("unknown kind " + kind)
	}
}

// rawSleep is what a sleep that a context can end costs without green.
func rawSleep(ctx context.Context, begun *sync.WaitGroup) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	begun.Done()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// resident collects garbage, gives free pages back, and reads VmRSS.
func resident() int {
	runtime.GC()
	debug.FreeOSMemory()
	status := string(must(os.ReadFile("/proc/self/status")))
	_, rest, _ := strings.Cut(status, "VmRSS:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	return must(strconv.Atoi(kib)) << 10
}
