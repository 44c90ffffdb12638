package migration

import (
	"context"
	"sync"
)

// turn lets one at a time do something. The zero turn is nobody's; what it takes to wait
// for it is made when somebody waits.
type turn struct {
	mu    sync.Mutex // guards what follows
	taken bool
	free  chan struct{} // closed when it is passed on; nil while nobody waits
}

// take waits for the turn; pass follows, unless ctx ended first.
func (t *turn) take(ctx context.Context) error {
	for {
		free := t.tryOr()
		if free == nil {
			return nil
		}
		select {
		case <-free:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// wait is take for who waits as long as it lasts.
func (t *turn) wait() {
	for free := t.tryOr(); free != nil; free = t.tryOr() {
		<-free
	}
}

// tryOr takes the turn if nobody has it; else it tells when it may be free.
func (t *turn) tryOr() (free <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.taken {
		t.taken = true
		return nil
	}
	if t.free == nil {
		t.free = make(chan struct{})
	}
	return t.free
}

// try takes the turn if nobody has it.
func (t *turn) try() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	had := t.taken
	t.taken = true
	return !had
}

func (t *turn) pass() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken = false
	if t.free != nil {
		close(t.free)
		t.free = nil
	}
}
