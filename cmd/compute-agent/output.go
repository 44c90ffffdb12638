package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// The forms of output.
const (
	outputTable = "table"
	outputJSON  = "json"
	outputYAML  = "yaml"
)

// show prints v for programs, or calls table for people.
func (a *app) show(v any, table func(w io.Writer)) error {
	if a.output != outputTable {
		return a.encode(a.out, v)
	}
	var b bytes.Buffer
	table(&b)
	_, err := a.out.Write(b.Bytes())
	return err
}

// line writes v as one line of JSON, or as one document of YAML: for what comes bit by bit.
func (a *app) line(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fault.WrapAs(fault.Internal, err, "encode", "")
	}
	if a.output == outputYAML {
		if raw, err = toYAML(raw); err != nil {
			return err
		}
		_, err = a.out.Write(append([]byte("---\n"), raw...))
		return err
	}
	_, err = a.out.Write(append(raw, '\n'))
	return err
}

// encode writes v as JSON or YAML with the names that the wire has.
func (a *app) encode(w io.Writer, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fault.WrapAs(fault.Internal, err, "encode", "")
	}
	if a.output == outputYAML {
		if raw, err = toYAML(raw); err != nil {
			return err
		}
		_, err = w.Write(raw)
		return err
	}
	_, err = w.Write(append(raw, '\n'))
	return err
}

// toYAML rewrites JSON, which is YAML in flow style, in block style: the order and
// names of the members stay.
func toYAML(raw []byte) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return nil, fault.WrapAs(fault.Internal, err, "yaml", "")
	}
	blockStyle(&doc)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return nil, fault.WrapAs(fault.Internal, err, "yaml", "")
	}
	return b.Bytes(), nil
}

func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, child := range n.Content {
		blockStyle(child)
	}
}

// table writes aligned columns; a cell without a value is a dash.
type table struct {
	w    io.Writer
	rows [][]string
}

func newTable(w io.Writer, head ...string) *table {
	return &table{w, [][]string{head}}
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
	}
	t.rows = append(t.rows, cells)
}

// flush prints the table, or none when it has no row.
func (t *table) flush(none string) {
	if len(t.rows) == 1 {
		_, _ = fmt.Fprintln(t.w, none)
		return
	}
	t.print(t.rows)
}

func (t *table) print(rows [][]string) {
	var b bytes.Buffer
	tw := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	for _, r := range rows {
		_, _ = fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	_ = tw.Flush()
	for line := range strings.Lines(b.String()) {
		_, _ = fmt.Fprintln(t.w, strings.TrimRight(line, " \n"))
	}
}

// facts writes names and values one under the other; a fact without a value is left out.
func facts(w io.Writer, pairs ...string) {
	t := &table{w: w}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			t.rows = append(t.rows, []string{pairs[i], pairs[i+1]})
		}
	}
	t.print(t.rows)
}

// ago is a time as people say it.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return short(max(0, now.Sub(t))) + " ago"
}

// short is a duration in at most two units.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second && d%time.Second != 0:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%d days", int(d.Hours())/24)
	}
}

// size is a number of bytes.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/unit, 0
	for ; f >= 999.5 && i < 4; i++ {
		f /= unit
	}
	name := []string{"KiB", "MiB", "GiB", "TiB", "PiB"}[i]
	if f < 10 {
		return fmt.Sprintf("%.1f %s", f, name)
	}
	return fmt.Sprintf("%.0f %s", f, name)
}

func mib(n int) string { return size(uint64(max(0, n)) << 20) }

// usedOf is "18 of 256 GiB": the unit once where it is the same.
func usedOf(used, total int) string {
	a, b := mib(used), mib(total)
	if number, unit, _ := strings.Cut(a, " "); strings.HasSuffix(b, unit) || used == 0 {
		a = number
	}
	return a + " of " + b
}

// stamp is a point in time in the reader's zone.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// text is an error of an earlier time on one line.
func text(e *fault.Error) string {
	if e == nil {
		return ""
	}
	return e.Error()
}
