package vif

import "context"

// MemoryNetwork is a Network in memory, for the fake driver and for tests.
type MemoryNetwork struct{}

// Memory makes a network that knows these bridges.
func Memory(bridges ...string) *MemoryNetwork { return &MemoryNetwork{} }

// Make implements [Network].
func (n *MemoryNetwork) Make(ctx context.Context, want Tap) (bool, error) {
	return false, notBuilt("make")
}

// Remove implements [Network].
func (n *MemoryNetwork) Remove(ctx context.Context, name, port string) error {
	return notBuilt("remove")
}

// Look implements [Network].
func (n *MemoryNetwork) Look(ctx context.Context, name string) (Tap, error) {
	return Tap{}, notBuilt("look")
}

// Taps implements [Network].
func (n *MemoryNetwork) Taps(ctx context.Context) ([]Tap, error) { return nil, notBuilt("taps") }

// Bridges implements [Network].
func (n *MemoryNetwork) Bridges(ctx context.Context) ([]string, error) {
	return nil, notBuilt("bridges")
}
