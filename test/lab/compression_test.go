package lab_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

// compresses gives the compressions that QEMU uses for the migration of a guest that leaves a host, by QEMU's names.
func compresses(t *testing.T, h *lab.Host, spec instance.Spec) (names []string) {
	t.Helper()
	on := regexp.MustCompile(`(?m)^(xbzrle|compress): on`)
	for _, m := range on.FindAllStringSubmatch(virsh(t, h, "qemu-monitor-command", spec.UUID, "--hmp", "info migrate_capabilities"), -1) {
		names = append(names, m[1])
	}
	return names
}

// A guest that writes memory three times as fast as the stream carries it, and little that is new, moves by itself when
// only the changes of its pages are sent; the host's compression is turned off, or is another one, by the request. What
// these hosts can't do is said at once.
func memoryIsCompressed(t *testing.T) {
	s := newStage(t, "[migration]\ncompression = \"xbzrle\"\n")
	ctx := t.Context()
	spec := s.boot(t, 10, "h1", "ca.dirty=24")
	reasons, err := s.c.CheckMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h2", Compression: "zstd", Policy: "post_copy_now"})
	must(t, "check", err)
	for _, want := range []string{"none are asked for", "compression zstd and post-copy", "can't do it, 9.4.0 can"} {
		if !strings.Contains(strings.Join(reasons, "\n"), want) {
			t.Errorf("no reason says %q among %q", want, reasons)
		}
	}

	task := s.begin(t, spec, api.MigrateArgs{Dest: "h2", BandwidthMiB: 8}, moving)
	if got := compresses(t, s.Host(1), spec); !slices.Equal(got, []string{"xbzrle"}) {
		t.Errorf("QEMU compresses by %q, want xbzrle", got)
	}
	t.Logf("libvirt says:\n%s", virsh(t, s.Host(1), "domjobinfo", spec.UUID))
	m := s.end(t, task)
	if m.Mode != instance.ModePreCopy || m.Result.CompressedPages == 0 || m.Result.CompressedBytes == 0 {
		t.Errorf("it ended in mode %s with %d pages compressed to %d bytes, want pre-copy and some", m.Mode, m.Result.CompressedPages, m.Result.CompressedBytes)
	}
	t.Logf("%d pages compressed to %d bytes", m.Result.CompressedPages, m.Result.CompressedBytes)
	must(t, "ping", lab.WaitPing(ctx, s.GuestAddress(10).Addr(), 10*time.Second))
	s.only(t, spec, 2)

	task = s.begin(t, spec, api.MigrateArgs{Dest: "h1", BandwidthMiB: 8, Compression: "none"}, moving)
	if got := compresses(t, s.Host(2), spec); len(got) > 0 {
		t.Errorf("QEMU compresses by %q, although the request turned it off", got)
	}
	force, err := s.c.ForceCompleteMigration(ctx, task.Migration())
	s.do(t, force, err)
	if m := s.end(t, task); m.Result.CompressedPages != 0 {
		t.Errorf("without compression %d pages were compressed", m.Result.CompressedPages)
	}
	s.only(t, spec, 1)

	task = s.begin(t, spec, api.MigrateArgs{Dest: "h2", BandwidthMiB: 8, Compression: "mt"}, moving)
	if got := compresses(t, s.Host(1), spec); !slices.Equal(got, []string{"compress"}) {
		t.Errorf("QEMU compresses by %q, want every page, on threads", got)
	}
	force, err = s.c.ForceCompleteMigration(ctx, task.Migration())
	s.do(t, force, err)
	m = s.end(t, task)
	t.Logf("mt: %d pages compressed to %d bytes", m.Result.CompressedPages, m.Result.CompressedBytes)
	must(t, "ping", lab.WaitPing(ctx, s.GuestAddress(10).Addr(), 10*time.Second))
	s.only(t, spec, 2)
}
