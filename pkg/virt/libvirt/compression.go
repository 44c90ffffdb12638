package libvirt

import (
	"context"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// The versions that compressions depend on: libvirt's first with zlib and zstd, and QEMU's
// first without mt.
const (
	zstdLibrary = 9_004_000
	noMTQEMU    = 9_001_000
)

// checkCompression gives every reason why this host can't take its part, as source or as
// destination, in a compression.
func (d *Driver) checkCompression(ctx context.Context, name string) ([]string, error) {
	if name == "" || name == instance.CompressXBZRLE { // every version has it
		return nil, nil
	}
	n, err := control(ctx, d, "check", "compression", func(lv *golibvirt.Libvirt) (n node, err error) {
		if n.library, err = lv.ConnectGetLibVersion(); err != nil {
			return n, err
		}
		n.hypervisor, err = lv.ConnectGetVersion()
		return n, err
	})
	return compressionReasons(name, n), err
}

func compressionReasons(name string, n node) []string {
	switch {
	case virt.CompressesStreams(name) && n.library > 0 && n.library < zstdLibrary:
		return []string{"compression " + name + ": libvirt " + version(n.library) + " here can't do it, " + version(zstdLibrary) + " can"}
	case name == instance.CompressMT && n.hypervisor >= noMTQEMU:
		return []string{"compression mt: QEMU " + version(n.hypervisor) + " here can't do it any more; zstd with parallel connections took its place"}
	}
	return nil
}
