package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
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

// A comment can't name a list either: each word that a migration may be asked for with is in it.
func TestMigrationWords(t *testing.T) {
	said, err := readComments(root, "pkg/rpc/api")
	if err != nil {
		t.Fatal(err)
	}
	for field, words := range map[string][]string{
		"MigrateArgs.Policy":      instance.Policies(),
		"MigrateArgs.Compression": instance.CompressionWords(),
	} {
		have := strings.FieldsFunc(said[field], func(r rune) bool { return strings.ContainsRune(" ,;:", r) })
		for _, word := range words {
			if !slices.Contains(have, word) {
				t.Errorf("%s says %q, without %s", field, said[field], word)
			}
		}
	}
}

// asyncAPI reads the document as it is made now.
func asyncAPI(t *testing.T) (doc map[string]any) {
	t.Helper()
	raw, err := asyncapi(root, nil)
	if err == nil {
		err = yaml.Unmarshal(raw, &doc)
	}
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// Every reference of the AsyncAPI document leads somewhere, and every method is in it.
func TestAsyncAPI(t *testing.T) {
	doc := asyncAPI(t)
	refs := 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, each := range v {
				walk(each)
			}
		case map[string]any:
			if to, ok := v["$ref"].(string); ok {
				refs++
				if !leads(doc, to) {
					t.Errorf("%s leads nowhere", to)
				}
			}
			for _, each := range v {
				walk(each)
			}
		}
	}
	walk(doc)
	if refs < 100 {
		t.Errorf("only %d references", refs)
	}
	for _, m := range api.Methods() {
		if !leads(doc, "#/operations/"+string(m.Style)+"_"+m.Name) || !leads(doc, "#/components/messages/"+m.Name+"/payload") {
			t.Errorf("%s is missing", m.Name)
		}
	}
	if !leads(doc, "#/components/schemas/Spec/properties/memory_mib/type") {
		t.Error("objects are not described")
	}
}

// The headers of requests are those of docs/rpc.md, and a heartbeat is one of the replies.
func TestAsyncAPIHeaders(t *testing.T) {
	rpc, err := os.ReadFile(filepath.Join(root, "docs/rpc.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(rpc), "\n## Headers\n")
	table, _, _ = strings.Cut(table, "\n## ")
	var told []string
	for line := range strings.Lines(table) {
		if name, found := strings.CutPrefix(line, "| `"); found {
			name, _, _ = strings.Cut(name, "`")
			told = append(told, name)
		}
	}
	known := map[string]bool{}
	for _, style := range []api.Style{api.Call, api.Cast} {
		properties, _ := headers(style)["properties"].(object)
		for name := range properties {
			known[name] = true
		}
	}
	slices.Sort(told)
	if diff := cmp.Diff(told, slices.Sorted(maps.Keys(known))); diff != "" {
		t.Errorf("headers of requests (-docs/rpc.md +AsyncAPI):\n%s", diff)
	}
	doc := asyncAPI(t)
	for _, path := range []string{
		"#/components/messages/heartbeat/headers/properties/Compute-Heartbeat", "#/channels/call_get_host_info_reply/messages/heartbeat",
	} {
		if !leads(doc, path) {
			t.Errorf("%s is missing", path)
		}
	}
}

func leads(doc any, path string) bool {
	for part := range strings.SplitSeq(strings.TrimPrefix(path, "#/"), "/") {
		m, ok := doc.(map[string]any)
		if !ok {
			return false
		}
		if doc, ok = m[part]; !ok {
			return false
		}
	}
	return true
}
