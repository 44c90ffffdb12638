package migration

import (
	"testing"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// What a request names stands, the host's defaults give way.
func TestStreams(t *testing.T) {
	plain, wide := Config{Compression: "xbzrle"}, Config{Parallel: 4, Compression: "zstd"}
	secure := Config{NativeTLS: true, Compression: "zstd"}
	for name, c := range map[string]struct {
		host        Config
		parallel    int
		compression string
		postCopy    bool
		streams     int
		want        string
	}{
		"nothing anywhere":                       {},
		"the host's":                             {host: plain, want: "xbzrle"},
		"the host's, in post-copy":               {host: plain, postCopy: true, want: "xbzrle"},
		"turned off":                             {host: plain, compression: "none"},
		"another one":                            {host: plain, compression: "mt", want: "mt"},
		"connections are named":                  {host: plain, parallel: 2, streams: 2},
		"the host's for connections":             {host: wide, streams: 4, want: "zstd"},
		"post-copy has one stream":               {host: wide, postCopy: true},
		"one stream is named":                    {host: wide, compression: "xbzrle", want: "xbzrle"},
		"turned off on connections":              {host: wide, compression: "none", streams: 4},
		"TLS has four":                           {host: secure, streams: 4, want: "zstd"},
		"both are named, to be refused":          {host: plain, parallel: 2, compression: "mt", streams: 2, want: "mt"},
		"none to compress on, to be refused":     {compression: "zstd", want: "zstd"},
		"mt in post-copy, to be refused":         {host: wide, compression: "mt", postCopy: true, want: "mt"},
		"unknown here, to be refused by drivers": {compression: "lz4", want: "lz4"},
	} {
		streams, got := c.host.streams(c.parallel, c.compression, c.postCopy)
		if streams != c.streams || got != c.want {
			t.Errorf("%s: %d connections, %q; want %d, %q", name, streams, got, c.streams, c.want)
		}
	}
}

// The destination is told, for its own check.
func TestPeerHearsOfTheCompression(t *testing.T) {
	s := &Source{cfg: Config{Compression: "xbzrle"}.WithDefaults()}
	for asked, want := range map[string]string{"": "xbzrle", "none": "", "mt": "mt"} {
		r := newRun(s, NewRecord(instance.Instance{}, api.MigrateArgs{Compression: asked}, "a", ""))
		if got := r.peerArgs().Compression; got != want {
			t.Errorf("asked for %q: the destination hears of %q, want %q", asked, got, want)
		}
	}
}
