package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// noteName is the file, in an instance's folder, that says for which migration
// something was made here and what. Its first line is the migration's UUID, each
// other line a path, or a volume. What is not in it was here before and is never removed with
// the migration: on shared storage the folder is the running guest's own.
const noteName = "incoming"

// volumeMark begins a line that names a volume; a path begins with a slash.
const volumeMark = "volume "

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
	fresh, err := d.missing(ctx, op, in.Definition)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.folder(id), folderMode); err != nil {
		return fault.Wrap(err, op, id)
	}
	text := strings.Join(append([]string{in.Migration}, fresh...), "\n") + "\n"
	return fault.Wrap(os.WriteFile(d.notePath(id), []byte(text), 0o600), op, id)
}

// missing lists what has to be made. What is to come with the guest must not be here
// yet: it would hold old data, or be the guest's own disk on storage that nobody knows
// to be shared. Only its owner may decide to remove it.
func (d *Driver) missing(ctx context.Context, op string, def virt.Definition) ([]string, error) {
	s, out := def.Spec, []string{}
	if !exists(d.folder(s.UUID)) {
		out = append(out, d.folder(s.UUID))
	}
	targets, at := d.places(s)
	for i, p := range at {
		_, comes := copied(def, targets[i])
		here, err := d.placeExists(ctx, p)
		switch {
		case err != nil:
			return nil, fault.Wrap(err, op, s.UUID)
		case comes && here:
			return nil, fault.Newf(fault.Conflict, op, s.UUID, "%s is here already, perhaps from an earlier stay of this instance", p).
				WithHint("terminate or clean the instance on this host first; mark the disk as shared if it is")
		case here || !comes && p.disk.Source.Image == "":
		case p.volume != "":
			out = append(out, volumeMark+p.volume)
		default:
			out = append(out, p.path)
		}
	}
	return out, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
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
		p := place{path: path}
		if volume, ok := strings.CutPrefix(path, volumeMark); ok {
			p.volume = volume
		}
		if err := d.removePlace(ctx, op, p); err != nil {
			return fault.Wrap(err, op, id)
		}
	}
	if slices.Contains(n.made, d.folder(id)) {
		return d.removeFiles(ctx, op, id)
	}
	return fault.Wrap(os.Remove(d.notePath(id)), op, id)
}
