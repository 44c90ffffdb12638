package libvirt

import (
	"slices"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

func TestCompressionNeedsVersions(t *testing.T) {
	for _, c := range []struct {
		name          string
		library, qemu uint64
		want          []string
	}{
		{"xbzrle", 6_000_000, 10_000_000, nil},
		{"mt", 9_000_000, 9_000_002, nil},
		{"mt", 9_000_000, 9_001_000, []string{"compression mt: QEMU 9.1.0 here can't do it any more; zstd with parallel connections took its place"}},
		{"zlib", 9_003_000, 7_002_022, []string{"compression zlib: libvirt 9.3.0 here can't do it, 9.4.0 can"}},
		{"zstd", 9_004_000, 7_002_022, nil},
	} {
		if got := compressionReasons(c.name, node{library: c.library, hypervisor: c.qemu}); !slices.Equal(got, c.want) {
			t.Errorf("%s with libvirt %s and QEMU %s: %q, want %q", c.name, version(c.library), version(c.qemu), got, c.want)
		}
	}
}

// Everything that is against a compression is named at once, beside the other reasons.
func TestCheckLeavingKnowsCompressions(t *testing.T) {
	withRig(t, nil, func(r rig) {
		const procVersion = 4
		r.set(func(d *daemon) {
			d.script[procVersion] = func(*daemonConn, []byte) ([]byte, error) { return xdr(uint64(9_002_000)), nil }
		})
		got, err := r.d.CheckLeaving(r.t.Context(), virt.MigrateRequest{Instance: instance.NewUUID(), Compression: "mt", Parallel: 4, PostCopy: true})
		want := []string{
			"post-copy and parallel connections don't go together",
			"compression mt and parallel connections don't go together", "compression mt and post-copy don't go together",
			"compression mt: QEMU 9.2.0 here can't do it any more; zstd with parallel connections took its place",
		}
		if err != nil || !slices.Equal(got.Reasons, want) {
			r.t.Errorf("CheckLeaving = %q, %v, want %q", got.Reasons, err, want)
		}
	})
}

// The statistics of xbzrle, by libvirt's names.
func TestJobCountsWhatIsCompressed(t *testing.T) {
	j := jobOf(virt.JobUnbounded, []golibvirt.TypedParam{
		paramUllong("compression_cache", 1), paramUllong("compression_bytes", 2), paramUllong("compression_pages", 3), paramUllong("compression_cache_misses", 4),
	})
	if want := (virt.Compressed{Cache: 1, Bytes: 2, Pages: 3, Misses: 4}); j.Compressed != want {
		t.Errorf("jobOf: %+v, want %+v", j.Compressed, want)
	}
}
