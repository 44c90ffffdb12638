package main

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is a table for Markdown, with what was held against a target.
type report struct {
	head    []string
	rows    [][]string
	targets []target
	notes   []string
	text    string // of another program, instead of the table
}

// target is one line of what was asked for and what came out.
type target struct {
	what string
	got  string
	ok   bool
}

func (r *report) row(cells ...string) { r.rows = append(r.rows, cells) }

// want notes a target that holds when ok.
func (r *report) want(ok bool, what, format string, args ...any) {
	r.targets = append(r.targets, target{what: what, got: fmt.Sprintf(format, args...), ok: ok})
}

func (r *report) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func (r *report) met() bool {
	return !slices.ContainsFunc(r.targets, func(t target) bool { return !t.ok })
}

func (r *report) markdown() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	if r.text != "" {
		b.WriteString("```\n" + strings.TrimSpace(r.text) + "\n```\n")
	} else {
		r.table(line)
	}
	for i, t := range r.targets {
		if i == 0 {
			b.WriteString("\n| target | measured | |\n|---|--:|---|\n")
		}
		line([]string{t.what, t.got, word(t.ok)})
	}
	for i, n := range r.notes {
		if i == 0 {
			b.WriteString("\n")
		}
		b.WriteString("* " + n + "\n")
	}
	return b.String()
}

func (r *report) table(line func([]string)) {
	line(r.head)
	rule := []string{"---"}
	for range len(r.head) - 1 {
		rule = append(rule, "--:")
	}
	line(rule)
	for _, row := range r.rows {
		for len(row) < len(r.head) {
			row = append(row, "")
		}
		line(row)
	}
}

func word(ok bool) string {
	if ok {
		return "met"
	}
	return "MISSED"
}

// samples are figures of one kind.
type samples []float64

func (s samples) at(q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	if q == 0.5 {
		return (sorted[(len(s)-1)/2] + sorted[len(s)/2]) / 2
	}
	return sorted[min(int(q*float64(len(s))), len(s)-1)]
}

func (s samples) median() float64 { return s.at(0.5) }
func (s samples) max() float64    { return s.at(1) }
func (s samples) min() float64    { return s.at(0) }

// spread writes median [lowest–highest].
func (s samples) spread(format string) string {
	f := func(v float64) string { return fmt.Sprintf(format, v) }
	return fmt.Sprintf("%s [%s–%s]", f(s.median()), f(s.min()), f(s.max()))
}

// interval holds the median of what was sampled with at least 95 %, whatever its
// distribution: so many of n samples lie below a median as heads in n tosses of a coin.
func (s samples) interval() (low, high float64) {
	sorted := slices.Sorted(slices.Values(s))
	k, below, ways := 0, 0.0, math.Pow(0.5, float64(len(s))) // ways: the chance of exactly k
	for below+ways <= 0.025 {
		below += ways
		ways *= float64(len(s)-k) / float64(k+1)
		k++
	}
	return sorted[max(k-1, 0)], sorted[min(len(s)-k, len(s)-1)]
}

// less is what is left of a when b is taken away, round by round.
func (s samples) less(b samples) (d samples) {
	for i := range min(len(s), len(b)) {
		d = append(d, s[i]-b[i])
	}
	return d
}

// ratio is the median of the ratios of each round, so that what slows a whole
// round down slows both.
func ratio(a, b samples) float64 {
	var r samples
	for i := range min(len(a), len(b)) {
		r = append(r, a[i]/b[i])
	}
	return r.median()
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// machineLine says what was measured on.
func machineLine() string {
	model := "unknown CPU"
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, found := strings.Cut(string(raw), "model name"); found {
			name, _, _ := strings.Cut(rest, "\n")
			model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return fmt.Sprintf("%d × %s, %s, load %s", runtime.NumCPU(), model, runtime.Version(), load())
}

func load() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	return strings.Fields(string(raw))[0]
}
