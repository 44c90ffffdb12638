package archtest

import (
	"path/filepath"
	"testing"
)

// TestHouse checks the whole module against every rule.
func TestHouse(t *testing.T) {
	house, err := load(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if len(house.files) == 0 {
		t.Fatal("no Go file was found: the rules would hold of nothing")
	}
	used := make(map[exemption]bool)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, v := range violations(house, r, exemptions, used) {
				t.Errorf("%s", v)
			}
		})
	}
	for _, e := range exemptions {
		if !used[e] {
			t.Errorf("the exemption of %s from %q (%s) exempts nothing\n\tdo:  remove it from table_test.go", e.file, e.rule, e.reason)
		}
		if e.reason == "" {
			t.Errorf("the exemption of %s from %q has no reason", e.file, e.rule)
		}
	}
}

// TestTable checks that the tables speak of the same house.
func TestTable(t *testing.T) {
	for _, d := range drivers {
		if floors[d] <= floors["pkg/virt"] {
			t.Errorf("the driver %s (%d) must stand above pkg/virt (%d)", d, floors[d], floors["pkg/virt"])
		}
	}
	for _, d := range doors {
		if d.instead == "" {
			t.Errorf("the door of %s doesn't say what others do instead", d.library)
		}
		for _, room := range d.rooms {
			if _, ok := floors[trimPattern(room)]; !ok && trimPattern(room) != "" {
				t.Errorf("the door of %s opens to %s, which has no floor", d.library, room)
			}
		}
	}
}
