package agent

import (
	"errors"
	"strings"
	"testing"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// The matrix of admit.go, cell by cell: a row of letters in the order of cols.
func TestAdmitMatrix(t *testing.T) {
	cols := []Op{OpBuild, OpTerminate, OpStart, OpStop, OpStopNow, OpRebootSoft, OpRebootHard, OpFreeze, OpMigrate}
	rows := []struct {
		held Op
		want string
	}{
		{OpNone, "qqqqqqqqq"},
		{OpBuild, "RTqqqqqqq"},
		{OpTerminate, "RqRRRRRRR"},
		{OpStart, "Rqqqqqqqq"},
		{OpStop, "RTqqTqTqq"},
		{OpStopNow, "Rqqqqqqqq"},
		{OpRebootSoft, "RTqTTqTqq"},
		{OpRebootHard, "Rqqqqqqqq"},
		{OpFreeze, "Rqqqqqqqq"},
		{OpMigrate, "RTRRRRRRR"},
	}
	letters := map[Verdict]string{Queue: "q", TakeOver: "T", Refuse: "R", Run: "x"}
	for _, row := range rows {
		var got strings.Builder
		for _, asked := range cols {
			got.WriteString(letters[Admit(row.held, asked)])
		}
		if got.String() != row.want {
			t.Errorf("held %v: %s, want %s", row.held, got.String(), row.want)
		}
		for _, asked := range []Op{OpSteer, OpTell} {
			if Admit(row.held, asked) != Run {
				t.Errorf("held %v: %v must be carried out at once", row.held, asked)
			}
		}
	}
}

func TestAdmitAllLooksAtTheWholeLane(t *testing.T) {
	cases := []struct {
		name    string
		running Op
		waiting []Op
		asked   Op
		want    Verdict
		because Op
	}{
		{"a termination that waits refuses", OpRebootSoft, []Op{OpTerminate}, OpStart, Refuse, OpTerminate},
		{"a migration that waits refuses a second", OpStart, []Op{OpMigrate}, OpMigrate, Refuse, OpMigrate},
		{"only what runs is taken over", OpStart, []Op{OpRebootSoft}, OpTerminate, Queue, OpStart},
		{"what runs is taken over", OpRebootSoft, []Op{OpFreeze}, OpTerminate, TakeOver, OpRebootSoft},
		{"steering never waits", OpMigrate, []Op{OpTerminate}, OpSteer, Run, OpMigrate},
	}
	for _, c := range cases {
		got, because := admitAll(c.running, c.waiting, c.asked)
		if got != c.want || because != c.because {
			t.Errorf("%s: %v because of %v, want %v because of %v", c.name, got, because, c.want, c.because)
		}
	}
}

func TestRefusalSaysWhatHolds(t *testing.T) {
	err := refusal("start_instance", "i", OpMigrate)
	if !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "a live migration holds") || !strings.Contains(fault.HintOf(err), "abort") {
		t.Errorf("refusal = %v (hint %q)", err, fault.HintOf(err))
	}
	for _, o := range Ops() {
		if o.String() == "" {
			t.Errorf("operation %d has no name", o)
		}
	}
}
