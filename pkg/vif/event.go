package vif

import (
	"slices"

	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// The external events that speak of ports, by nova's names.
const (
	EventPlugged   = "network-vif-plugged"
	EventUnplugged = "network-vif-unplugged"
	EventDeleted   = "network-vif-deleted"
	EventChanged   = "network-changed"
)

// The values of an external event's status, by nova's names.
const (
	statusCompleted = "completed"
	statusFailed    = "failed"
)

// maxHeard bounds what is kept for ports that nobody plugged yet.
const maxHeard = 10_000

/*
heard is the last word of the network's owner on each port, kept until somebody
waits for it: an event that comes before its waiter is not lost (nova drops it).

	(nothing) ── plugged, completed ──▶ completed ─┐ ◀── the later word wins ──▶
	    ▲     ── plugged, failed ─────▶ failed ────┤
	    └── unplugged, deleted, Unplug ────────────┘

The zero heard is ready to use; its owner locks.
*/
type heard struct {
	status map[string]string // by port id
	order  []string          // port ids, the first heard of first
}

func (h *heard) keep(port, status string, needed func(port string) bool) {
	if h.status == nil {
		h.status = map[string]string{}
	}
	if _, known := h.status[port]; !known {
		h.order = append(h.order, port)
	}
	h.status[port] = status
	if len(h.order) > maxHeard {
		if i := slices.IndexFunc(h.order, func(p string) bool { return !needed(p) }); i >= 0 {
			h.drop(h.order[i])
		}
	}
}

func (h *heard) drop(port string) {
	if _, known := h.status[port]; known {
		delete(h.status, port)
		h.order = slices.DeleteFunc(h.order, func(p string) bool { return p == port })
	}
}

// Event takes what the network's owner says of a port (nova's network-vif-plugged
// and its kin; the tag is the port's id) and keeps it for a waiter to come. It
// reports whether it was for a port that is here or whose event is kept. It never
// waits. What it keeps does not outlive the process: who needs that gives the
// event again, which is harmless.
func (m *Manager) Event(e api.ExternalEvent) bool {
	if e.Tag == "" {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, here := m.ports[e.Tag]
	_, kept := m.heard.status[e.Tag]
	switch e.Name {
	case EventPlugged:
		if e.Status == statusCompleted || e.Status == statusFailed {
			m.heard.keep(e.Tag, e.Status, func(p string) bool { return m.ports[p] != nil })
			kept = true
		}
	case EventUnplugged, EventDeleted:
		m.heard.drop(e.Tag)
	case EventChanged: // nothing to remember
	default:
		return false
	}
	m.wakeLocked()
	return here || kept
}

// wakeLocked has every waiter look again.
func (m *Manager) wakeLocked() {
	for w := range m.waiters {
		select {
		case w <- struct{}{}:
		default: // it will look anyway
		}
	}
}

// forget drops what was heard of a port.
func (m *Manager) forget(port string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard.drop(port)
}

// lastWord is what was heard of a port: completed, failed, or nothing.
func (m *Manager) lastWord(port string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard.status[port]
}

// listen gives a channel that receives after each event, until stop.
func (m *Manager) listen() (wake <-chan struct{}, stop func()) {
	w := make(chan struct{}, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiters[w] = true
	return w, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.waiters, w)
	}
}
