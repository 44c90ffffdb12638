package main

import (
	"os"
	"strings"
	"testing"
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
