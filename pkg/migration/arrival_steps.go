package migration

import (
	"context"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// activateTries is how often ports are asked to speak before the guest is owned
// without them; it runs here in any case.
const activateTries = 3

func (a *arrival) claim(ctx context.Context) error {
	rec := a.record()
	args := api.PeerMigrateArgs{Migration: a.id, Instance: rec.Instance, Storage: rec.Storage}
	_, plan, err := a.d.storage(ctx, args)
	if err != nil {
		return err
	}
	reasons := merge(plan.reasons(rec.Instance.Spec, nil), plan.disagreement(targetsOf(rec.Copies)))
	if err := refusal(a.instance, reasons); err != nil {
		return err
	}
	return a.d.ports.Owner.Claim(ctx, rec)
}

func (a *arrival) unclaim(ctx context.Context) error { return a.d.ports.Owner.Unclaim(ctx, a.record()) }

func (a *arrival) files(ctx context.Context) error {
	rec := a.record()
	in, err := a.d.ports.Hypervisor.PrepareIncoming(ctx, virt.Incoming{Definition: rec.definition(), Source: rec.Migration.Source})
	if err != nil {
		return err
	}
	a.note(func(rec *Record) { rec.Inbound = in })
	return nil
}

func (a *arrival) unfile(ctx context.Context) error {
	return a.d.ports.Hypervisor.CancelIncoming(ctx, a.instance, a.id)
}

func (a *arrival) plug(ctx context.Context) error {
	return a.d.ports.Plugger.Plug(ctx, a.instance, a.record().ports())
}

// unplug removes the ports, once no guest can come any more.
func (a *arrival) unplug(ctx context.Context) error {
	if err := a.unfile(ctx); err != nil {
		return err
	}
	return a.d.ports.Plugger.Unplug(ctx, a.instance, a.record().ports())
}

// ready waits until the ports can carry traffic: before memory moves, not after.
func (a *arrival) ready(ctx context.Context) error {
	c := a.d.cfg
	limited, cancel := within(ctx, c.VIFTimeout, "waiting for the ports")
	defer cancel()
	err := causeOf(limited, a.d.ports.Plugger.Ready(limited, a.instance, a.record().ports()))
	if err != nil && c.VIFNotFatal && ctx.Err() == nil {
		logkit.From(ctx).Warn("ports are not ready; going on, as configured", logkit.Err(err))
		return nil
	}
	return err
}

func (a *arrival) await(context.Context) error {
	a.arm(a.d.cfg.ClaimTimeout) //nolint:contextcheck // the claim outlives the request
	return nil
}

func (a *arrival) unawait(context.Context) error {
	a.disarm() //nolint:contextcheck // the claim outlives the request
	return nil
}

func (a *arrival) activate(ctx context.Context) error {
	retry := green.Retry{Max: activateTries - 1, First: a.d.cfg.RetryFirst / 10, Limit: a.d.cfg.RetryLimit}
	_, err := green.RetryCall(ctx, retry, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, a.d.ports.Plugger.Activate(ctx, a.instance, a.record().ports())
	})
	if err != nil && ctx.Err() == nil { // the guest runs here, reachable or not: it must be owned
		logkit.From(ctx).Error("the ports of an arrived guest can't be activated yet", logkit.Err(err))
		a.activateLater() //nolint:contextcheck // it outlives the request
		return nil
	}
	return causeOf(ctx, err)
}

// activateLater goes on trying while the guest that this migration brought is here.
func (a *arrival) activateLater() {
	c := a.d.cfg
	retry := green.Retry{Max: -1, First: c.RetryFirst, Limit: c.RetryLimit}
	green.SpawnN(a.d.life(), func(ctx context.Context) error {
		ctx, cancel := within(a.logged(ctx), c.CleanTimeout, "activating ports")
		defer cancel()
		_, err := green.RetryCall(ctx, retry, func(ctx context.Context) (struct{}, error) {
			if dom, err := a.look(ctx); err != nil || dom.State == "" {
				return struct{}{}, err
			}
			return struct{}{}, a.d.ports.Plugger.Activate(ctx, a.instance, a.record().ports())
		})
		if err != nil {
			logkit.From(ctx).Error("the ports of an arrived guest are given up", logkit.Err(err))
		}
		return nil
	})
}

