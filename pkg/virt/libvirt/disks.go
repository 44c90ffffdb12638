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

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// place is where a disk of a spec lies on this host: a file or a volume.
type place struct {
	disk   instance.Disk
	path   string // of a file, as this process sees it
	volume string // POOL/VOLUME
}

// places gives the place of each disk, by target and in the spec's order.
func (d *Driver) places(s instance.Spec) (targets []string, at []place) {
	targets = domxml.Targets(s.Disks)
	for i, disk := range s.Disks {
		p := place{disk: disk, path: d.local(disk.Source.File), volume: disk.Source.Volume}
		if disk.Source.Image != "" {
			p.path = domxml.OverlayPath(d.cfg.LocalInstancesPath, s.UUID, i)
		}
		at = append(at, p)
	}
	return targets, at
}

// local gives a path as this process sees it: what lies in InstancesPath is in
// LocalInstancesPath.
func (d *Driver) local(path string) string {
	if rest, ok := strings.CutPrefix(path, d.cfg.InstancesPath+"/"); ok {
		return filepath.Join(d.cfg.LocalInstancesPath, rest)
	}
	return path
}

// Storage gives the facts of a definition's disks: what they are, how large where the
// domain is here, and which storage they are on.
func (d *Driver) Storage(ctx context.Context, def virt.Definition) (instance.StorageFacts, error) {
	const op = "storage"
	if err := instance.CheckUUID(op, def.Spec.UUID); err != nil {
		return instance.StorageFacts{}, err // the id becomes a path
	}
	sizes, err := d.sizes(ctx, op, def.Spec)
	if err != nil {
		return instance.StorageFacts{}, err
	}
	facts := instance.StorageFacts{Folder: identity(d.cfg.LocalInstancesPath)}
	targets, at := d.places(def.Spec)
	for i, p := range at {
		f := instance.DiskFacts{Target: targets[i], Format: domxml.Format(p.disk), CapacityBytes: sizes[targets[i]]}
		if p.volume == "" {
			f.Identity = identity(p.path)
		} else if f.Identity, err = d.volumeIdentity(ctx, op, p.volume); err != nil && !errors.Is(err, fault.NotFound) {
			return facts, err
		}
		facts.Disks = append(facts.Disks, f)
	}
	return facts, nil
}

// sizes asks for the capacities that the guest sees, by target; none without a domain.
// What stat says of a file is another thing: the length of a qcow2, 0 for a device.
func (d *Driver) sizes(ctx context.Context, op string, s instance.Spec) (map[string]uint64, error) {
	if len(s.Disks) == 0 {
		return nil, nil
	}
	sizes, err := control(ctx, d, op, s.UUID, func(lv *golibvirt.Libvirt) (map[string]uint64, error) {
		dom, err := owned(lv, s.UUID)
		if err != nil {
			return nil, err
		}
		out := map[string]uint64{}
		for _, target := range domxml.Targets(s.Disks) {
			_, capacity, _, err := lv.DomainGetBlockInfo(dom, target, 0)
			if err != nil {
				return nil, err
			}
			out[target] = capacity
		}
		return out, nil
	})
	if errors.Is(err, fault.NotFound) {
		return nil, nil
	}
	return sizes, err
}

// copied reports whether a disk's content comes with the guest, and its facts.
func copied(def virt.Definition, target string) (instance.DiskFacts, bool) {
	i := slices.IndexFunc(def.Copies, func(f instance.DiskFacts) bool { return f.Target == target })
	if i < 0 {
		return instance.DiskFacts{}, false
	}
	return def.Copies[i], true
}

// makeTargets makes the disks that the guest's are copied into: an overlay on the same
// base, an empty file, or a volume of the pool of the same name.
func (d *Driver) makeTargets(ctx context.Context, op string, def virt.Definition) error {
	targets, at := d.places(def.Spec)
	for i, p := range at {
		f, ok := copied(def, targets[i])
		if !ok {
			continue
		}
		var err error
		if p.volume != "" {
			err = d.makeVolume(ctx, op, p.volume, f)
		} else {
			err = d.makeTarget(ctx, p, f)
		}
		if err != nil {
			return fault.Wrap(err, op, def.Spec.UUID)
		}
	}
	return nil
}

// makeTarget makes one file. Its name is taken first and must be free: on a shared file
// system that hides what another host made a moment ago, that file would be the guest's.
func (d *Driver) makeTarget(ctx context.Context, p place, f instance.DiskFacts) error {
	file, err := os.OpenFile(p.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil // ours, of an earlier call: claim has seen that it was not here before
	}
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	args := []string{"create", "-q", "-f", domxml.Format(p.disk)}
	if p.disk.Source.Image != "" {
		base, err := imageFormat(p.disk.Source.Image)
		if err != nil {
			return err
		}
		args = append(args, "-b", p.disk.Source.Image, "-F", base)
	}
	return d.qemuImg(ctx, append(args, p.path, strconv.FormatUint(f.CapacityBytes, 10))...)
}

