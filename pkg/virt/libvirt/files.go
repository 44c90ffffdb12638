package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// QEMU runs as another user than the agent: it must pass through the folders and
// libvirt hands it the files inside.
const (
	folderMode  = 0o711
	consoleMode = 0o644
)

// makeFiles makes what is missing of an instance's folder: the folder, its
// console log and one overlay per image, but for those that come with the guest. It
// never touches a file that is there.
func (d *Driver) makeFiles(ctx context.Context, op string, def virt.Definition) error {
	s := def.Spec
	unlock, err := d.files.lock(ctx, s.UUID)
	if err != nil {
		return fault.Wrap(err, op, s.UUID)
	}
	defer unlock()
	if err := os.MkdirAll(d.folder(s.UUID), folderMode); err != nil {
		return fault.Wrap(err, op, s.UUID)
	}
	log, err := os.OpenFile(domxml.ConsolePath(d.cfg.LocalInstancesPath, s.UUID), os.O_CREATE|os.O_RDONLY, consoleMode)
	if err != nil {
		return fault.Wrap(err, op, s.UUID)
	}
	if err := log.Close(); err != nil {
		return fault.Wrap(err, op, s.UUID)
	}
	targets := domxml.Targets(s.Disks)
	for i, disk := range s.Disks {
		if _, comes := copied(def, targets[i]); comes || disk.Source.Image == "" {
			continue
		}
		if err := d.makeOverlay(ctx, domxml.OverlayPath(d.cfg.LocalInstancesPath, s.UUID, i), disk); err != nil {
			return fault.Wrap(err, op, s.UUID)
		}
	}
	return nil
}

// makeOverlay makes a copy-on-write file on an image with qemu-img: the way that
// needs neither a storage pool per folder nor libvirt's storage daemon. It is
// made under another name first, so that a half-made one is never used.
func (d *Driver) makeOverlay(ctx context.Context, path string, disk instance.Disk) error {
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	format, err := imageFormat(disk.Source.Image)
	if err != nil {
		return err
	}
	part := path + ".part"
	args := []string{"create", "-q", "-f", "qcow2", "-b", disk.Source.Image, "-F", format, part}
	if disk.SizeGiB > 0 {
		args = append(args, strconv.Itoa(disk.SizeGiB)+"G")
	}
	if err := d.qemuImg(ctx, args...); err != nil {
		_ = os.Remove(part)
		return err
	}
	return os.Rename(part, path)
}

func (d *Driver) qemuImg(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.FilesTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.cfg.QemuImg, args...) //nolint:gosec // the program is an option, the arguments are paths of a checked spec
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	e := fault.WrapAs(kindOfExec(err), err, d.cfg.QemuImg+" "+args[0], "")
	if text := strings.TrimSpace(string(out)); text != "" {
		return fmt.Errorf("%s: %w", text, e)
	}
	return e
}

func kindOfExec(err error) fault.Kind {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fault.KindOf(err)
	}
	return fault.Internal
}

// imageFormat looks at the first bytes: qcow2 images begin with "QFI\xfb", every
// other base is taken as raw. It is never left to QEMU to probe, because a guest
// could write a header into a raw image.
func imageFormat(path string) (string, error) {
	f, err := os.Open(path) //nolint:gosec // a path of a checked spec
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // read only
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	if bytes.Equal(head, []byte("QFI\xfb")) {
		return "qcow2", nil
	}
	return "raw", nil
}

// removeFiles removes an instance's folder; gone already is success.
func (d *Driver) removeFiles(ctx context.Context, op, id string) error {
	if err := instance.CheckUUID(op, id); err != nil {
		return err // the id becomes a path
	}
	unlock, err := d.files.lock(ctx, id)
	if err != nil {
		return fault.Wrap(err, op, id)
	}
	defer unlock()
	return fault.Wrap(os.RemoveAll(d.folder(id)), op, id)
}

// Console gives the last n bytes of the console log, all of it for n <= 0.
func (d *Driver) Console(ctx context.Context, id string, n int) ([]byte, error) {
	const op = "console"
	if _, err := d.Lookup(ctx, id); err != nil {
		return nil, fault.Wrap(err, op, id)
	}
	f, err := os.Open(filepath.Clean(domxml.ConsolePath(d.cfg.LocalInstancesPath, id)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, op, id, "there is no console log").Because(err)
	}
	if err != nil {
		return nil, fault.Wrap(err, op, id)
	}
	defer f.Close() //nolint:errcheck // read only
	if info, err := f.Stat(); err == nil && n > 0 && info.Size() > int64(n) {
		if _, err := f.Seek(-int64(n), io.SeekEnd); err != nil {
			return nil, fault.Wrap(err, op, id)
		}
	}
	if n > 0 {
		out, err := io.ReadAll(io.LimitReader(f, int64(n)))
		return out, fault.Wrap(err, op, id)
	}
	out, err := io.ReadAll(f)
	return out, fault.Wrap(err, op, id)
}
