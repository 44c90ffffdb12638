package lab_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// The table of the kill matrix stands in this file between these lines.
const (
	tableFile  = "../../docs/reliability.md"
	tableBegin = "<!-- kill matrix: written by `make lab-matrix` -->"
	tableEnd   = "<!-- end of the kill matrix -->"
)

// table is what the matrix measured: blow, phase, words.
type table map[string]map[string]string

func (r table) set(blow, phase, words string) {
	if r[blow] == nil {
		r[blow] = map[string]string{}
	}
	r[blow][phase] = words
}

// readTable reads the table that stands in the file, so that a run of some cells leaves the others.
func readTable(t *testing.T) table {
	t.Helper()
	_, inside, _ := cutTable(t)
	rows := table{}
	for line := range strings.Lines(inside) {
		words := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(words) != len(phases)+1 {
			continue
		}
		for i, p := range phases {
			rows.set(strings.TrimSpace(words[0]), p, strings.TrimSpace(words[i+1]))
		}
	}
	return rows
}

func cutTable(t *testing.T) (before, inside, after string) {
	t.Helper()
	text, err := os.ReadFile(tableFile)
	must(t, "the table", err)
	before, rest, found := strings.Cut(string(text), tableBegin)
	inside, after, also := strings.Cut(rest, tableEnd)
	if !found || !also {
		t.Fatalf("%s has no place for the table", tableFile)
	}
	return before, inside, after
}

// write puts the table into the file, where COMPUTE_AGENT_LAB_TABLE=write asks for it.
func (r table) write(t *testing.T) {
	t.Helper()
	if os.Getenv("COMPUTE_AGENT_LAB_TABLE") != "write" {
		return
	}
	before, _, after := cutTable(t)
	must(t, "the table", os.WriteFile(tableFile, []byte(before+tableBegin+"\n"+r.String()+tableEnd+after), 0o644))
}

// String renders the table as Markdown.
func (r table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| killed | %s |\n|---|%s\n", strings.Join(phases, " | "), strings.Repeat("---|", len(phases)))
	for _, blow := range blows {
		fmt.Fprintf(&b, "| %s |", blow.name)
		for _, p := range phases {
			words := r[blow.name][p]
			switch {
			case !slices.Contains(blow.phases, p):
				words = "–"
			case words == "", words == "–":
				words = "not measured"
			}
			fmt.Fprintf(&b, " %s |", words)
		}
		b.WriteString("\n")
	}
	return b.String()
}
