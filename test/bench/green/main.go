// Command green measures pkg/green beside plain goroutines, errgroup, ants,
// conc and iter.Pull, all in one run, and says for each target whether it is
// met. Peers alternate: a round runs every case of a group once, one after
// another, in an order that turns by one from round to round, and the figure of
// a case is the median of its rounds. Figures of memory come from fresh
// processes, the program calling itself.
//
//	go run ./green             everything
//	go run ./green -rounds 5   fewer rounds
//	go run ./green -only keyed only the groups whose name contains "keyed"
//
// It exits with 1 if a target is missed.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// group is a set of cases that are compared with its first one, the base.
type group struct {
	name  string
	ops   int // operations in one round of one case
	cases []benchCase
}

type benchCase struct {
	name string
	run  func(ops int)
	// most is the target: at most this many times the case named by than
	// (default: the base). 0 is no target.
	most float64
	than string
	// fastest is the target in operations a second. 0 is no target.
	fastest float64
}

func main() {
	rounds := flag.Int("rounds", 11, "rounds of each group")
	only := flag.String("only", "", "run only groups whose name contains this")
	park := flag.String("park", "", "internal: park this many of a kind, as kind:count, and print the bytes of each")
	flag.Parse()
	if *park != "" {
		parkAndPrint(*park)
		return
	}
	fmt.Printf("%s, GOMAXPROCS %d, %d rounds, medians\n", runtime.Version(), runtime.GOMAXPROCS(0), *rounds)
	met := true
	for _, g := range groups() {
		if strings.Contains(g.name, *only) {
			met = g.measure(*rounds) && met
		}
	}
	if strings.Contains("memory", *only) {
		met = measureMemory() && met
	}
	if !met {
		fmt.Println("\nA target was missed.")
		os.Exit(1)
	}
}

// measure runs the rounds and prints the table; true if all targets are met.
func (g group) measure(rounds int) bool {
	took := make(map[string][]float64)
	for round := range rounds + 1 { // the first one warms up
		for i := range g.cases {
			c := g.cases[(i+round)%len(g.cases)]
			runtime.GC()
			start := time.Now()
			c.run(g.ops)
			if round > 0 {
				took[c.name] = append(took[c.name], float64(time.Since(start).Nanoseconds())/float64(g.ops))
			}
		}
	}
	fmt.Printf("\n%s (%d operations a round)\n", g.name, g.ops)
	fmt.Printf("  %-34s %9s %9s %9s %7s  %s\n", "case", "ns/op", "lowest", "highest", "ratio", "target")
	met := true
	base := g.cases[0].name
	for _, c := range g.cases {
		ns := took[c.name]
		line := fmt.Sprintf("  %-34s %9.1f %9.1f %9.1f %7.2f", c.name, median(ns), slices.Min(ns), slices.Max(ns), median(ratios(ns, took[base])))
		verdict, ok := c.verdict(took, base)
		fmt.Println(line + "  " + verdict)
		met = met && ok
	}
	return met
}

func (c benchCase) verdict(took map[string][]float64, base string) (string, bool) {
	switch {
	case c.most > 0:
		if c.than != "" {
			base = c.than
		}
		got := median(ratios(took[c.name], took[base]))
		return fmt.Sprintf("at most %.2f x %s: %.2f %s", c.most, base, got, word(got <= c.most)), got <= c.most
	case c.fastest > 0:
		got := 1e9 / median(took[c.name])
		return fmt.Sprintf("at least %.1f M/s: %.2f M/s %s", c.fastest/1e6, got/1e6, word(got >= c.fastest)), got >= c.fastest
	default:
		return "", true
	}
}

// ratios compares round by round, so that what slowed a whole round down
// slows both.
func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func word(ok bool) string {
	if ok {
		return "met"
	}
	return "MISSED"
}
