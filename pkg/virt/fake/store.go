package fake

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// storeVersion is the version of the file's layout; another one is refused.
const storeVersion = 1

// store keeps a host in one file, written anew with each change and put in place
// by rename. It is meant for demos and restarts in tests, not for thousands of guests.
type store struct{ dir string }

// record is the file.
type record struct {
	Version   int                 `json:"version"`
	NextID    int                 `json:"next_id"`
	Domains   []domainRecord      `json:"domains"`
	Claims    map[string]claim    `json:"claims"`
	Completed map[string]virt.Job `json:"completed"`
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

func (s store) path(host string) string { return filepath.Join(s.dir, url.PathEscape(host)+".json") }

// changedLocked writes the host down. Its error is the error of the call that
// changed something; what a timer changed is written with the next change.
func (h *Host) changedLocked() error {
	if h.store.dir == "" {
		return nil
	}
	data, err := json.Marshal(h.recordLocked())
	if err == nil {
		err = replace(h.store.path(h.cfg.Name), data)
	}
	if err != nil {
		return fault.Wrap(err, "store", h.cfg.Name)
	}
	return nil
}

// replace writes a file whole or not at all.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".fake-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (h *Host) recordLocked() record {
	r := record{Version: storeVersion, NextID: h.nextID, Claims: h.claims, Completed: h.completed}
	for _, d := range h.domains {
		kept := domainRecord{
			Def: d.def, Running: d.running, Foreign: d.foreign, ID: d.id, State: d.state, Reason: d.reason,
			Live: d.live, Brain: d.brain, Saved: d.saved, Console: d.console,
		}
		if d.arriving != nil && !d.live {
			if !d.persistent {
				continue
			}
			kept.ID, kept.State, kept.Reason, kept.Brain, kept.Running = -1, virt.Shutoff, virt.ReasonFailed, brain{}, virt.Definition{}
		}
		r.Domains = append(r.Domains, kept)
	}
	return r
}

// load takes up what an earlier process wrote: guests that ran have gone on.
func (h *Host) load() error {
	if h.store.dir == "" {
		return nil
	}
	if err := os.MkdirAll(h.store.dir, 0o750); err != nil {
		return fault.Wrap(err, "store", h.store.dir)
	}
	path := h.store.path(h.cfg.Name)
	data, err := os.ReadFile(path) //nolint:gosec // the operator names the folder
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(err, "store", path)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return fault.Wrap(err, "store", path)
	}
	if r.Version != storeVersion {
		return fault.Newf(fault.UnsupportedVersion, "store", path, "the file has version %d, this program reads %d", r.Version, storeVersion)
	}
	h.take(r)
	return nil
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
	for _, k := range r.Domains {
		d := &domain{
			def: k.Def, running: k.Running, foreign: k.Foreign, persistent: k.Def.Spec.UUID != "", id: k.ID, state: k.State,
			reason: k.Reason, live: k.Live, brain: k.Brain, saved: k.Saved, console: k.Console,
		}
		id := k.Def.Spec.UUID
		if id == "" { // it was in post-copy: it has no definition yet
			id = k.Running.Spec.UUID
			d.state, d.reason = virt.Paused, virt.ReasonPostCopyFailed
			d.brain.freeze(time.Now())
		}
		h.domains[id] = d
		h.armLocked(d)
	}
}
