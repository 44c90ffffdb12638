package green_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/compute-agent/compute-agent/pkg/green"
)

// goroutine is the name of the one that asks.
func goroutine() string {
	var stack [64]byte
	return string(bytes.Fields(stack[:runtime.Stack(stack[:], false)])[1])
}

func TestCrewKeepsItsGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		crew := green.NewCrew(ctx, 2)
		var names []string
		for range 5 { // one after the other: all on one
			crew.SpawnN(ctx, func(context.Context) error { names = append(names, goroutine()); return nil })
			synctest.Wait()
		}
		if len(names) != 5 || len(slices.Compact(names)) != 1 {
			t.Errorf("five functions in a row ran on %q, want one goroutine", names)
		}
		cancel() // else the bubble can't end: the goroutine would wait
	})
}

// No function waits for another, and not more goroutines are kept than wanted.
func TestCrewGrowsAndShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		crew := green.NewCrew(ctx, 3)
		before := runtime.NumGoroutine()
		start := make(chan struct{})
		var all sync.WaitGroup
		for range 10 {
			all.Add(1)
			crew.SpawnN(ctx, func(context.Context) error { defer all.Done(); <-start; return nil })
		}
		synctest.Wait()
		if n := runtime.NumGoroutine() - before; n != 10 {
			t.Errorf("ten functions that wait have %d goroutines", n)
		}
		close(start)
		all.Wait()
		synctest.Wait()
		if n := runtime.NumGoroutine() - before; n != 3 {
			t.Errorf("%d goroutines are kept, want 3", n)
		}
		cancel()
		synctest.Wait()
		if n := runtime.NumGoroutine() - before; n != 0 {
			t.Errorf("%d goroutines are left after the crew's end", n)
		}
	})
}

// A function gets its own context, is carried out after the crew's end too, and what goes wrong
// with it is reported and harms no other.
func TestCrewReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		life, cancel := context.WithCancel(t.Context())
		crew := green.NewCrew(life, 1)
		var told []string
		ctx := green.WithLogger(t.Context(), func(_ context.Context, msg string, err error) { told = append(told, msg+": "+err.Error()) })
		for _, fn := range []func(context.Context) error{
			func(context.Context) error { return errAway },
			func(context.Context) error { runtime.Goexit(); return nil },
			func(context.Context) error { return nil },
			func(got context.Context) error {
				if got != ctx {
					t.Error("a function did not get its context")
				}
				cancel()
				return nil
			},
			func(context.Context) error { return errors.New("after the end") },
		} {
			crew.SpawnN(ctx, fn)
			synctest.Wait()
		}
		want := []string{"spawned function failed: " + errAway.Error(), "spawned function did not return: " + green.ErrGoexit.Error(), "spawned function failed: after the end"}
		if !slices.Equal(told, want) {
			t.Errorf("reported: %q, want %q", told, want)
		}
	})
}

// Many hand over at once, with -race.
func TestCrewOfMany(t *testing.T) {
	crew := green.NewCrew(t.Context(), 4)
	var all sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for range 8 {
		all.Go(func() {
			for range 200 {
				all.Add(1)
				crew.SpawnN(t.Context(), func(context.Context) error { defer all.Done(); mu.Lock(); defer mu.Unlock(); done++; return nil })
			}
		})
	}
	all.Wait()
	if done != 1600 {
		t.Errorf("%d of 1600 functions were carried out", done)
	}
}
