package vif

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
)

// MemoryNetwork is a Network in memory, for the fake driver and for tests. It can be
// told to fail and to be slow, and counts what really happened.
type MemoryNetwork struct {
	mu      sync.Mutex
	bridges map[string]bool
	devices map[string]Tap // by name; taps of ours and what else is put there
	fails   map[string][]error
	slow    map[string]time.Duration
	counts  MemoryCounts
}

// MemoryCounts are the changes that really happened, failed ones left out.
type MemoryCounts struct {
	Made    int // devices made
	Mended  int // devices that were there and differed
	Removed int // devices removed
	Looks   int
}

// Memory makes a network that has these bridges and nothing else.
func Memory(bridges ...string) *MemoryNetwork {
	n := &MemoryNetwork{bridges: map[string]bool{}, devices: map[string]Tap{}, fails: map[string][]error{}, slow: map[string]time.Duration{}}
	for _, b := range bridges {
		n.bridges[b] = true
	}
	return n
}

// Fail makes the next calls of a method (Make, Remove, Look, Taps, Bridges), or of that
// method for one device ("Make tapX"), give these errors, one each.
func (n *MemoryNetwork) Fail(method string, errs ...error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fails[method] = append(n.fails[method], errs...)
}

// Slow makes every call of a method take d, from now on. The method is named as for Fail.
func (n *MemoryNetwork) Slow(method string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow[method] = d
}

// Put places a device by another hand, over one that has the name.
func (n *MemoryNetwork) Put(t Tap) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.devices[t.Name] = t
}

// Drop removes a device or a bridge by another hand; taps that were in the bridge are in none.
func (n *MemoryNetwork) Drop(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.devices, name)
	delete(n.bridges, name)
	for k, d := range n.devices {
		if d.Bridge == name {
			d.Bridge = ""
			n.devices[k] = d
		}
	}
}

// AddBridge adds a bridge.
func (n *MemoryNetwork) AddBridge(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bridges[name] = true
}

// Counts gives what happened so far.
func (n *MemoryNetwork) Counts() MemoryCounts {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.counts
}

// begin waits as long as the call is slow and gives the error that it was told to fail with.
// It never holds the lock while it waits.
func (n *MemoryNetwork) begin(ctx context.Context, method, name string) error {
	n.mu.Lock()
	delay := max(n.slow[method], n.slow[method+" "+name])
	n.mu.Unlock()
	if delay > 0 {
		if err := green.Sleep(ctx, delay); err != nil {
			return fault.Wrap(err, strings.ToLower(method), name)
		}
	}
	if ctx.Err() != nil {
		return fault.Wrap(context.Cause(ctx), strings.ToLower(method), name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, key := range []string{method + " " + name, method} {
		if q := n.fails[key]; len(q) > 0 {
			n.fails[key] = q[1:]
			return q[0]
		}
	}
	return nil
}

// Make implements [Network].
func (n *MemoryNetwork) Make(ctx context.Context, want Tap) (bool, error) {
	if err := n.begin(ctx, "Make", want.Name); err != nil {
		return false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if want.Bridge != "" && !n.bridges[want.Bridge] {
		return false, noBridge("plug", want.Port, want.Bridge, slices.Sorted(maps.Keys(n.bridges)))
	}
	have, there := n.devices[want.Name]
	if !there {
		n.counts.Made++
		want.MTU, want.Carrier = or(want.MTU, 1500), false
		n.devices[want.Name] = want
		return true, nil
	}
	if reason := taken(want, have); reason != "" {
		return false, takenError("plug", want.Port, reason)
	}
	if lacks(want, have) != "" {
		n.counts.Mended++
		want.MTU, want.Bridge, want.Carrier = or(want.MTU, have.MTU), or(want.Bridge, have.Bridge), have.Carrier
		n.devices[want.Name] = want
	}
	return false, nil
}

// Remove implements [Network].
func (n *MemoryNetwork) Remove(ctx context.Context, name, port string) error {
	if err := n.begin(ctx, "Remove", name); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	have, there := n.devices[name]
	if !there {
		return nil
	}
	if reason := taken(Tap{Name: name, Port: port}, have); reason != "" {
		return takenError("unplug", port, reason)
	}
	delete(n.devices, name)
	n.counts.Removed++
	return nil
}

// Look implements [Network].
func (n *MemoryNetwork) Look(ctx context.Context, name string) (Tap, error) {
	if err := n.begin(ctx, "Look", name); err != nil {
		return Tap{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.counts.Looks++
	if have, there := n.devices[name]; there {
		return have, nil
	}
	if n.bridges[name] {
		return Tap{Name: name, Kind: "bridge", Up: true, MTU: 1500}, nil
	}
	return Tap{}, fault.Newf(fault.NotFound, "look", name, "there is no such device")
}

// Taps implements [Network].
func (n *MemoryNetwork) Taps(ctx context.Context) ([]Tap, error) {
	if err := n.begin(ctx, "Taps", ""); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []Tap
	for _, name := range slices.Sorted(maps.Keys(n.devices)) {
		if d := n.devices[name]; d.Kind == kindTap && d.Port != "" {
			out = append(out, d)
		}
	}
	return out, nil
}

// Bridges implements [Network].
func (n *MemoryNetwork) Bridges(ctx context.Context) ([]string, error) {
	if err := n.begin(ctx, "Bridges", ""); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.bridges)), nil
}
