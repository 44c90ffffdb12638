package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// lastRecord is how long the last record of a migration may come after its task's end.
const lastRecord = 2 * time.Second

// attempt is what one turn of an instance led to.
type attempt struct {
	*departure
	event DrainEvent    // ended: its outcome; busy, failed: why it waits again
	retry time.Duration // of busy
}

// turn tries to move one instance once: it follows the migration that is in
// progress, or asks the destinations in turn, dest first, until one would take it.
func (d *Drain) turn(ctx context.Context, p *departure, dest string) attempt {
	if p.migration != "" {
		return d.follow(ctx, p)
	}
	tried := maps.Clone(p.failed)
	var busy time.Duration
	for ; dest != ""; dest = d.targets.pick(p.Spec, tried) {
		e, wait := d.ask(ctx, p, dest)
		if e.State == "" { // it may go there
			e = d.send(ctx, p, dest)
		}
		d.targets.drop(dest, p.Spec, e.State == DrainMoved)
		switch {
		case e.State == DrainBusy:
			tried[dest] = e.Reasons[0]
			busy = min(cmp.Or(busy, wait), wait)
		case e.State == DrainFailed && e.Migration == nil: // refused: nothing was done
			tried[dest] = strings.Join(e.Reasons, ", ")
		default:
			return attempt{departure: p, event: e}
		}
	}
	return d.nowhere(p, tried, busy)
}

// nowhere is the outcome of a turn in which no destination took the instance.
func (d *Drain) nowhere(p *departure, tried map[string]string, busy time.Duration) attempt {
	reasons := make([]string, 0, len(tried))
	for _, dest := range slices.Sorted(maps.Keys(tried)) {
		reasons = append(reasons, dest+": "+tried[dest])
	}
	if busy == 0 {
		return attempt{departure: p, event: p.event(DrainStayed, reasons...)}
	}
	e := p.event(DrainBusy, reasons...)
	e.RetryAfterSeconds = busy.Seconds()
	return attempt{departure: p, event: e, retry: busy}
}

// ask has both hosts check a move. The empty state: nothing is against it.
func (d *Drain) ask(ctx context.Context, p *departure, dest string) (DrainEvent, time.Duration) {
	checking := p.event(DrainChecking)
	checking.Dest = dest
	d.report(checking)
	args := d.opts.Migrate
	args.Dest = dest
	reasons, err := d.client.CheckMigration(ctx, p.UUID, args)
	switch {
	case err != nil:
		return d.refused(ctx, p, dest, err)
	case len(reasons) > 0:
		e := p.event(DrainFailed, reasons...)
		e.Dest = dest
		return e, 0
	case d.stopped():
		return p.event(DrainStayed, notBegun), 0
	default:
		return DrainEvent{}, 0
	}
}

// notBegun is why an instance stays when the drain is stopped.
const notBegun = "it was not begun: the drain was stopped"

// refused tells what the error of a check, or of a migration that did nothing, means.
func (d *Drain) refused(ctx context.Context, p *departure, dest string, err error) (DrainEvent, time.Duration) {
	if ctx.Err() != nil {
		return p.event(DrainStayed, "nobody watches any more"), 0
	}
	if fault.Retryable(err) {
		e := p.event(DrainBusy, err.Error())
		e.Dest = dest
		return e, retryAfter(err, d.opts.BusyPause)
	}
	if kind := fault.KindOf(err); kind == fault.NotFound || kind == fault.Conflict || kind == fault.InvalidArgument {
		if e, moved := d.elsewhere(ctx, p); moved {
			return e, 0
		}
	}
	e := p.event(DrainFailed, why(err)...)
	e.Dest = dest
	return e, 0
}

// elsewhere looks whether the instance has left without this drain, or is leaving.
func (d *Drain) elsewhere(ctx context.Context, p *departure) (DrainEvent, bool) {
	i, err := d.client.FindInstance(ctx, p.UUID)
	switch {
	case errors.Is(err, fault.NotFound):
		return p.event(DrainGone, "it was deleted"), true
	case err != nil:
		return DrainEvent{}, false
	case i.Host != d.host:
		return p.event(DrainGone, "it is on "+i.Host+" already"), true
	}
	m, err := d.client.FindMigration(ctx, p.UUID)
	if err == nil && !m.Status.Ended() {
		e := p.event(DrainMoving)
		e.Dest, e.Migration = m.Dest, &m
		return e, true
	}
	return DrainEvent{}, false
}

// why are the reasons of an error: those of a pre-check, or its sentence.
func why(err error) []string {
	switch all := fault.DetailsOf(err)["reasons"].(type) {
	case []string:
		return all
	case []any:
		reasons := make([]string, 0, len(all))
		for _, r := range all {
			reasons = append(reasons, fmt.Sprint(r))
		}
		return reasons
	}
	return []string{err.Error()}
}

