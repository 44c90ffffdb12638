package main

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

func TestMigrationPlot(t *testing.T) {
	moments := []instance.Moment{
		{AtMS: 0, RemainingBytes: 4 << 30},
		{AtMS: 500, RemainingBytes: 3 << 30, PermittedMS: 150, Action: "set_downtime"},
		{AtMS: 20000, RemainingBytes: 1 << 30, PermittedMS: 150},
		{AtMS: 60000, RemainingBytes: 2 << 30, PermittedMS: 150, Action: "pause", Reason: "stalled"},
	}
	for _, ramp := range []string{blocks, plain} {
		var b strings.Builder
		migrationPlot(&b, moments, ramp)
		text := b.String()
		for _, want := range []string{"Remaining", "at most 4.0 GiB", "Permitted pause", "at most 150 ms", "a pause of 150 ms is permitted", "pause: stalled; 2.0 GiB remain"} {
			if !strings.Contains(text, want) {
				t.Errorf("the plot lacks %q:\n%s", want, text)
			}
		}
		row := []rune(spark(moments, func(m instance.Moment) uint64 { return m.RemainingBytes }, ramp))
		steps := []rune(ramp)
		if len(row) != plotWidth || row[0] != steps[7] || row[30] != steps[1] || row[plotWidth-1] != steps[3] {
			t.Errorf("the row is %q: want it to begin at the top, fall to a quarter and end at half", string(row))
		}
	}
	if utf8.RuneCountInString(blocks) != len(plain) {
		t.Error("the two ramps must have as many steps")
	}
	var b strings.Builder
	migrationPlot(&b, moments[:1], plain)
	if b.Len() > 0 {
		t.Errorf("one moment is no line:\n%s", b.String())
	}
}

func TestRampFollowsTheLocale(t *testing.T) {
	for env, want := range map[string]string{
		"": plain, "LANG=de_DE.UTF-8": blocks, "LC_CTYPE=C.utf8": blocks, "LC_ALL=C": plain,
		"LANG=C LC_CTYPE=C.UTF-8": blocks, "LANG=C.UTF-8 LC_CTYPE=C": plain, // the later counts for more
		"LANG=C LC_CTYPE=C LC_ALL=C.UTF-8": blocks, "LANG=C.UTF-8 LC_CTYPE=C.UTF-8 LC_ALL=C": plain,
		"LANG=C.UTF-8 LC_CTYPE= LC_ALL=": blocks, "LC_CTYPE=C.UTF-8 LC_ALL=": blocks, "LANG=C.UTF-8 LC_CTYPE=C LC_ALL=": plain, // empty is not set
	} {
		if got := newApp(strings.NewReader(""), &strings.Builder{}, &strings.Builder{}, strings.Fields(env)).ramp(); got != want {
			t.Errorf("with %q the plot is drawn with %q", env, got)
		}
	}
}
