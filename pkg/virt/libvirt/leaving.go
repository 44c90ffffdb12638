package libvirt

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// CheckLeaving gives every reason why this host could not send a guest as asked: devices
// that hang on this host, what can't be combined, certificates. It also reads the CPU that
// the guest was given. A domain that is gone gives no reason of its own.
func (d *Driver) CheckLeaving(ctx context.Context, r virt.MigrateRequest) (virt.Leaving, error) {
	out := virt.Leaving{Reasons: []string{}}
	if r.PostCopy && r.Parallel > 0 {
		out.Reasons = append(out.Reasons, "post-copy and parallel connections don't go together")
	}
	out.Reasons = append(out.Reasons, r.CompressionReasons()...)
	able, err := d.checkCompression(ctx, r.Compression)
	if err != nil {
		return out, err
	}
	out.Reasons = append(out.Reasons, able...)
	tls, err := d.checkSending(ctx, r)
	if err != nil {
		return out, err
	}
	out.Reasons = append(out.Reasons, tls...)
	xml, err := control(ctx, d, "check_leaving", r.Instance, func(lv *golibvirt.Libvirt) (string, error) {
		dom, err := lookup(lv, r.Instance)
		if err != nil {
			return "", err
		}
		return lv.DomainGetXMLDesc(dom, golibvirt.DomainXMLMigratable)
	})
	if errors.Is(err, fault.NotFound) {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	info, err := domxml.Parse(xml)
	if err != nil {
		return out, fault.Wrap(err, "check_leaving", r.Instance)
	}
	out.Cached = d.cached(info.Disks)
	bound, cpu, err := domxml.Leaving(xml)
	out.CPU, out.Reasons = cpu, append(out.Reasons, bound...)
	return out, fault.Wrap(err, "check_leaving", r.Instance)
}

// File systems that keep the page caches of their hosts alike (libvirt's virFileIsClusterFS), by statfs's f_type. Of a
// FUSE nobody knows.
const (
	magicCeph  = 0x00c36400
	magicGPFS  = 0x47504653
	magicGFS2  = 0x01161970
	magicOCFS2 = 0x7461636f
	magicFUSE  = 0x65735546
)

// cached names the file disks that another host must not read while this one writes.
func (d *Driver) cached(disks []domxml.DiskInfo) []string {
	var out []string
	for _, k := range disks {
		if k.ReadOnly || k.Direct || k.Source == "" {
			continue
		}
		var st unix.Statfs_t
		if unix.Statfs(d.local(k.Source), &st) != nil {
			continue
		}
		switch st.Type {
		case magicCeph, magicGPFS, magicGFS2, magicOCFS2, magicFUSE:
		default:
			out = append(out, k.Target)
		}
	}
	return out
}

// provenSafe reports whether libvirt need not look at the disks: it knows a file system
// that hosts share by its kind alone and refuses all others. Here every writable disk is
// copied, or is known to be the same at both hosts and opened without the page cache.
func provenSafe(r virt.MigrateRequest, disks []domxml.DiskInfo) bool {
	for _, k := range disks {
		switch {
		case k.ReadOnly, slices.Contains(r.Disks, k.Target):
		case !k.Direct || !slices.Contains(r.Shared, k.Target):
			return false
		}
	}
	return len(r.Shared) > 0
}

// compareCPU lets libvirt say whether this host can give a guest the CPU that it has.
func (d *Driver) compareCPU(ctx context.Context, r *findings, cpu, machine, kind string) error {
	if cpu == "" {
		return nil
	}
	_, err := control(ctx, d, "check", "cpu", func(lv *golibvirt.Libvirt) (int32, error) {
		return lv.ConnectCompareHypervisorCPU(nil, nil, golibvirt.OptString{machine}, golibvirt.OptString{kind}, cpu, uint32(golibvirt.ConnectCompareCPUFailIncompatible))
	})
	switch {
	case isCode(err, golibvirt.ErrCPUIncompatible):
		r.add("cpu: this host can't give the guest its CPU: %v", err)
	case isCode(err, golibvirt.ErrNoSupport), isCode(err, golibvirt.ErrConfigUnsupported), isCode(err, golibvirt.ErrOperationUnsupported):
		return nil // this libvirt can't compare for such guests: the models by name have been looked at
	case isCode(err, golibvirt.ErrInternalError), isCode(err, golibvirt.ErrXMLError), isCode(err, golibvirt.ErrInvalidArg):
		r.add("cpu: libvirt can't compare the guest's CPU with this host's: %v", err)
	default:
		return err
	}
	return nil
}

// userfaultfdFile says whether processes that are not root's may use userfaultfd.
const userfaultfdFile = "/proc/sys/vm/unprivileged_userfaultfd"

// checkPostCopy wants what a destination of post-copy needs: QEMU, if it does not run as
// root, may use userfaultfd.
func (d *Driver) checkPostCopy(ctx context.Context, r *findings) error {
	caps, err := d.capabilities(ctx, "check")
	if err != nil {
		return err
	}
	text, err := os.ReadFile(userfaultfdFile)
	r.list = append(r.list, postCopyReasons(string(text), err == nil, caps.qemuUser)...)
	return nil
}

// postCopyReasons judges a host; a kernel that does not say gives no reason.
func postCopyReasons(allowed string, said bool, qemuUser string) []string {
	if !said || strings.TrimSpace(allowed) != "0" || qemuUser == "" || qemuUser == "0" {
		return nil
	}
	return []string{"post-copy: QEMU runs as user " + qemuUser + " here and may not use userfaultfd: sysctl vm.unprivileged_userfaultfd=1"}
}
