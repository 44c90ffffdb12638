package main

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// drainLineEvery is the least time between two lines of progress of one instance.
const drainLineEvery = 10 * time.Second

// drainView shows a drain: on a terminal a bar for each migration and one for the
// host, with a line above them for what has ended; elsewhere lines; for programs an
// object for each event.
type drainView struct {
	app  *app
	host string
	opts controller.DrainOptions

	// The thread that draws reads these while mu is held by one that waits for it.
	ended, all atomic.Int64

	mu     sync.Mutex
	rows   map[string]*drainRow // by instance
	paused bool
	left   bool // nobody watches any more
	begun  bool
	bars   *mpb.Progress // nil: nothing is drawn
	total  *mpb.Bar
}

// drainRow is one instance.
type drainRow struct {
	last controller.DrainEvent
	bar  *mpb.Bar
	at   time.Time // of its last line

	shown atomic.Pointer[instance.Migration] // for the thread that draws
}

func (a *app) newDrainView(host string, o controller.DrainOptions) *drainView {
	return &drainView{app: a, host: host, opts: o, rows: map[string]*drainRow{}}
}

// report is told of each step.
func (v *drainView) report(e controller.DrainEvent) {
	if v.app.output != outputTable {
		_ = v.app.line(e) // a reader that has gone is seen at the summary
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.headLocked()
	row := v.rows[e.Instance]
	if row == nil {
		row = &drainRow{}
		v.rows[e.Instance] = row
		v.all.Add(1)
	}
	before := row.last
	row.last = e
	row.shown.Store(e.Migration)
	if e.State.Ended() && !before.State.Ended() {
		v.ended.Add(1)
	}
	v.drawLocked(row)
	if line := v.lineLocked(row, before); line != "" && !v.left {
		v.printLocked(line)
	}
}

// headLocked says once what is going to happen.
func (v *drainView) headLocked() {
	if v.begun {
		return
	}
	v.begun = true
	text := fmt.Sprintf("Moving what runs on %s to %s, %d at a time", v.host, strings.Join(v.opts.To, ", "), v.opts.Parallel)
	if !v.opts.StayOpen {
		text += "\n" + v.host + " is disabled, so that nothing new comes to it (" + v.opts.Reason + ")"
	}
	v.printLocked(text)
}

// printLocked writes a line, above the bars if there are any.
func (v *drainView) printLocked(line string) {
	if v.bars != nil {
		_, _ = fmt.Fprintln(v.bars, line)
		return
	}
	_, _ = fmt.Fprintln(v.app.out, line)
}

// lineLocked says what is new of an instance; empty: nothing that a line is owed to.
func (v *drainView) lineLocked(row *drainRow, before controller.DrainEvent) string {
	e := row.last
	switch e.State {
	case controller.DrainMoving:
		if v.app.terminal {
			return ""
		}
		if before.State != controller.DrainMoving {
			row.at = time.Now()
			return e.Name + "  moves to " + e.Dest
		}
		if e.Migration == nil || time.Since(row.at) < drainLineEvery {
			return ""
		}
		row.at = time.Now()
		return strings.TrimRight(fmt.Sprintf("%s  to %s  %-13s  %s", e.Name, e.Dest, e.Migration.Status, figures(*e.Migration)), " ")
	case controller.DrainWaiting, controller.DrainChecking:
		return ""
	case controller.DrainBusy:
		return fmt.Sprintf("%s  waits: %s; it is asked again in %s", e.Name, strings.Join(e.Reasons, "; "), short(seconds(e.RetryAfterSeconds)))
	case controller.DrainFailed:
		return e.Name + "  failed: " + e.Dest + ": " + strings.Join(e.Reasons, "; ")
	case controller.DrainMoved:
		return e.Name + "  moved to " + e.Dest + arrival(e.Migration)
	case controller.DrainGone:
		return e.Name + "  is gone: " + strings.Join(e.Reasons, "; ")
	case controller.DrainStayed:
		return e.Name + "  stays: " + strings.Join(e.Reasons, "; ")
	}
	return ""
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

// arrival are the figures of a migration that has completed.
func arrival(m *instance.Migration) string {
	if m == nil || m.Result == nil {
		return ""
	}
	text := ""
	if took := milliseconds(m.Result.TotalMS); took != "" {
		text = " in " + took
	}
	if pause := milliseconds(m.Result.DowntimeMS); pause != "" {
		text += ", paused for " + pause
	}
	return text
}

// drawLocked brings the bar of an instance to where it is.
func (v *drainView) drawLocked(row *drainRow) {
	if !v.app.terminal || v.paused {
		return
	}
	moving := row.last.State == controller.DrainMoving
	if moving && row.bar == nil {
		row.bar = v.barLocked(row)
	}
	if row.bar != nil {
		if moving && row.last.Migration != nil {
			row.bar.SetCurrent(int64(row.last.Migration.Progress.Percent))
		}
		if !moving {
			row.bar.Abort(true)
			row.bar = nil
		}
	}
	if v.total != nil {
		v.total.SetTotal(v.all.Load()+1, false) // it is taken away by pause, not by its end
		v.total.SetCurrent(v.ended.Load())
	}
}

// barLocked makes the bar of an instance, and with the first one that of the host.
func (v *drainView) barLocked(row *drainRow) *mpb.Bar {
	style := mpb.BarStyle().Lbound(" ").Filler("━").Tip("━").Padding("─").Rbound(" ")
	if v.bars == nil {
		v.bars = mpb.New(mpb.WithOutput(v.app.out), mpb.WithAutoRefresh(), mpb.WithWidth(30), mpb.WithRefreshRate(100*time.Millisecond))
		v.total = v.bars.New(v.all.Load()+1, style, mpb.BarPriority(1<<30), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name(v.host+"  ", decor.WCSyncSpaceR), decor.Name("", decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return v.count() })))
	}
	name, dest := row.last.Name, row.last.Dest
	return v.bars.New(100, style,
		mpb.PrependDecorators(decor.Name(name+"  ", decor.WCSyncSpaceR), decor.Name("to "+dest, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return row.figures() }, decor.WC{W: figuresWidth, C: decor.DindentRight})))
}

// count and figures are asked by the thread that draws.
func (v *drainView) count() string {
	return fmt.Sprintf("%d of %d done", v.ended.Load(), v.all.Load())
}

func (r *drainRow) figures() string {
	m := r.shown.Load()
	if m == nil {
		return ""
	}
	return fmt.Sprintf("%-9s %s", m.Status, figures(*m))
}

// names are the names of instances.
func (v *drainView) names(ids []string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	names := make([]string, 0, len(ids))
	for _, id := range ids {
		if row := v.rows[id]; row != nil {
			id = row.last.Name
		}
		names = append(names, id)
	}
	return strings.Join(names, ", ")
}

// pause ends the bars, so that somebody can be asked; resume draws new ones.
func (v *drainView) pause() {
	v.mu.Lock()
	bars := v.bars
	v.paused, v.bars = true, nil
	shown := false // what still moves stays in view as it stands
	for _, row := range v.rows {
		if row.bar != nil {
			row.bar.Abort(false)
			row.bar, shown = nil, true
		}
	}
	if v.total != nil {
		v.total.Abort(!shown)
		v.total = nil
	}
	v.mu.Unlock()
	if bars != nil {
		bars.Wait()
	}
}

func (v *drainView) resume() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.paused = false
	for _, row := range v.rows {
		if row.last.State == controller.DrainMoving {
			v.drawLocked(row)
		}
	}
}

// leave ends the telling.
func (v *drainView) leave() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.left = true
}

// close gives the terminal back.
func (v *drainView) close() { v.pause() }
