package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// noteName is the file, in an instance's folder, that says for which migration
// something was made here and what. Its first line is the migration's UUID, each
// other line a path. What is not in it was here before and is never removed with
// the migration: on shared storage the folder is the running guest's own.
const noteName = "incoming"

type note struct {
	migration string
	made      []string
}

func (d *Driver) folder(id string) string   { return domxml.Folder(d.cfg.LocalInstancesPath, id) }
func (d *Driver) notePath(id string) string { return filepath.Join(d.folder(id), noteName) }

// readNote gives the zero note if there is none.
func (d *Driver) readNote(id string) (note, error) {
	text, err := os.ReadFile(d.notePath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return note{}, nil
	}
	if err != nil {
		return note{}, fmt.Errorf("cannot read what was made for an incoming migration: %w", err)
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return note{migration: lines[0], made: lines[1:]}, nil
}

// claim notes what is about to be made for a migration; asked again for the same
// one it changes nothing.
func (d *Driver) claim(ctx context.Context, op string, in virt.Incoming) error {
	id := in.Spec.UUID
	if err := instance.CheckUUID(op, id); err != nil {
		return err // the id becomes a path
	}
	unlock, err := d.files.lock(ctx, id)
	if err != nil {
		return fault.Wrap(err, op, id)
	}
	defer unlock()
	old, err := d.readNote(id)
	if err != nil || old.migration == in.Migration {
		return fault.Wrap(err, op, id)
	}
	fresh, err := d.missing(op, in.Spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.folder(id), folderMode); err != nil {
		return fault.Wrap(err, op, id)
	}
	text := strings.Join(append([]string{in.Migration}, fresh...), "\n") + "\n"
	return fault.Wrap(os.WriteFile(d.notePath(id), []byte(text), 0o600), op, id)
}

// missing lists what has to be made. An overlay that is already here though its
// disk is not shared holds old data, which an incremental copy would mix with the
// guest's: only its owner may decide to remove it.
func (d *Driver) missing(op string, s instance.Spec) ([]string, error) {
	out := []string{}
	if !exists(d.folder(s.UUID)) {
		out = append(out, d.folder(s.UUID))
	}
	for i, disk := range s.Disks {
		switch path := domxml.OverlayPath(d.cfg.LocalInstancesPath, s.UUID, i); {
		case disk.Source.Image == "":
			if wantsTarget(disk) && !exists(disk.Source.File) {
				out = append(out, disk.Source.File)
			}
		case !exists(path):
			out = append(out, path)
		case !disk.Shared:
			return nil, fault.Newf(fault.Conflict, op, s.UUID, "%s is left from an earlier stay of this instance", path).
				WithHint("terminate or clean the instance on this host first; mark the disk as shared if the folder is on shared storage")
		}
	}
	return out, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// wantsTarget knows a disk whose content comes with the guest.
func wantsTarget(d instance.Disk) bool {
	return d.Source.File != "" && !d.Shared && !d.ReadOnly && d.SizeGiB > 0
}

// makeTargets makes the empty files that non-shared disks are copied into.
func (d *Driver) makeTargets(ctx context.Context, op string, s instance.Spec) error {
	for _, disk := range s.Disks {
		if !wantsTarget(disk) || exists(disk.Source.File) {
			continue
		}
		format := disk.Format
		if format == "" {
			format = "raw"
		}
		if err := d.qemuImg(ctx, "create", "-q", "-f", format, disk.Source.File, strconv.Itoa(disk.SizeGiB)+"G"); err != nil {
			return fault.Wrap(err, op, s.UUID)
		}
	}
	return nil
}

// unclaim removes what was made for this migration, and nothing else.
func (d *Driver) unclaim(ctx context.Context, op, id, migration string) error {
	n, err := d.readNote(id)
	if err != nil {
		return fault.Wrap(err, op, id)
	}
	if n.migration != migration {
		return nil // never prepared, cancelled before, or prepared anew for a later migration
	}
	for _, path := range n.made {
		if path == d.folder(id) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.Wrap(err, op, id)
		}
	}
	if slices.Contains(n.made, d.folder(id)) {
		return d.removeFiles(ctx, op, id)
	}
	return fault.Wrap(os.Remove(d.notePath(id)), op, id)
}
