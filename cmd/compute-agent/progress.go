package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// lastWord is how long the last record of a migration may come after its task's end.
const lastWord = 2 * time.Second

// lineEvery is the least time between two lines of progress.
const lineEvery = time.Second

// figuresWidth keeps the bar from changing its length with its figures.
const figuresWidth = 52

// followMigration shows a migration from its cast to its end.
func (a *app) followMigration(ctx context.Context, s *session, t *controller.Task, w *waiting, name string) (err error) {
	defer func() { err = errors.Join(err, t.Close()) }()
	if w.none() {
		return a.accepted(ctx, t)
	}
	if err := t.Accepted(ctx); err != nil {
		return whileMigrating(ctx, err, name)
	}
	view := a.newProgress(name)
	watch := green.Spawn(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.WatchMigration(ctx, t.Migration(), view.update)
	})
	event, err := t.Wait(ctx)
	if (err == nil || view.last().UUID != "") && ctx.Err() == nil {
		settle, cancel := context.WithTimeout(ctx, lastWord)
		_, _ = watch.Wait(settle) // its last state is in view, however it ended
		cancel()
	}
	watch.Kill(context.Canceled)
	view.close()
	if err != nil {
		if failed(event, err) {
			return err
		}
		return whileMigrating(ctx, err, name)
	}
	return a.migrated(view.last(), name)
}

// watchMigration shows a migration that somebody started.
func (a *app) watchMigration(ctx context.Context, s *session, m instance.Migration, name string) error {
	view := a.newProgress(name)
	err := s.WatchMigration(ctx, m.UUID, view.update)
	view.close()
	if err != nil {
		return whileMigrating(ctx, err, name)
	}
	last := view.last()
	switch {
	case last.Status == instance.MigrationCompleted:
		return a.migrated(last, name)
	case last.Fault != nil:
		return last.Fault
	case last.Status == instance.MigrationCancelled:
		return fault.New(fault.Cancelled, "", "migration of "+name, "it was cancelled; the guest stays on "+last.Source)
	default:
		return fault.Newf(fault.Internal, "", "migration of "+name, "it ended as %s", last.Status)
	}
}

// migrated prints the summary of a migration that has completed.
func (a *app) migrated(m instance.Migration, name string) error {
	return a.show(m, func(w io.Writer) {
		if m.UUID == "" { // it ended before its source published anything
			_, _ = fmt.Fprintf(w, "%s moved\n", name)
			return
		}
		_, _ = fmt.Fprintf(w, "%s moved from %s to %s\n", name, m.Source, m.Dest)
		if r := m.Result; r != nil {
			facts(w, "  took", milliseconds(r.TotalMS), "  guest paused", milliseconds(r.DowntimeMS), "  moved", moved(*r))
		}
	})
}

func moved(r instance.Result) string {
	switch {
	case r.Bytes == 0:
		return ""
	case r.Iterations == 1:
		return size(r.Bytes) + " in 1 iteration"
	case r.Iterations == 0:
		return size(r.Bytes)
	default:
		return fmt.Sprintf("%s in %d iterations", size(r.Bytes), r.Iterations)
	}
}

// whileMigrating says after Ctrl-C that the migration goes on, and what can be done.
func whileMigrating(ctx context.Context, err error, name string) error {
	if ctx.Err() == nil {
		return err
	}
	return &interrupted{fmt.Sprintf("The migration goes on.\n  compute-agent migration watch %s   shows it again\n  compute-agent migration abort %s   ends it; the guest stays", name, name)}
}

// progress shows a migration: a bar on a terminal, lines for people elsewhere,
// nothing for programs. update may be called from another thread than the rest.
type progress struct {
	app  *app
	name string

	// The newest state. The thread that draws reads it while mu is held by one that
	// waits for that very thread.
	m atomic.Pointer[instance.Migration]

	mu      sync.Mutex
	bars    *mpb.Progress // nil: lines
	bar     *mpb.Bar
	printed string
	at      time.Time
}

func (a *app) newProgress(name string) *progress { return &progress{app: a, name: name} }

// last is the newest state that was seen.
func (p *progress) last() instance.Migration {
	if m := p.m.Load(); m != nil {
		return *m
	}
	return instance.Migration{}
}

// update shows a new state.
func (p *progress) update(m instance.Migration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.m.Store(&m)
	switch {
	case p.app.output != outputTable:
		return nil
	case p.app.terminal:
		p.drawLocked()
		return nil
	default:
		return p.lineLocked()
	}
}

// drawLocked moves the bar, and makes it at the first call.
func (p *progress) drawLocked() {
	if p.bars == nil {
		p.bars = mpb.New(mpb.WithOutput(p.app.out), mpb.WithWidth(40), mpb.WithRefreshRate(100*time.Millisecond))
		p.bar = p.bars.New(100, mpb.BarStyle().Lbound(" ").Filler("━").Tip("━").Padding("─").Rbound(" "),
			mpb.PrependDecorators(decor.Name(p.name+"  "), decor.Any(p.step, decor.WC{W: 14, C: decor.DindentRight})),
			mpb.AppendDecorators(decor.Any(p.figures, decor.WC{W: figuresWidth, C: decor.DindentRight})))
	}
	done := int64(p.last().Progress.Percent)
	if p.last().Status == instance.MigrationCompleted {
		done = 100
	}
	p.bar.SetCurrent(done)
}

// step and figures are asked by the thread that draws.
func (p *progress) step(decor.Statistics) string    { return string(p.last().Status) }
func (p *progress) figures(decor.Statistics) string { return figures(p.last()) }

// lineLocked prints a line when something changed, at most one a second; the end always.
func (p *progress) lineLocked() error {
	m := p.last()
	line := fmt.Sprintf("%-13s  %s", m.Status, figures(m))
	if line == p.printed || !m.Status.Ended() && time.Since(p.at) < lineEvery {
		return nil
	}
	p.printed, p.at = line, time.Now()
	_, err := fmt.Fprintf(p.app.out, "%s  %s\n", p.name, line)
	return err
}

// figures are how far a migration is, how fast, and how long it will take.
func figures(m instance.Migration) string {
	line := fmt.Sprintf("%4s", percent(m))
	left := m.Progress.Memory.Remaining + m.Progress.Disk.Remaining
	if m.Status == instance.MigrationRunning && m.Progress.Bandwidth > 0 {
		line += "  " + rate(m.Progress.Bandwidth) + "  " + size(left) + " remain  " + eta(left, m.Progress)
	}
	if m.Mode != "" && m.Mode != instance.ModePreCopy {
		line += "  " + string(m.Mode)
	}
	return line
}

// eta is what remains at the rate by which it shrinks: what the guest writes anew
// has to be moved as well.
func eta(left uint64, p instance.Progress) string {
	if p.Bandwidth <= p.DirtyRate {
		return "the guest writes as fast as it moves"
	}
	d := time.Duration(float64(left) / float64(p.Bandwidth-p.DirtyRate) * float64(time.Second))
	if d < time.Second {
		return "less than 1 s left"
	}
	return "about " + short(d.Round(time.Second)) + " left"
}

// close leaves the bar as it stands and gives the terminal back.
func (p *progress) close() {
	p.mu.Lock()
	bars, bar := p.bars, p.bar
	p.mu.Unlock()
	if bars == nil {
		return
	}
	bar.Abort(false) // no effect on one that is complete
	bars.Wait()
}
