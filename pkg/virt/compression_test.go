package virt_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
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

// A refusal says every reason, once for people and once as a list.
func TestRefuseCompression(t *testing.T) {
	if err := (virt.MigrateRequest{Compression: instance.CompressXBZRLE}).RefuseCompression("migrate"); err != nil {
		t.Errorf("nothing is against it, and the answer is %v", err)
	}
	r := virt.MigrateRequest{Instance: "i", Compression: instance.CompressMT, Parallel: 2, PostCopy: true}
	err := r.RefuseCompression("migrate")
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || !errors.Is(err, fault.InvalidArgument) || f.Op != "migrate" || f.Subject != "i" {
		t.Fatalf("%#v", err)
	}
	reasons, _ := f.Details["reasons"].([]string)
	if len(reasons) != 2 || !slices.Equal(reasons, r.CompressionReasons()) || f.Message != strings.Join(reasons, "; ") {
		t.Errorf("%q with the reasons %q", f.Message, reasons)
	}
}
