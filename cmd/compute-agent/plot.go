package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// plotWidth is how many characters a plot of a migration is wide.
const plotWidth = 60

// The steps of a plot's heights: block characters, or plain ones where the locale has
// no others.
const (
	blocks = "▁▂▃▄▅▆▇█"
	plain  = "_.:-=+*#"
)

// ramp chooses the characters by the locale, as the C library does: the first variable
// that is set and not empty counts.
func (a *app) ramp() string {
	locale := cmp.Or(a.env("LC_ALL", ""), a.env("LC_CTYPE", ""), a.env("LANG", ""))
	if name := strings.ToUpper(locale); strings.Contains(name, "UTF-8") || strings.Contains(name, "UTF8") {
		return blocks
	}
	return plain
}

// migrationPlot draws what remained and how long the guest was allowed to stand still,
// over the time, and lists what the policy did.
func migrationPlot(w io.Writer, moments []instance.Moment, ramp string) {
	if len(moments) < 2 {
		return
	}
	remaining := func(m instance.Moment) uint64 { return m.RemainingBytes }
	permitted := func(m instance.Moment) uint64 { return uint64(max(m.PermittedMS, 0)) }
	begin, end := moments[0].AtMS, moments[len(moments)-1].AtMS
	at := func(ms int64) string { return short(time.Duration(ms) * time.Millisecond) }
	_, _ = fmt.Fprintf(w, "\n%-16s %s  at most %s\n", "Remaining", spark(moments, remaining, ramp), size(most(moments, remaining)))
	if top := most(moments, permitted); top > 0 {
		_, _ = fmt.Fprintf(w, "%-16s %s  at most %d ms\n", "Permitted pause", spark(moments, permitted, ramp), top)
	}
	from, to := at(begin), at(end)
	_, _ = fmt.Fprintf(w, "%-16s %s%*s\n", "", from, plotWidth-len(from), to)
	for _, m := range moments {
		switch {
		case m.Action == "set_downtime":
			_, _ = fmt.Fprintf(w, "  %8s  a pause of %d ms is permitted; %s remain\n", at(m.AtMS), m.PermittedMS, size(m.RemainingBytes))
		case m.Action != "":
			_, _ = fmt.Fprintf(w, "  %8s  %s: %s; %s remain\n", at(m.AtMS), m.Action, m.Reason, size(m.RemainingBytes))
		}
	}
}

func most(moments []instance.Moment, of func(instance.Moment) uint64) uint64 {
	top := uint64(0)
	for _, m := range moments {
		top = max(top, of(m))
	}
	return top
}

// spark draws a row of plotWidth characters; each stands for the last moment up to its time.
func spark(moments []instance.Moment, of func(instance.Moment) uint64, ramp string) string {
	steps, top := []rune(ramp), most(moments, of)
	begin := moments[0].AtMS
	span := max(moments[len(moments)-1].AtMS-begin, 1)
	var row strings.Builder
	i := 0
	for x := range int64(plotWidth) {
		until := begin + span*x/(plotWidth-1)
		for i+1 < len(moments) && moments[i+1].AtMS <= until {
			i++
		}
		height := 0
		if top > 0 {
			height = int(float64(of(moments[i])) / float64(top) * float64(len(steps)-1))
		}
		row.WriteRune(steps[height])
	}
	return row.String()
}