// makeVolume makes a volume through libvirt; it must not be there yet, or be ours.
func (d *Driver) makeVolume(ctx context.Context, op, name string, f instance.DiskFacts) error {
	_, err := control(ctx, d, op, name, func(lv *golibvirt.Libvirt) (golibvirt.StorageVol, error) {
		if vol, err := findVolume(lv, name); err == nil {
			return vol, nil // of an earlier call: claim has seen that it was not here before
		}
		pool, volume := splitVolume(name)
		p, err := lv.StoragePoolLookupByName(pool)
		if err != nil {
			return golibvirt.StorageVol{}, err
		}
		v := libvirtxml.StorageVolume{
			Name: volume, Capacity: &libvirtxml.StorageVolumeSize{Unit: "bytes", Value: f.CapacityBytes},
			Allocation: &libvirtxml.StorageVolumeSize{Unit: "bytes", Value: 0},
			Target:     &libvirtxml.StorageVolumeTarget{Format: &libvirtxml.StorageVolumeTargetFormat{Type: f.Format}},
		}
		xml, err := v.Marshal()
		if err != nil {
			return golibvirt.StorageVol{}, err
		}
		return lv.StorageVolCreateXML(p, xml, 0)
	})
	return err
}

// RemoveDisks removes the storage of these targets: their content lives on another
// host. Gone already is success.
func (d *Driver) RemoveDisks(ctx context.Context, def virt.Definition, targets []string) error {
	const op = "remove_disks"
	id := def.Spec.UUID
	if len(targets) == 0 {
		return nil
	}
	dom, err := d.Lookup(ctx, id)
	switch {
	case err == nil && dom.Active():
		return fault.Newf(fault.Conflict, op, id, "the domain is %s: its disks are in use", dom.State)
	case err != nil && !errors.Is(err, fault.NotFound):
		return err
	}
	names, at := d.places(def.Spec)
	for i, p := range at {
		if !slices.Contains(targets, names[i]) {
			continue
		}
		if err := d.removePlace(ctx, op, p); err != nil {
			return fault.Wrap(err, op, id)
		}
	}
	return nil
}

func (d *Driver) removePlace(ctx context.Context, op string, p place) error {
	if p.volume == "" {
		if err := os.Remove(p.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return d.removeVolume(ctx, op, p.volume)
}

func (d *Driver) removeVolume(ctx context.Context, op, name string) error {
	_, err := control(ctx, d, op, name, func(lv *golibvirt.Libvirt) (struct{}, error) {
		vol, err := findVolume(lv, name)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, lv.StorageVolDelete(vol, 0)
	})
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// checkIncoming gives the reasons that only a guest brings that comes from elsewhere:
// what is copied must have room and must not be here yet, what is shared must be here.
func (d *Driver) checkIncoming(ctx context.Context, r *findings, def virt.Definition) error {
	need := map[string]uint64{}
	targets, at := d.places(def.Spec)
	for i, p := range at {
		what := fmt.Sprintf("disks[%d]", i)
		f, comes := copied(def, targets[i])
		here, err := d.placeExists(ctx, p)
		if err != nil {
			return err
		}
		switch {
		case comes && here:
			r.add("%s: %s is here already, and nothing shows that it is the guest's own: remove it, or mark the disk as shared", what, p)
		case comes && p.volume == "":
			need[nearest(p.path)] += f.CapacityBytes
		case !comes && p.disk.Shared && !here:
			r.add("%s: %s is marked as shared, but it is not here", what, p)
		}
	}
	for at, bytes := range need {
		_, free, err := room(at)
		r.when(err == nil && bytes>>30 > uint64(max(free, 0)), "disks: %d GiB are wanted at %s, %d GiB are free", bytes>>30, at, free)
	}
	return nil
}

// String is the disk's name for people.
func (p place) String() string {
	if p.volume != "" {
		return "volume " + p.volume
	}
	return p.path
}

func (d *Driver) placeExists(ctx context.Context, p place) (bool, error) {
	if p.volume == "" {
		return exists(p.path), nil
	}
	_, err := control(ctx, d, "check", p.volume, func(lv *golibvirt.Libvirt) (golibvirt.StorageVol, error) { return findVolume(lv, p.volume) })
	if errors.Is(err, fault.NotFound) {
		return false, nil
	}
	return err == nil, err
}
