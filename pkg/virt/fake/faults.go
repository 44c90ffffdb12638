package fake

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Points inside a migration where a [Fault] may strike, beside the names of the
// driver's methods. They are asked of the source host.
const (
	PointBegin    = "migrate:begin"     // before the destination starts the guest
	PointPreCopy  = "migrate:pre-copy"  // at the end of an iteration: QEMU's job fails
	PointPostCopy = "migrate:post-copy" // the stream breaks in post-copy
	PointFinish   = "migrate:finish"    // with After: the destination resumed, its answer is lost
)

// Fault is trouble for calls of a driver. Delay comes first, then Hang, then Err.
type Fault struct {
	Method   string        // a method of virttest.Driver (Start, Migrate, …) or a Point; empty: every method, no point
	Instance string        // empty: any
	Delay    time.Duration // be slow by this much
	Hang     bool          // wait until the fault is removed or the caller's context ends
	Err      error         // answer this; nil: carry the call out
	After    bool          // carry the call out first: its answer is lost
	Times    int           // strike so many calls only; 0: all
}

// Faults holds the trouble of one host. Its methods may be called at any time.
type Faults struct {
	active atomic.Int32 // so that a call without faults takes no lock

	mu   sync.Mutex
	list []*armed
}

type armed struct {
	Fault
	left    int
	removed chan struct{}
}

// Add arms a fault. remove disarms it and lets go of the calls that hang in it.
func (f *Faults) Add(t Fault) (remove func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := &armed{Fault: t, left: t.Times, removed: make(chan struct{})}
	f.list = append(f.list, a)
	f.active.Add(1)
	return func() { f.drop(a) }
}

// Clear disarms all faults.
func (f *Faults) Clear() {
	f.mu.Lock()
	list := slices.Clone(f.list)
	f.mu.Unlock()
	for _, a := range list {
		f.drop(a)
	}
}

func (f *Faults) drop(a *armed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.list, a); i >= 0 {
		f.list = slices.Delete(f.list, i, i+1)
		f.active.Add(-1)
		close(a.removed)
	}
}

// hit finds the first fault for a call and uses it up once.
func (f *Faults) hit(method, id string) *armed {
	if f.active.Load() == 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.list {
		if a.meets(method, id) {
			if a.Times > 0 {
				a.left--
			}
			return a
		}
	}
	return nil
}

func (a *armed) meets(method, id string) bool {
	if a.Times > 0 && a.left == 0 {
		return false
	}
	if a.Instance != "" && a.Instance != id {
		return false
	}
	if a.Method == "" {
		return !isPoint(method)
	}
	return a.Method == method
}

func isPoint(method string) bool {
	return slices.Contains([]string{PointBegin, PointPreCopy, PointPostCopy, PointFinish}, method)
}

// before is what happens ahead of the call; an error is its answer.
func (a *armed) before(ctx context.Context, method, id string) error {
	if a == nil {
		return nil
	}
	if a.Delay > 0 {
		if err := wait(ctx, time.After(a.Delay)); err != nil {
			return fault.Wrap(err, method, id)
		}
	}
	if a.Hang {
		if err := wait(ctx, a.removed); err != nil {
			return fault.Wrap(err, method, id)
		}
	}
	if a.Err != nil && !a.After {
		return fault.Wrap(a.Err, method, id)
	}
	return nil
}

// after is the answer in place of the call's own.
func (a *armed) after(method, id string, err error) error {
	if a == nil || a.Err == nil || !a.After {
		return err
	}
	return fault.Wrap(a.Err, method, id)
}

// wait receives from a channel, or gives the cause of ctx's end.
func wait[T any](ctx context.Context, c <-chan T) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
