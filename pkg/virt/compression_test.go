package virt_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/compute-agent/compute-agent/pkg/virt"
)

// What libvirt (qemuMigrationParamsSetCompression) and QEMU (migrate_caps_check) refuse.
func TestCompressionReasons(t *testing.T) {
	for _, c := range []struct {
		name     string
		parallel int
		postCopy bool
		want     []string // each in its reason
	}{
		{"", 0, false, nil},
		{"", 4, true, nil},
		{"xbzrle", 0, false, nil},
		{"xbzrle", 0, true, nil},
		{"xbzrle", 4, false, []string{"parallel"}},
		{"mt", 0, false, nil},
		{"mt", 4, true, []string{"parallel", "post-copy"}},
		{"zlib", 4, false, nil},
		{"zstd", 1, false, nil},
		{"zstd", 0, true, []string{"none are asked for", "post-copy"}},
		{"none", 0, false, []string{`"none" is unknown; there are xbzrle, mt, zlib, zstd`}},
		{"lz4", 4, true, []string{`"lz4"`}},
	} {
		got := virt.MigrateRequest{Compression: c.name, Parallel: c.parallel, PostCopy: c.postCopy}.CompressionReasons()
		if !slices.EqualFunc(got, c.want, strings.Contains) {
			t.Errorf("%q, %d connections, post-copy %t: %q, want %q", c.name, c.parallel, c.postCopy, got, c.want)
		}
	}
}
