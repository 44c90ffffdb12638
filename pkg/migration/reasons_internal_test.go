package migration

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReasonsTellTheirHost(t *testing.T) {
	old := "compression mt: QEMU 9.1.0 here can't do it any more"
	for name, c := range map[string]struct{ ours, theirs, want []string }{
		"none":             {},
		"one's own":        {ours: []string{"it has a passed-through device"}, want: []string{"it has a passed-through device"}},
		"of here, by both": {[]string{old}, []string{old}, []string{"on a: " + old, "on b: " + old}},
		"of here, by one":  {theirs: []string{old}, want: []string{"on b: " + old}},
		"this host's": {
			ours: []string{"no room"}, theirs: []string{"there is no bridge br0 on this host", "where is it?"},
			want: []string{"no room", "on b: there is no bridge br0 on this host", "where is it?"},
		},
		"alike, by both": {
			ours: []string{"TLS: ca-cert.pem is missing", "TLS: client-key.pem is missing"}, theirs: []string{"TLS: ca-cert.pem is missing"},
			want: []string{"on a: TLS: ca-cert.pem is missing", "TLS: client-key.pem is missing", "on b: TLS: ca-cert.pem is missing"},
		},
		"twice, by one": {ours: []string{"no room", "no room"}, want: []string{"no room"}},
	} {
		var r Record
		r.Migration.Source, r.Migration.Dest = "a", "b"
		if diff := cmp.Diff(c.want, r.bySpeaker(c.ours, c.theirs)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
