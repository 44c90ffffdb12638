package fake

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// storeVersion is the version of the snapshot's layout; another one is refused.
const storeVersion = 1

// record is all of a host, as its snapshot has it.
type record struct {
	Version   int                 `json:"version"`
	NextID    int                 `json:"next_id"`
	Domains   []domainRecord      `json:"domains"`
	Claims    map[string]claim    `json:"claims"`
	Completed map[string]virt.Job `json:"completed"`
	Counts    map[string]*Effects `json:"counts,omitempty"`
}

// changeRecord is all that a host has of one instance, as a line of its log has it. What
// is not there has gone.
type changeRecord struct {
	ID        string        `json:"id"`
	NextID    int           `json:"next_id"`
	Domain    *domainRecord `json:"domain,omitempty"`
	Claim     *claim        `json:"claim,omitempty"`
	Completed *virt.Job     `json:"completed,omitempty"`
	Counts    *Effects      `json:"counts,omitempty"`
}

// domainRecord is one domain of it. A guest that is still arriving is not kept:
// its connection ends with the process.
type domainRecord struct {
	Def     virt.Definition `json:"definition"`
	Running virt.Definition `json:"running"`
	Foreign bool            `json:"foreign,omitempty"`
	ID      int             `json:"id"`
	State   virt.State      `json:"state"`
	Reason  virt.Reason     `json:"reason"`
	Live    bool            `json:"live"`
	Brain   brain           `json:"brain"`
	Saved   *brain          `json:"saved,omitempty"`
	Console time.Duration   `json:"console"`
}

// touchLocked notes that something of an instance changed.
func (h *Host) touchLocked(id string) {
	if h.store.dir != "" {
		h.touched[id] = struct{}{}
	}
}

// changedLocked writes down what changed, of this instance and of those that a timer
// changed. Its error is the error of the call that changed something; what could not
// be written is written with the next change.
func (h *Host) changedLocked(id string) error {
	if h.store.dir == "" {
		return nil
	}
	h.touchLocked(id)
	var lines []byte
	for each := range h.touched {
		line, err := json.Marshal(h.changeLocked(each))
		if err != nil {
			return fault.Wrap(err, "store", h.cfg.Name)
		}
		lines = append(append(lines, line...), '\n')
	}
	if err := h.store.append(lines); err != nil {
		return fault.Wrap(err, "store", h.cfg.Name)
	}
	clear(h.touched)
	if !h.store.long() {
		return nil
	}
	return h.compactLocked()
}

// compactLocked writes the host whole and empties the log.
func (h *Host) compactLocked() error {
	data, err := json.Marshal(h.recordLocked())
	if err == nil {
		err = h.store.compact(data)
	}
	if err != nil {
		return fault.Wrap(err, "store", h.cfg.Name)
	}
	return nil
}

func (h *Host) changeLocked(id string) changeRecord {
	c := changeRecord{ID: id, NextID: h.nextID, Counts: h.counts[id]}
	if d := h.domains[id]; d != nil {
		if kept, ok := d.recordLocked(); ok {
			c.Domain = &kept
		}
	}
	if cl, ok := h.claims[id]; ok {
		c.Claim = &cl
	}
	if j, ok := h.completed[id]; ok {
		c.Completed = &j
	}
	return c
}

// recordLocked is what is kept of a domain; not ok: nothing.
func (d *domain) recordLocked() (kept domainRecord, ok bool) {
	kept = domainRecord{
		Def: d.def, Running: d.running, Foreign: d.foreign, ID: d.id, State: d.state, Reason: d.reason,
		Live: d.live, Brain: d.brain, Saved: d.saved, Console: d.console,
	}
	if d.arriving != nil && !d.live {
		if !d.persistent {
			return kept, false
		}
		kept.ID, kept.State, kept.Reason, kept.Brain, kept.Running = -1, virt.Shutoff, virt.ReasonFailed, brain{}, virt.Definition{}
	}
	return kept, true
}

