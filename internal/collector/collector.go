// Package collector lets Go's garbage collector wait while a process has much to do.
//
// An agent holds a few MiB. Go collects when as much garbage lies about as is held, and an
// agent that answers 15,000 calls a second makes that ten times a second: each collection
// takes a processor from the requests that are under way. So while collections follow each
// other closely a fixed room of garbage is permitted, [Room], if that is more; a process that
// has little to do is collected as usual, and stays small.
package collector

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	// Room is how much garbage a busy process may have.
	Room = 24 << 20

	usual = 100             // percent of what is held: Go's own
	busy  = time.Second     // a process that collects twice within it has much to do
	quiet = 5 * time.Second // and one that does not for so long has little
)

// Start begins to look after the collector of this process, until stop is called. Who has set
// GOGC knows better: then nothing is done.
func Start() (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	w := &watcher{percent: usual, last: time.Now()}
	w.await()
	return w.stop
}

// watcher is told after each collection, by the goroutine of the runtime's that runs finalizers.
type watcher struct {
	mu      sync.Mutex
	percent int
	last    time.Time // of the last collection
	stopped bool
}

// mark is what nobody holds: the next collection finds it.
type mark struct{ _ *mark }

func (w *watcher) await() {
	runtime.SetFinalizer(&mark{}, func(*mark) { w.collected(time.Now(), held()) })
}

func (w *watcher) collected(now time.Time, held uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	w.setLocked(next(w.percent, now.Sub(w.last), held))
	w.last = now
	w.await()
}

func (w *watcher) setLocked(percent int) {
	if percent != w.percent {
		w.percent = percent
		debug.SetGCPercent(percent)
	}
}

func (w *watcher) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.setLocked(usual)
}

// next is the percentage after a collection that came so long after the one before it and
// found so many bytes held. It stays what it is while that is nearly right, for a change
// stops the world.
func next(percent int, since time.Duration, held uint64) int {
	if since >= quiet || since >= busy && percent == usual {
		return usual
	}
	want := int(min(max(usual, 100*Room/max(held, 1)), math.MaxInt32))
	if percent != usual && want > percent/2 && want < 2*percent {
		return percent
	}
	return want
}

// held is how much the last collection has left.
func held() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return math.MaxUint64 // an unknown figure: nothing is permitted beyond the usual
	}
	return sample[0].Value.Uint64()
}
