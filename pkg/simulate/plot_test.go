package simulate_test

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	plotWidth, plotHeight = 860, 250 // of one panel
	plotLeft, plotTop     = 60, 30
	barWidth              = 28
)

// policyPlot draws two panels of bars: time to end and downtime, on logarithmic scales.
func policyPlot(all []ending) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", plotWidth, 2*plotHeight+50)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	panel(&b, 0, "time to end, s", all, func(e ending) float64 { return e.took.Seconds() }, 1, 4000)
	panel(&b, plotHeight, "downtime, ms (none: the guest stayed where it was)", all, func(e ending) float64 { return float64(e.downtime / time.Millisecond) }, 10, 10_000)
	for i, c := range contenders() {
		x := plotLeft + i*160
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			x, 2*plotHeight+20, colour(i), x+18, 2*plotHeight+30, c.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func colour(i int) string {
	return []string{"#999999", "#d55e00", "#56b4e9", "#0072b2", "#009e73"}[i]
}

// panel draws one figure of each migration; a hollow bar is one that did not complete.
func panel(b *strings.Builder, top int, title string, all []ending, of func(ending) float64, low, high float64) {
	floor := top + plotHeight - 25
	scale := func(v float64) int {
		share := math.Log(max(v, low)/low) / math.Log(high/low)
		return int(share * float64(plotHeight-25-plotTop))
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", plotLeft, top+18, title)
	for v := low; v <= high; v *= 10 {
		y := floor - scale(v)
		fmt.Fprintf(b, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#dddddd"/><text x="%d" y="%d" text-anchor="end">%.0f</text>`+"\n",
			plotLeft, y, plotWidth-10, y, plotLeft-6, y+4, v)
	}
	rates := dirtyRates()
	for _, e := range all {
		group := slices.Index(rates, e.dirty)
		place := slices.IndexFunc(contenders(), func(c contender) bool { return c.name == e.policy })
		v := of(e)
		if v <= 0 {
			continue
		}
		x, h := plotLeft+20+group*200+place*(barWidth+4), scale(v)
		fill := colour(place)
		if !strings.HasPrefix(e.end, "completed") {
			fill = "none"
		}
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s" stroke="%s"/><text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n",
			x, floor-h, barWidth, h, fill, colour(place), x+barWidth/2, floor-h-3, strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64))
	}
	for group, rate := range rates {
		fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="middle">writes at %d %% of the link</text>`+"\n", plotLeft+20+group*200+80, floor+15, rate)
	}
}