func (h *Host) recordLocked() record {
	r := record{Version: storeVersion, NextID: h.nextID, Claims: h.claims, Completed: h.completed, Counts: h.counts}
	for _, d := range h.domains {
		if kept, ok := d.recordLocked(); ok {
			r.Domains = append(r.Domains, kept)
		}
	}
	return r
}

// load takes up what an earlier process wrote: guests that ran have gone on.
func (h *Host) load() error {
	if h.store.dir == "" {
		return nil
	}
	snapshot, lines, err := h.store.read()
	if err != nil {
		return fault.Wrap(err, "store", h.store.path())
	}
	r := record{Version: storeVersion, NextID: h.nextID}
	if snapshot != nil {
		if err := json.Unmarshal(snapshot, &r); err != nil {
			return fault.Wrap(err, "store", h.store.path())
		}
	}
	if r.Version != storeVersion {
		return fault.Newf(fault.UnsupportedVersion, "store", h.store.path(), "the file has version %d, this program reads %d", r.Version, storeVersion)
	}
	if err := r.replay(lines); err != nil {
		return fault.Wrap(err, "store", h.store.logPath())
	}
	h.take(r)
	return nil
}

// replay brings a snapshot up to date. Lines that the snapshot has already change
// nothing: the last one of each instance says all of it.
func (r *record) replay(lines [][]byte) error {
	if len(lines) == 0 {
		return nil
	}
	domains := make(map[string]domainRecord, len(r.Domains))
	for _, d := range r.Domains {
		domains[d.uuid()] = d
	}
	claims, completed, counts := map[string]*claim{}, map[string]*virt.Job{}, map[string]*Effects{}
	for _, line := range lines {
		var c changeRecord
		if err := json.Unmarshal(line, &c); err != nil {
			return err
		}
		if delete(domains, c.ID); c.Domain != nil {
			domains[c.ID] = *c.Domain
		}
		claims[c.ID], completed[c.ID], counts[c.ID] = c.Claim, c.Completed, c.Counts
		r.NextID = max(r.NextID, c.NextID)
	}
	r.Domains = slices.Collect(maps.Values(domains))
	r.Claims, r.Completed = overlay(r.Claims, claims), overlay(r.Completed, completed)
	if r.Counts == nil {
		r.Counts = map[string]*Effects{}
	}
	maps.Copy(r.Counts, counts)
	return nil
}

// overlay puts what is newer over a map; nil: it has gone.
func overlay[T any](old map[string]T, newer map[string]*T) map[string]T {
	if old == nil {
		old = map[string]T{}
	}
	for id, v := range newer {
		if delete(old, id); v != nil {
			old[id] = *v
		}
	}
	return old
}

// uuid is the instance: one in post-copy has no definition yet.
func (k domainRecord) uuid() string {
	if id := k.Def.Spec.UUID; id != "" {
		return id
	}
	return k.Running.Spec.UUID
}

func (h *Host) take(r record) {
	h.world.mu.Lock()
	defer h.world.mu.Unlock()
	h.nextID = r.NextID
	if r.Claims != nil {
		h.claims = r.Claims
	}
	if r.Completed != nil {
		h.completed = r.Completed
	}
	for id, c := range r.Counts {
		if c != nil {
			h.counts[id] = c
		}
	}
	for _, k := range r.Domains {
		d := &domain{
			def: k.Def, running: k.Running, foreign: k.Foreign, persistent: k.Def.Spec.UUID != "", id: k.ID, state: k.State,
			reason: k.Reason, live: k.Live, brain: k.Brain, saved: k.Saved, console: k.Console,
		}
		id := k.uuid()
		if !d.persistent { // it was in post-copy
			d.state, d.reason = virt.Paused, virt.ReasonPostCopyFailed
			d.brain.freeze(time.Now())
		}
		h.domains[id] = d
		h.armLocked(d)
	}
}
