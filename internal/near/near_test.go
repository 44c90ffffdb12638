package near_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/internal/near"
)

func TestHint(t *testing.T) {
	hosts := []string{"node1", "node2", "node12", "storage-a", "Gateway"}
	cases := []struct {
		name, want, hint string
	}{
		{"one letter lost", "nod1", "did you mean node1?"},
		{"two swapped", "ndoe2", "did you mean node2?"},
		{"a beginning", "storage", "did you mean storage-a?"},
		{"several, the closest first", "node", "did you mean node1, node2 or node12?"},
		{"longer than the name", "node1.example", "did you mean node1?"},
		{"case", "gateway", "did you mean Gateway?"},
		{"far away", "zebra", ""},
		{"empty", "", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.hint, near.Hint(c.want, hosts)); d != "" {
				t.Errorf("Hint(%q) (-want +got):\n%s", c.want, d)
			}
		})
	}
}

// One slip of the finger is always found, however the names look.
func TestNamesFindsASlip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z]{4,12}`).Draw(t, "name")
		at := rapid.IntRange(0, len(name)-2).Draw(t, "at")
		slips := []string{
			name[:at] + name[at+1:],
			name[:at] + "7" + name[at:],
			name[:at] + "7" + name[at+1:],
			name[:at] + string(name[at+1]) + string(name[at]) + name[at+2:],
		}
		slip := rapid.SampledFrom(slips).Draw(t, "slip")
		if got := near.Names(slip, []string{"00000000000000000000", name}); len(got) != 1 || got[0] != name {
			t.Errorf("Names(%q) = %v, want [%s]", slip, got, name)
		}
	})
}