// retryAfter reads when a busy host wants to be asked again.
func retryAfter(err error, fallback time.Duration) time.Duration {
	switch s := fault.DetailsOf(err)["retry_after_seconds"].(type) {
	case int:
		return max(time.Duration(s)*time.Second, time.Second)
	case float64: // as JSON brings it
		return max(time.Duration(s*float64(time.Second)), time.Second)
	}
	return fallback
}

// send casts the migration and follows it to its end.
func (d *Drain) send(ctx context.Context, p *departure, dest string) DrainEvent {
	args := d.opts.Migrate
	args.Dest = dest
	t, err := d.client.LiveMigration(ctx, p.UUID, args)
	if err != nil {
		e, _ := d.refused(ctx, p, dest, err)
		return e
	}
	defer func() { _ = t.Close() }()
	seen := &record{}
	first := p.event(DrainMoving)
	first.Dest, first.Migration = dest, &instance.Migration{
		UUID: t.Migration(), Instance: p.UUID, Source: d.host, Dest: dest, Status: instance.MigrationAccepted, StartedAt: time.Now(),
	}
	d.report(first)
	watch := green.Spawn(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, d.watch(ctx, p, t.Migration(), seen)
	})
	_, err = t.Wait(ctx)
	if err == nil || seen.last().UUID != "" { // else nothing was published
		settle, cancel := context.WithTimeout(ctx, lastRecord)
		_, _ = watch.Wait(settle) // its last state is known then, however it ended
		cancel()
	}
	watch.Kill(context.Canceled)
	_, _ = watch.Wait(context.WithoutCancel(ctx)) // so that it tells nothing later
	e := d.outcome(ctx, p, dest, seen.last(), err)
	if e.State == DrainFailed && e.Migration == nil { // it was more than a check
		e.Migration = first.Migration
	}
	return e
}

// watch reports each state of a migration until it has ended.
func (d *Drain) watch(ctx context.Context, p *departure, id string, seen *record) error {
	return d.client.WatchMigration(ctx, id, func(m instance.Migration) error {
		seen.put(m)
		if !m.Status.Ended() {
			e := p.event(DrainMoving)
			e.Dest, e.Migration = m.Dest, &m
			d.report(e)
		}
		return nil
	})
}

// outcome tells what the end of a migration means for its instance.
func (d *Drain) outcome(ctx context.Context, p *departure, dest string, m instance.Migration, err error) DrainEvent {
	e := p.event(DrainMoved)
	e.Dest = dest
	if m.UUID != "" {
		e.Migration = &m
	}
	switch {
	case err == nil:
		return e
	case ctx.Err() != nil:
		e.State, e.Reasons = DrainStayed, []string{"its migration goes on, and nobody watches any more"}
		return e
	case m.Status == instance.MigrationError: // nobody knows where it runs: people decide
		e.State, e.Reasons = DrainStayed, why(err)
		return e
	case fault.KindOf(err) == fault.Cancelled:
		e.State, e.Reasons = DrainStayed, []string{"its migration to " + dest + " was aborted"}
		return e
	case m.Status == instance.MigrationFailed && fault.KindOf(err) != fault.Busy:
		e.State, e.Reasons = DrainFailed, why(err)
		return e
	}
	e, _ = d.refused(ctx, p, dest, err)
	return e
}

// follow waits for the end of a migration that this drain has not begun.
func (d *Drain) follow(ctx context.Context, p *departure) attempt {
	ctx, cancel := context.WithTimeout(ctx, d.client.opts.TaskTimeout)
	defer cancel()
	seen := &record{}
	err := d.watch(ctx, p, p.migration, seen)
	m := seen.last()
	if err == nil && m.Status != instance.MigrationCompleted {
		err = fault.Newf(fault.Internal, "", "", "its migration ended as %s", m.Status)
		if m.Status == instance.MigrationCancelled {
			err = fault.New(fault.Cancelled, "", "", "cancelled")
		}
		if m.Fault != nil {
			err = m.Fault
		}
	}
	if m.Dest == d.host && (err == nil || m.Status == instance.MigrationCancelled || m.Status == instance.MigrationFailed) {
		return attempt{departure: p, event: d.came(p, m)}
	}
	return attempt{departure: p, event: d.outcome(ctx, p, m.Dest, m, err)}
}

// came is the outcome of a migration to the host that is emptied.
func (d *Drain) came(p *departure, m instance.Migration) DrainEvent {
	if m.Status == instance.MigrationCompleted {
		return p.event(DrainWaiting)
	}
	return p.event(DrainGone, "it stayed on "+m.Source)
}
