package reboot

import (
	"testing"

	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Every state, off and on, with the id of before, with another, and without one before.
func TestJudgeAllStates(t *testing.T) {
	// Columns: active with the same id; active with another id; off, ran before; off, was off before.
	want := map[virt.State][4]sight{
		virt.Running:      {waiting, restarted, off, unable},
		virt.Paused:       {unable, waiting, off, unable},
		virt.ShuttingDown: {waiting, waiting, off, unable},
		virt.Shutoff:      {waiting, waiting, off, unable},
		virt.Crashed:      {unable, unable, off, unable},
		virt.PMSuspended:  {unable, unable, off, unable},
		virt.NoState:      {waiting, waiting, off, unable},
		"unheard-of":      {waiting, waiting, off, unable},
	}
	for state, row := range want {
		for i, c := range []struct{ id, before int }{{7, 7}, {8, 7}, {-1, 7}, {-1, -1}} {
			d := virt.Domain{ID: c.id, State: state}
			if got, why := judge(d, c.before); got != row[i] || why == "" {
				t.Errorf("judge(%s, id %d, before %d) = %d %q, want %d", state, c.id, c.before, got, why, row[i])
			}
		}
		// Another id is nobody's success when the guest was asked to stop.
		for _, id := range []int{-1, 7} {
			wantStop := off
			if id >= 0 {
				wantStop = row[0]
			}
			if got, _ := judgeStop(virt.Domain{ID: id, State: state}); got != wantStop {
				t.Errorf("judgeStop(%s, id %d) = %d, want %d", state, id, got, wantStop)
			}
		}
	}
	special := []struct {
		d      virt.Domain
		before int
		want   sight
	}{
		{virt.Domain{ID: -1, State: virt.Shutoff, Saved: true}, 7, unable},
		{virt.Domain{ID: 7, State: virt.Paused, Reason: virt.ReasonShutdown}, 7, waiting},
		{virt.Domain{ID: 7, State: virt.Running}, -1, restarted}, // it was off when the task began, and runs now
	}
	for _, c := range special {
		if got, _ := judge(c.d, c.before); got != c.want {
			t.Errorf("judge(%+v, %d) = %d, want %d", c.d, c.before, got, c.want)
		}
	}
}
