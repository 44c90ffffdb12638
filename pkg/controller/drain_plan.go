package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// departure is an instance that is to leave the host.
type departure struct {
	instance.Instance
	migration string            // one that is in progress already: it is followed first
	failed    map[string]string // destinations that it failed on in this drain, and why
	busySince time.Time         // since when every destination that is left is busy; zero: it is not so
	due       time.Time         // not before
}

func (p *departure) event(state DrainState, reasons ...string) DrainEvent {
	return DrainEvent{State: state, Instance: p.UUID, Name: cmp.Or(p.Name, p.UUID), Reasons: reasons}
}

// plan reads the views and queues every instance that it has not seen before. With
// none it is over: what stayed and has gone since then is no longer in the way.
func (d *Drain) plan(ctx context.Context, s *schedule) (fresh bool, err error) {
	if s.begun && d.stopped() {
		return false, nil
	}
	all, err := d.client.Instances(ctx)
	if err != nil {
		return false, err
	}
	migrations, err := d.client.Migrations(ctx)
	if err != nil {
		return false, err
	}
	here := departures(d.host, all, migrations)
	for _, p := range here {
		if s.seen[p.UUID] {
			continue
		}
		s.seen[p.UUID] = true
		if reason := rooted(p.Instance); reason != "" && p.migration == "" {
			d.report(p.event(DrainStayed, reason))
			continue
		}
		fresh = true
		s.add(p)
	}
	if !fresh {
		d.forget(here)
	}
	s.begun = true
	return fresh, nil
}

// departures are the instances of a host, and those that are on their way to it, in
// the order in which they are to leave: those that are moving, then the biggest, for
// which it is hardest to find room.
func departures(host string, all []instance.Instance, migrations []instance.Migration) []*departure {
	inProgress := map[string]string{}
	arriving := map[string]bool{}
	for _, m := range migrations {
		if m.Status.Ended() || m.Source != host && m.Dest != host {
			continue
		}
		inProgress[m.Instance] = m.UUID
		arriving[m.Instance] = m.Dest == host
	}
	var here []*departure
	for _, i := range all {
		if i.VMState != instance.VMDeleted && (i.Host == host || arriving[i.UUID]) {
			here = append(here, &departure{Instance: i, migration: inProgress[i.UUID], failed: map[string]string{}})
		}
	}
	slices.SortStableFunc(here, func(a, b *departure) int {
		moving := func(p *departure) int { return map[bool]int{true: 0, false: 1}[p.migration != ""] }
		return cmp.Or(cmp.Compare(moving(a), moving(b)), cmp.Compare(b.Spec.MemoryMiB, a.Spec.MemoryMiB), strings.Compare(a.Name, b.Name))
	})
	return here
}

// rooted says why an instance can't be moved while it runs; empty: it may.
func rooted(i instance.Instance) string {
	if i.TaskState == instance.TaskDeleting {
		return "it is being deleted"
	}
	switch i.VMState {
	case instance.VMActive, instance.VMPaused:
		return ""
	case instance.VMStopped:
		return "it is off, and only what runs can be moved live: start it, or leave it here"
	case instance.VMSuspended:
		return "it is suspended, and only what runs can be moved live: resume it, or leave it here"
	case instance.VMBuilding:
		return "it is still being built: run the drain again"
	case instance.VMError:
		if i.Fault != nil {
			return "it is in error: " + i.Fault.Error()
		}
		return "it is in error"
	case instance.VMDeleted:
	}
	return "it is " + string(i.VMState) + ", and only what runs can be moved live"
}

// forget drops from what stayed whatever is not on the host any more.
func (d *Drain) forget(here []*departure) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended.Stayed = slices.DeleteFunc(d.ended.Stayed, func(e DrainEvent) bool {
		gone := !slices.ContainsFunc(here, func(p *departure) bool { return p.UUID == e.Instance })
		if gone {
			e.State = DrainGone
			d.ended.Gone = append(d.ended.Gone, e)
		}
		return gone
	})
}

// targets are the destinations, with what this drain has sent there. The views that
// agents publish lag behind, so the reckoning is done here; the last word on room is
// the destination's own, which the check asks.
type targets struct {
	mu  sync.Mutex
	all []*target
}

type target struct {
	host          string
	vcpus, memory int // free, less what is on its way
	moving        int
}

// findTargets looks every destination up. Those that take nothing are left out;
// when none is left it is an error that says so of each.
func (d *Drain) findTargets(ctx context.Context) (*targets, error) {
	if len(d.opts.To) == 0 {
		return nil, fault.New(fault.InvalidArgument, "", "", "no destination was named").WithHint("`compute-agent host list` shows the hosts")
	}
	var t targets
	var reasons []string
	for _, name := range slices.Compact(slices.Sorted(slices.Values(d.opts.To))) {
		if name == d.host {
			return nil, fault.New(fault.InvalidArgument, "", "host "+name, "it can't be its own destination")
		}
		h, err := d.client.FindHost(ctx, name)
		if err != nil {
			return nil, err
		}
		if why := closed(h); why != "" {
			reasons = append(reasons, name+": "+why)
			continue
		}
		r := h.Resources
		t.all = append(t.all, &target{host: name, vcpus: r.VCPUs - r.VCPUsUsed, memory: r.MemoryMiB - r.MemoryMiBUsed})
	}
	if len(t.all) == 0 {
		return nil, fault.New(fault.PreconditionFailed, "", "host "+d.host, "no destination takes anything: "+strings.Join(reasons, "; ")).
			WithDetail("reasons", reasons).WithHint("name others, or `compute-agent host enable` them")
	}
	return &t, nil
}

// closed says why a host takes no migration at all; empty: it may.
func closed(h Host) string {
	switch {
	case h.Down:
		return fmt.Sprintf("it is down: it last reported %s ago", h.Age.Round(time.Second))
	case !h.Enabled && h.DisabledReason != "":
		return "it is disabled: " + h.DisabledReason
	case !h.Enabled:
		return "it is disabled"
	default:
		return ""
	}
}

// pick chooses the destination to ask next and counts the instance in there: one
// with room before one without, the one with the fewest on their way, the emptiest.
// Empty: there is none but those that were tried. What is picked is put back by drop.
func (t *targets) pick(spec instance.Spec, tried map[string]string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var best *target
	for _, each := range t.all {
		if _, was := tried[each.host]; !was && (best == nil || each.before(best, spec)) {
			best = each
		}
	}
	if best == nil {
		return ""
	}
	best.moving++
	best.vcpus -= spec.VCPUs
	best.memory -= spec.MemoryMiB
	return best.host
}

func (t *target) before(other *target, spec instance.Spec) bool {
	full := func(t *target) int {
		return map[bool]int{false: 0, true: 1}[t.memory < spec.MemoryMiB || t.vcpus < spec.VCPUs]
	}
	return cmp.Or(cmp.Compare(full(t), full(other)), cmp.Compare(t.moving, other.moving), cmp.Compare(other.memory, t.memory),
		strings.Compare(t.host, other.host)) < 0
}

// drop ends what pick began: the instance has arrived, or it has not.
func (t *targets) drop(host string, spec instance.Spec, arrived bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, each := range t.all {
		if each.host != host {
			continue
		}
		each.moving--
		if !arrived {
			each.vcpus += spec.VCPUs
			each.memory += spec.MemoryMiB
		}
	}
}
