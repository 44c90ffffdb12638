package collector

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestNext(t *testing.T) {
	for _, c := range []struct {
		name    string
		percent int
		since   time.Duration
		held    uint64
		want    int
	}{
		{"a collection now and then", usual, 2 * time.Second, 6 << 20, usual},
		{"twice within a second", usual, 999 * time.Millisecond, 6 << 20, 400},
		{"a big process has room already", usual, time.Millisecond, 100 << 20, usual},
		{"nobody knows how big it is", usual, time.Millisecond, math.MaxUint64, usual},
		{"a very small one", usual, time.Millisecond, 0, math.MaxInt32},
		{"still busy", 400, 4 * time.Second, 6 << 20, 400},
		{"busy, and a little more is held", 400, 3 * time.Second, 8 << 20, 400},
		{"busy, and three times as much is held", 400, 3 * time.Second, 18 << 20, 133},
		{"busy, and much less is held", 133, 3 * time.Second, 6 << 20, 400},
		{"busy, and it has become big", 400, 3 * time.Second, 100 << 20, usual},
		{"not busy any more", 400, 5 * time.Second, 6 << 20, usual},
	} {
		if got := next(c.percent, c.since, c.held); got != c.want {
			t.Errorf("%s: next(%d, %s, %d) = %d, want %d", c.name, c.percent, c.since, c.held, got, c.want)
		}
	}
}

// A process that makes garbage as fast as it can is collected less often than Go would.
func TestStart(t *testing.T) {
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(usual)
	defer debug.SetGCPercent(before)
	stop := Start()
	deadline := time.Now().Add(30 * time.Second)
	for now := usual; now <= usual; now = percentNow() {
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s of garbage the percentage is still %d", now)
		}
		for range 1000 {
			garbage = make([]byte, 8<<10)
		}
		runtime.Gosched()
	}
	stop()
	for range 3 { // whatever a collection that is under way would do, it does no more
		runtime.GC()
	}
	if got := percentNow(); got != usual {
		t.Errorf("after the end the percentage is %d, want %d", got, usual)
	}
}

var garbage []byte

// percentNow reads the percentage without setting it: the watcher does that at any moment.
func percentNow() int {
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(sample)
	return int(sample[0].Value.Uint64())
}

// Who has said what they want gets that.
func TestStartLeavesGOGC(t *testing.T) {
	t.Setenv("GOGC", "50")
	before := debug.SetGCPercent(50)
	defer debug.SetGCPercent(before)
	defer Start()()
	for range 5 {
		runtime.GC()
	}
	if got := percentNow(); got != 50 {
		t.Errorf("GOGC=50, and the percentage is %d", got)
	}
}