func (a *arrival) own(ctx context.Context) error {
	retry := green.Retry{Max: journalTries - 1, First: a.d.cfg.RetryFirst, Limit: a.d.cfg.RetryLimit}
	rec := a.record()
	rec.Committed = true // with the instance's record, in one transaction
	_, err := green.RetryCall(ctx, retry, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, a.d.ports.Owner.Own(ctx, rec)
	})
	return causeOf(ctx, err)
}

// goOn ends the pause by which the source let the migration end. A hypervisor may have
// done that already, when it resumed the guest here.
func (a *arrival) goOn(ctx context.Context) error {
	dom, err := a.look(ctx)
	if err != nil || SightOf(dom, nil) != SightPaused {
		return err
	}
	ctx, cancel := within(ctx, a.d.cfg.HypervisorWait, "the hypervisor's answer")
	defer cancel()
	return causeOf(ctx, a.d.ports.Hypervisor.Unpause(ctx, a.instance))
}

// arm makes the claim run out after d.
func (a *arrival) arm(d time.Duration) {
	a.disarm()
	a.timer = green.SpawnAfter(a.d.life(), d, func(ctx context.Context) (struct{}, error) {
		a.expire(a.logged(ctx))
		return struct{}{}, nil
	})
}

func (a *arrival) disarm() {
	if a.timer != nil {
		a.timer.Cancel(nil)
		a.timer = nil
	}
}

// expire looks after a claim whose guest has not come: it commits what came unseen,
// asks the source, and undoes what nobody wants any more.
func (a *arrival) expire(ctx context.Context) {
	if a.lock(ctx) != nil {
		return // stopping
	}
	defer a.unlock()
	rec := a.record()
	if rec.Ended() {
		return
	}
	a.arm(a.d.cfg.ClaimTimeout) //nolint:contextcheck // the claim outlives the request
	a.again(ctx, a.expireOnce(ctx, rec))
}

func (a *arrival) expireOnce(ctx context.Context, rec Record) error {
	dom, err := a.lookAndCommit(ctx, false)
	if err != nil || a.record().Ended() {
		return err
	}
	if rec.Undoing || a.cutShort {
		return a.undo(ctx, a.reached(), a.failed)
	}
	lost, why := a.lost(ctx, rec, dom)
	if !lost {
		return nil
	}
	logkit.From(ctx).Warn("a claim has run out and is undone", logkit.Err(why))
	return a.undo(ctx, a.reached(), why)
}

// lost reports whether a claim is not wanted any more. With a copy of the guest here
// only the source's word counts; without one its silence is enough, because a perform
// that came later would be refused for want of the claim.
func (a *arrival) lost(ctx context.Context, rec Record, dom virt.Domain) (bool, error) {
	limited, cancel := within(ctx, a.d.cfg.PeerTimeout, "asking "+rec.Migration.Source)
	defer cancel()
	m, err := a.d.ports.Peer.Show(limited, rec.Migration.Source, a.id)
	err = causeOf(limited, err)
	switch {
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case err == nil && (m.Status == instance.MigrationFailed || m.Status == instance.MigrationCancelled),
		err == nil && m.Status == instance.MigrationCompleted && dom.State == "": // it was here, and left again
		return true, fault.Newf(fault.Timeout, op, a.id, "the source says that the migration is %s", m.Status)
	case err == nil:
		if m.Status == instance.MigrationError && dom.State == "" { // it waits for people: its place is kept, others may pass
			a.releaseSlot()
		}
		return false, nil
	case fault.KindOf(err) == fault.NotFound:
		return dom.State == "", fault.Newf(fault.Timeout, op, a.id, "%s does not know this migration", rec.Migration.Source)
	default:
		return dom.State == "", errors.Join(fault.Newf(fault.Timeout, op, a.id, "no guest came within %v and the source does not answer", a.d.cfg.ClaimTimeout), err)
	}
}
