package libvirt

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"
)

// bootIDPath names this run of this kernel.
const bootIDPath = "/proc/sys/kernel/random/boot_id"

// identity names a regular file or a folder so that two hosts give it the same name
// only if they reach the very same one; "" if nothing can be said. Symbolic links are
// followed. A file system of this machine's own is named by the running kernel: no
// other machine has that, though its disks be clones of this one's. A device node says
// nothing about what lies behind it.
func identity(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return ""
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	m := mountOf(string(table), fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	switch m.kind {
	case "nfs", "nfs4", "fuse.glusterfs", "fuse.ceph": // numbers are the server's
		return fmt.Sprintf("%s %s %d", strings.TrimSuffix(m.kind, "4"), m.source, st.Ino)
	case "ceph", "gfs2", "ocfs2", "lustre", "gpfs": // and so is the file system's own
		var fs unix.Statfs_t
		if err := unix.Statfs(path, &fs); err != nil || fs.Fsid.Val == [2]int32{} {
			return ""
		}
		return fmt.Sprintf("%s %x %d", m.kind, fs.Fsid.Val, st.Ino)
	}
	if remote(m.kind) {
		return ""
	}
	boot, err := os.ReadFile(bootIDPath)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("kernel %s %d %d", strings.TrimSpace(string(boot)), st.Dev, st.Ino)
}

// remote knows the file systems on which file numbers may be the client's own.
func remote(kind string) bool {
	return strings.HasPrefix(kind, "fuse") || slices.Contains([]string{"cifs", "smb3", "9p", "virtiofs", "afs", "coda"}, kind)
}

type mount struct{ kind, source string }

// mountOf finds a device in a mount table (proc(5): after " - " come type and source).
func mountOf(table, device string) mount {
	for line := range strings.Lines(table) {
		at, what, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(at), strings.Fields(what)
		if ok && len(left) > 2 && left[2] == device && len(right) > 1 {
			return mount{right[0], right[1]}
		}
	}
	return mount{}
}

// volumeIdentity names a volume: by its pool's source where that is on the network,
// else as the file that it is.
func (d *Driver) volumeIdentity(ctx context.Context, op, name string) (string, error) {
	type found struct{ xml, path string }
	f, err := control(ctx, d, op, name, func(lv *golibvirt.Libvirt) (f found, err error) {
		vol, err := findVolume(lv, name)
		if err != nil {
			return f, err
		}
		pool, err := lv.StoragePoolLookupByVolume(vol)
		if err != nil {
			return f, err
		}
		if f.path, err = lv.StorageVolGetPath(vol); err != nil {
			return f, err
		}
		f.xml, err = lv.StoragePoolGetXMLDesc(pool, 0)
		return f, err
	})
	if err != nil {
		return "", err
	}
	if net := poolIdentity(f.xml); net != "" {
		_, volume := splitVolume(name)
		return net + " " + volume, nil
	}
	return identity(f.path), nil
}

// poolIdentity names what a network pool is made of; "" for other pools.
func poolIdentity(xml string) string {
	var pool libvirtxml.StoragePool
	if err := pool.Unmarshal(xml); err != nil || pool.Source == nil {
		return ""
	}
	if !slices.Contains([]string{"rbd", "iscsi", "iscsi-direct", "gluster", "sheepdog", "vstorage"}, pool.Type) {
		return "" // dir, fs, logical …: files and devices of this machine; netfs: a mounted file system
	}
	s, words := pool.Source, []string{pool.Type, pool.Source.Name}
	for _, h := range s.Host {
		words = append(words, h.Name+":"+h.Port)
	}
	for _, dev := range s.Device {
		words = append(words, dev.Path)
	}
	if s.Dir != nil {
		words = append(words, s.Dir.Path)
	}
	slices.Sort(words[2:])
	return strings.Join(words, " ")
}

func splitVolume(name string) (pool, volume string) {
	pool, volume, _ = strings.Cut(name, "/")
	return pool, volume
}

// findVolume looks POOL/VOLUME up.
func findVolume(lv *golibvirt.Libvirt, name string) (golibvirt.StorageVol, error) {
	pool, volume := splitVolume(name)
	p, err := lv.StoragePoolLookupByName(pool)
	if err != nil {
		return golibvirt.StorageVol{}, err
	}
	return lv.StorageVolLookupByName(p, volume)
}
