// Command docgen writes the documents that are made from the code: what can be
// configured, the example of a configuration file, and the methods of
// the wire for people and as AsyncAPI.
// `make generate` runs it; a test fails when a document is not what it would write.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/pkg/fault"
)

//go:generate go run . ../..

func main() {
	if len(os.Args) != 2 {
		_, _ = fmt.Fprintln(os.Stderr, "usage: docgen ROOT")
		os.Exit(2)
	}
	if err := generate(os.Args[1]); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

// document is a file that is made from the code, whole or in part.
type document struct {
	path string
	make func(root string, old []byte) ([]byte, error)
}

func documents() []document {
	return []document{
		{"docs/configuration.md", whole(config.Markdown)},
		{"systemd/compute-agent.toml", whole(config.Example)},
		{"docs/rpc.md", methodsInto},
		{"docs/asyncapi.yaml", asyncapi},
	}
}

// whole is a document without a part that is written by hand.
func whole(write func(io.Writer) error) func(string, []byte) ([]byte, error) {
	return func(string, []byte) ([]byte, error) {
		var b bytes.Buffer
		err := write(&b)
		return b.Bytes(), err
	}
}

// generate writes every document of the tree under root.
func generate(root string) error {
	for _, d := range documents() {
		path := filepath.Join(root, d.path)
		old, err := os.ReadFile(path) //nolint:gosec // a document of this tree
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		text, err := d.make(root, old)
		if err != nil {
			return fault.Wrap(err, "docs", path)
		}
		if err := os.WriteFile(path, text, 0o644); err != nil { //nolint:gosec // documents are for everybody
			return err
		}
	}
	return nil
}
