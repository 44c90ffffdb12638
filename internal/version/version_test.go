package version

import (
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMerge(t *testing.T) {
	stamp := &debug.BuildInfo{
		Main: debug.Module{Version: "v0.3.0"},
		Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "aaaa"},
			{Key: "vcs.time", Value: "2026-01-02T03:04:05Z"},
			{Key: "vcs.modified", Value: "true"},
		},
	}
	tests := []struct {
		name  string
		link  Build
		stamp *debug.BuildInfo
		want  Build
	}{
		{"nothing known", Build{}, nil, Build{Version: "devel"}},
		{"devel stamp", Build{}, &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, Build{Version: "devel"}},
		{
			"stamp alone",
			Build{},
			stamp,
			Build{Version: "0.3.0", Commit: "aaaa", Date: "2026-01-02T03:04:05Z", Modified: true},
		},
		{
			"linker wins",
			Build{Version: "0.4.0", Commit: "bbbb", Date: "2026-02-02T00:00:00Z"},
			stamp,
			Build{Version: "0.4.0", Commit: "bbbb", Date: "2026-02-02T00:00:00Z", Modified: true},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Go = runtime.Version()
			tt.want.Platform = runtime.GOOS + "/" + runtime.GOARCH
			if diff := cmp.Diff(tt.want, merge(tt.link, tt.stamp)); diff != "" {
				t.Errorf("merge (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBuildString(t *testing.T) {
	tests := []struct {
		build Build
		want  string
	}{
		{
			Build{Version: "0.1.0", Commit: "0123456789abcdef", Go: "go1.26.0", Platform: "linux/amd64"},
			"0.1.0 (0123456789ab, go1.26.0, linux/amd64)",
		},
		{
			Build{Version: "0.1.0", Commit: "0123", Modified: true, Go: "go1.26.0", Platform: "linux/arm64"},
			"0.1.0 (0123+changes, go1.26.0, linux/arm64)",
		},
		{Build{Version: "devel", Go: "go1.26.0", Platform: "linux/amd64"}, "devel (unknown commit, go1.26.0, linux/amd64)"},
	}
	for _, tt := range tests {
		if got := tt.build.String(); got != tt.want {
			t.Errorf("String() = %q, want %q", got, tt.want)
		}
	}
	if got := String(); !strings.Contains(got, runtime.Version()) {
		t.Errorf("String() = %q, want the Go version %s in it", got, runtime.Version())
	}
}
