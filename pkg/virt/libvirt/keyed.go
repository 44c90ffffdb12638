package libvirt

import (
	"context"
	"sync"
)

// keyed is a lock per key; the zero value is ready. It keeps nothing of keys that
// nobody holds or waits for.
type keyed struct {
	mu   sync.Mutex
	held map[string]*holder
}

type holder struct {
	turn  chan struct{}
	users int
}

// lock waits for the key's turn; unlock must be called once.
func (k *keyed) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*holder{}
	}
	h := k.held[key]
	if h == nil {
		h = &holder{turn: make(chan struct{}, 1)}
		k.held[key] = h
	}
	h.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(k.held, key)
		}
	}
	select {
	case h.turn <- struct{}{}:
		return func() { <-h.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
