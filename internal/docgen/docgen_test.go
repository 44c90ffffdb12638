package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

const root = "../.."

// The documents are what the code says.
func TestDocuments(t *testing.T) {
	for _, d := range documents() {
		t.Run(d.path, func(t *testing.T) {
			old, err := os.ReadFile(filepath.Join(root, d.path))
			if err != nil {
				t.Fatal(err)
			}
			want, err := d.make(root, old)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(old)); diff != "" {
				t.Errorf("%s is not what the code says; run make generate (-want +got):\n%s", d.path, diff)
			}
		})
	}
}

// Every method, and what its comment says of a member, is in docs/rpc.md.
func TestMethodsInto(t *testing.T) {
	got, err := methodsInto(root, []byte("head\n"+docBegin+"old\n"+docEnd+"tail\n"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(got)
	if !strings.HasPrefix(text, "head\n") || !strings.HasSuffix(text, "tail\n") || strings.Contains(text, "old\n") {
		t.Error("what is written by hand must stay, and only that")
	}
	for _, m := range api.Methods() {
		if !strings.Contains(text, "### `"+m.Name+"`") {
			t.Errorf("%s is missing", m.Name)
		}
	}
	for _, part := range []string{"| `bandwidth_mib` | integer, not negative, optional | MiB/s; 0: the host's default |", "| `not_found` | 404 |", "### Spec\n"} {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing", part)
		}
	}
	if _, err := methodsInto(root, []byte("no marks")); fault.KindOf(err) != fault.PreconditionFailed {
		t.Errorf("a document without marks gives %v", err)
	}
}
