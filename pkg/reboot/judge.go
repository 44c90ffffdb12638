package reboot

import (
	"fmt"

	"github.com/compute-agent/compute-agent/pkg/virt"
)

/*
A look at a guest that was asked to go off ends in one of these:

	                 ┌─▶ waiting ─┐ runs still, or is going off: look again
	look ────────────┤      ▲     │ (at the end of the time: late)
	                 │      └─────┘
	                 ├─▶ off        it went off since the task began: start it again
	                 ├─▶ restarted  it runs under another id, or reset itself: the reboot has happened
	                 └─▶ unable     it can't answer, or there is nobody to ask: by force, at once
*/
type sight int

const (
	waiting sight = iota
	off
	restarted
	unable
	late
)

// judge says what a look means for a soft reboot of a guest whose id was
// beforeID when the task began, -1 for none. It is pure; nova's rule (a changed
// id is success) is sharpened where it waits for nothing or is content with too little.
func judge(d virt.Domain, beforeID int) (sight, string) {
	switch {
	case d.Active() && d.ID == beforeID:
		return judgeSame(d)
	case d.Active() && d.State == virt.Running:
		return restarted, fmt.Sprintf("the guest runs under a new id (%d after %d): somebody restarted it", d.ID, beforeID)
	case d.Active() && d.State == virt.Paused: // as every start is for a moment
		return waiting, "it was restarted, and is paused"
	case d.Active():
		return judgeSame(d)
	case d.Saved:
		return unable, "its memory was saved and it is off"
	case beforeID >= 0:
		return off, "the guest went off and was started again"
	}
	return unable, "it was off"
}

// judgeSame says what a look means at the very guest that was asked.
func judgeSame(d virt.Domain) (sight, string) {
	switch d.State {
	case virt.Running:
		return waiting, "it still runs"
	case virt.Paused:
		if d.Reason == virt.ReasonShutdown { // QEMU's last moment
			return waiting, "it is going off"
		}
		return unable, "it is paused and can't answer"
	case virt.ShuttingDown:
		return waiting, "it is going off"
	case virt.Crashed:
		return unable, "it has crashed"
	case virt.PMSuspended:
		return unable, "it sleeps and can't answer"
	case virt.Shutoff, virt.NoState: // between two states
	}
	return waiting, "its state is " + string(d.State)
}

// judgeStop says what a look means for a clean power off; restarted doesn't occur.
func judgeStop(d virt.Domain) (sight, string) {
	if !d.Active() {
		return off, "it is off"
	}
	return judgeSame(d)
}
