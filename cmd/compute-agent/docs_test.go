package main

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// Every command line in the documents is one that this program has.
func TestDocumentedCommands(t *testing.T) {
	lines := 0
	for _, path := range []string{"../../docs/operations.md", "../../docs/rpc.md", "../../README.md"} {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			args, ok := documented(line)
			if !ok {
				continue
			}
			lines++
			root := newApp(strings.NewReader(""), &strings.Builder{}, &strings.Builder{}, nil).root
			cmd, rest, err := root.Find(args)
			if err == nil {
				err = cmd.ParseFlags(rest)
			}
			if err == nil && cmd.HasSubCommands() {
				err = unknownCommand(cmd, strings.Join(rest, " "))
			}
			if err == nil && cmd.Args != nil {
				err = cmd.Args(cmd, cmd.Flags().Args())
			}
			if err == nil {
				err = cmd.ValidateRequiredFlags()
			}
			if err != nil {
				t.Errorf("%s: %q: %v", path, strings.TrimSpace(line), err)
			}
		}
	}
	if lines < 15 {
		t.Errorf("only %d command lines were found", lines)
	}
}

// Every method and argument in the examples of call and cast is one of this version.
func TestExamplesOfTheWire(t *testing.T) {
	a := newApp(strings.NewReader(""), &strings.Builder{}, &strings.Builder{}, nil)
	for style, c := range map[api.Style]*cobra.Command{api.Call: a.callCommand(), api.Cast: a.castCommand()} {
		lines := 0
		for line := range strings.Lines(c.Example) {
			lines++
			args, _ := documented("  " + line)
			if err := c.ParseFlags(args[1:]); err != nil {
				t.Fatal(err)
			}
			words := c.Flags().Args()[1:] // behind the host
			m, known := api.Find(words[0])
			if !known || m.Style != style || m.Peer {
				t.Errorf("%q: %s is no %s of a controller", line, words[0], style)
				continue
			}
			if err := exampleArguments(m, words[1:]); err != nil {
				t.Errorf("%q: %v", line, err)
			}
		}
		if lines == 0 {
			t.Errorf("%s has no example", style)
		}
	}
}

// exampleArguments holds key=value words against a method's arguments.
func exampleArguments(m api.Method, words []string) error {
	if len(words) == 1 && strings.HasPrefix(words[0], "@") {
		return nil
	}
	want, object := reflect.TypeOf(m.Args()).Elem(), map[string]any{}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		if err := errors.Join(member(want, m.Name, key), put(object, key, value)); err != nil {
			return err
		}
	}
	return enough(want, m.Name, object)
}

// documented gives the arguments of an indented line that runs this program.
func documented(line string) ([]string, bool) {
	if !strings.HasPrefix(line, "    ") {
		return nil, false
	}
	line, _, _ = strings.Cut(line, " #")
	words := strings.Fields(line)
	for len(words) > 0 && strings.Contains(words[0], "=") { // environment
		words = words[1:]
	}
	if len(words) == 0 || words[0] != "compute-agent" {
		return nil, false
	}
	return words[1:], true
}
