// Package version says which build of compute-agent is running.
//
// A release build sets the values through the linker (see the Makefile):
//
//	go build -ldflags "-X …/internal/version.version=0.1.0 -X ….commit=… -X ….date=…"
//
// A build without them (go install, go test, go run) falls back on what the Go tool stamped into the binary.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Set by the linker only; never written by code.
var (
	version string
	commit  string
	date    string
)

// develVersion is the version of a build that nobody gave one.
const develVersion = "devel"

// shortCommit is how many characters of the commit String prints.
const shortCommit = 12

// Build is what is known about the running binary.
type Build struct {
	Version  string `json:"version"`          // semantic version without "v", or "devel"
	Commit   string `json:"commit,omitempty"` // full revision, empty when unknown
	Date     string `json:"date,omitempty"`   // RFC 3339 time of the commit, empty when unknown
	Modified bool   `json:"modified"`         // built from a tree with uncommitted changes
	Go       string `json:"go"`               // version of the Go toolchain, as in "go1.26.0"
	Platform string `json:"platform"`         // operating system and architecture, as in "linux/amd64"
}

// Info returns what is known about the running binary: the linker's values first, the Go tool's stamp where they are
// missing. Anyone may call it at any time.
func Info() Build {
	stamp, _ := debug.ReadBuildInfo()
	return merge(Build{Version: version, Commit: commit, Date: date}, stamp)
}

// String returns the running build on one line, as "0.1.0 (1a2b3c4d5e6f, go1.26.0, linux/amd64)".
func String() string { return Info().String() }

// String returns the build on one line.
func (b Build) String() string {
	rev := b.Commit
	if len(rev) > shortCommit {
		rev = rev[:shortCommit]
	}
	if rev == "" {
		rev = "unknown commit"
	}
	if b.Modified {
		rev += "+changes"
	}
	return fmt.Sprintf("%s (%s, %s, %s)", b.Version, rev, b.Go, b.Platform)
}

// merge fills what b lacks from the Go tool's stamp, which may be nil.
func merge(b Build, stamp *debug.BuildInfo) Build {
	b.Go = runtime.Version()
	b.Platform = runtime.GOOS + "/" + runtime.GOARCH
	if stamp != nil {
		b = fromStamp(b, stamp)
	}
	if b.Version == "" {
		b.Version = develVersion
	}
	return b
}

func fromStamp(b Build, stamp *debug.BuildInfo) Build {
	if v := stamp.Main.Version; b.Version == "" && v != "(devel)" && v != "" {
		b.Version = v
		if v[0] == 'v' {
			b.Version = v[1:]
		}
	}
	linked := b.Commit != ""
	for _, s := range stamp.Settings {
		switch s.Key {
		case "vcs.revision":
			if !linked {
				b.Commit = s.Value
			}
		case "vcs.time":
			if b.Date == "" {
				b.Date = s.Value
			}
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}
