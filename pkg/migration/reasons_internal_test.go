package migration

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReasonsTellTheirHost(t *testing.T) {
	old := "compression mt: QEMU 9.1.0 here can't do it any more"
	for name, c := range map[string]struct{ ours, theirs, want []string }{
		"none":          {},
		"of one":        {ours: []string{"it has a passed-through device"}, want: []string{"on a: it has a passed-through device"}},
		"of the other":  {theirs: []string{old}, want: []string{"on b: " + old}},
		"alike by both": {[]string{old}, []string{old}, []string{"on a: " + old, "on b: " + old}},
		"of each": {
			ours: []string{"no room"}, theirs: []string{"there is no bridge br0 on this host", "where is it?"},
			want: []string{"on a: no room", "on b: there is no bridge br0 on this host", "on b: where is it?"},
		},
		"with its name": {theirs: []string{"b: the host is disabled"}, want: []string{"b: the host is disabled"}},
		"with another's": {
			ours: []string{"b: the host is disabled"}, theirs: []string{"about b"},
			want: []string{"on a: b: the host is disabled", "on b: about b"},
		},
		"twice, by one": {ours: []string{"no room", "no room"}, want: []string{"on a: no room"}},
	} {
		var r Record
		r.Migration.Source, r.Migration.Dest = "a", "b"
		if diff := cmp.Diff(c.want, r.bySpeaker(c.ours, c.theirs)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
