package migration

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// stillPreparing is when a destination that prepares is first asked whether it still
// does; the next pauses double, up to Config.PeerTimeout.
const stillPreparing = 5 * time.Second

// sourceTable is the source's phase table (design section 7). Up to perform every
// step has its undo; behind it the guest is the destination's.
func sourceTable() []step[*run] {
	return []step[*run]{
		{name: PhaseAccept, status: instance.MigrationAccepted, do: func(*run, context.Context) error { return nil }},
		{name: PhaseQueue, status: instance.MigrationQueued, quiet: true, do: abortable((*run).queue), undo: (*run).unqueue},
		{name: PhaseCheck, status: instance.MigrationPreparing, quiet: true, do: abortable(apart((*run).check)), undo: (*run).letStand},
		{name: PhasePrepare, status: instance.MigrationPreparing, do: abortable(apart((*run).prepare)), undo: (*run).rollback},
		{name: PhasePerform, status: instance.MigrationRunning, do: (*run).perform, undo: (*run).stopJob},
		{name: PhaseSwitch, status: instance.MigrationPost, do: (*run).confirm},
		{name: PhaseClean, status: instance.MigrationPost, do: (*run).clean, limit: func(c Config) time.Duration { return c.CleanTimeout }},
	}
}

// apart is a step that is done aside.
func apart(do func(*run, context.Context) error) func(*run, context.Context) error {
	return func(r *run, ctx context.Context) error {
		return aside(ctx, func(ctx context.Context) error { return do(r, ctx) })
	}
}

// queue waits for an outbound slot.
func (r *run) queue(ctx context.Context) error {
	drain := r.record().Args.Priority == api.PriorityDrain
	if err := r.s.slots.acquire(ctx, drain); err != nil {
		return err
	}
	r.takeSlot()
	return nil
}

func (r *run) unqueue(context.Context) error {
	r.releaseSlot()
	return nil
}

// look asks the hypervisor for the guest, bounded.
func (r *run) look(ctx context.Context) (virt.Domain, error) {
	ctx, cancel := within(ctx, r.s.cfg.HypervisorWait, "the hypervisor's answer")
	defer cancel()
	d, err := r.s.ports.Hypervisor.Lookup(ctx, r.instance)
	return d, causeOf(ctx, err)
}

// examine lists what on this host is against the migration; found writes down how the
// guest and its disks stand before anything is done to them.
func (r *run) examine(ctx context.Context) (found func(Record) Record, reasons []string, err error) {
	rec := r.record()
	if rec.Migration.Dest == r.s.cfg.Host {
		reasons = append(reasons, "the destination is the host on which the instance already is")
	}
	d, err := r.look(ctx)
	switch sight := SightOf(d, err); {
	case sight == SightUnknown && err != nil:
		return nil, nil, fault.Wrap(err, op, r.instance)
	case sight == SightAbsent:
		reasons = append(reasons, "the hypervisor does not know the instance")
	case d.State != virt.Running && d.State != virt.Paused:
		reasons = append(reasons, "the instance does not run: it is "+string(d.State))
	}
	leaving, err := r.leaving(ctx)
	if err != nil {
		return nil, nil, err
	}
	reasons = merge(reasons, leaving.Reasons)
	storage, err := r.storage(ctx)
	return func(rec Record) Record {
		rec.WasPaused = d.State == virt.Paused
		rec.Instance.PowerState = d.Power()
		rec.Storage, rec.CPU, rec.Cached = storage, leaving.CPU, leaving.Cached
		return rec
	}, reasons, err
}

// leaving asks the hypervisor whether it could send the guest as asked, bounded.
func (r *run) leaving(ctx context.Context) (virt.Leaving, error) {
	ctx, cancel := within(ctx, r.s.cfg.HypervisorWait, "the hypervisor's answer")
	defer cancel()
	l, err := r.s.ports.Hypervisor.CheckLeaving(ctx, r.request())
	return l, fault.Wrap(causeOf(ctx, err), op, r.instance)
}

// storage asks the hypervisor for the guest's disks, bounded.
func (r *run) storage(ctx context.Context) (instance.StorageFacts, error) {
	ctx, cancel := within(ctx, r.s.cfg.HypervisorWait, "the hypervisor's answer")
	defer cancel()
	facts, err := r.s.ports.Hypervisor.Storage(ctx, r.record().here())
	return facts, fault.Wrap(causeOf(ctx, err), op, r.instance)
}

// weigh adds the destination's answer: its reasons, and what becomes of the disks.
func (r Record) weigh(res api.CheckResult, reasons []string) (Record, []string) {
	plan := planDisks(r.Instance.Spec, r.Storage, res.Storage)
	r.Copies, r.KeepFolder, r.Shared = plan.Copies, plan.InFolder, plan.Shared
	reasons = merge(r.bySpeaker(reasons, res.Reasons), plan.reasons(r.Instance.Spec, r.Args.BlockMigration))
	return r, merge(reasons, plan.stale(r.Cached))
}

// check asks both hosts for every reason against the migration, and notes how the
// guest stands, so that it can be let stand so again.
func (r *run) check(ctx context.Context) error {
	found, reasons, err := r.examine(ctx)
	if err != nil {
		return err
	}
	r.note(func(rec *Record) { *rec = found(*rec) })
	rec := r.record()
	if rec.Migration.Dest == r.s.cfg.Host {
		return refusal(r.instance, rec.bySpeaker(reasons, nil))
	}
	res, err := patiently(ctx, r.s.cfg, func(ctx context.Context) (api.CheckResult, error) {
		ctx, cancel := within(ctx, r.s.cfg.CheckTimeout, "the destination's check")
		defer cancel()
		res, err := r.s.ports.Peer.Check(ctx, rec.Migration.Dest, r.peerArgs())
		return res, causeOf(ctx, err)
	})
	switch {
	case err != nil && len(reasons) == 0:
		return fault.Wrap(err, op, rec.Migration.Dest)
	case err != nil:
		reasons = append(rec.bySpeaker(reasons, nil), "the destination could not be asked: "+err.Error())
	default:
		r.note(func(rec *Record) { *rec, reasons = rec.weigh(res, reasons) })
	}
	return refusal(r.instance, reasons)
}

// refusal makes an error of the reasons; nil without any.
func refusal(subject string, reasons []string) error {
	if len(reasons) == 0 {
		return nil
	}
	message := "the migration can't be done: " + strings.Join(reasons, "; ")
	return fault.New(fault.PreconditionFailed, op, subject, message).WithDetail("reasons", reasons)
}

// patiently comes back to a destination that is busy: after RetryFirst, then after twice
// as long each time, but no later than it said, for a slot may be free sooner than it can
// know. It does so for Config.BusyTimeout at most; the last answer is the error then. An
// abort ends the wait at once.
func patiently[T any](ctx context.Context, c Config, ask func(context.Context) (T, error)) (T, error) {
	since := time.Now()
	for patience := c.RetryFirst; ; patience *= 2 {
		v, err := ask(ctx)
		if fault.KindOf(err) != fault.Busy {
			return v, err
		}
		patience = min(patience, retryAfter(err, c.RetryLimit))
		if time.Since(since)+patience > c.BusyTimeout {
			return v, err
		}
		if err := green.Sleep(ctx, patience); err != nil {
			return v, causeOf(ctx, err)
		}
	}
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

// prepare lets the destination make itself ready.
func (r *run) prepare(ctx context.Context) error {
	dest := r.record().Migration.Dest
	res, err := patiently(ctx, r.s.cfg, func(ctx context.Context) (api.PreparedResult, error) {
		ctx, cancel := within(ctx, r.s.cfg.PrepareTimeout, "pre_live_migration on "+dest)
		defer cancel()
		res, err := r.askPrepare(ctx, dest)
		return res, causeOf(ctx, err)
	})
	if err != nil {
		return fault.Wrap(err, op, dest)
	}
	r.note(func(rec *Record) { rec.Inbound = inboundOf(res) })
	return nil
}

// askPrepare asks the destination to prepare, and while it does asks whether it still
// does: an agent that was restarted meanwhile will never answer that call.
func (r *run) askPrepare(ctx context.Context, dest string) (api.PreparedResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // of a call that is given up
	call := green.Spawn(ctx, func(ctx context.Context) (api.PreparedResult, error) {
		return r.s.ports.Peer.Prepare(ctx, dest, r.peerArgs())
	})
	pause := stillPreparing
	for over := 0; over < 2; { // once more: the answer and the end may cross
		patience, enough := context.WithTimeout(ctx, pause)
		_, _ = call.Wait(patience) // what came of it is asked below
		enough()
		select {
		case <-call.Done(): // perhaps as the patience ended
			return call.Wait(context.WithoutCancel(ctx))
		case <-ctx.Done(): // the call ends with it
			return call.Wait(context.WithoutCancel(ctx))
		default:
		}
		if r.preparing(ctx, dest) {
			over, pause = 0, min(2*pause, max(r.s.cfg.PeerTimeout, stillPreparing))
		} else {
			over, pause = over+1, stillPreparing
		}
	}
	return api.PreparedResult{}, fault.New(fault.Unavailable, op, dest, "the destination's agent was restarted while it prepared").
		WithHint("start the migration again")
}

// preparing reports whether the destination may still be at it; silence proves nothing.
func (r *run) preparing(ctx context.Context, dest string) bool {
	ctx, cancel := within(ctx, r.s.cfg.PeerTimeout, "asking "+dest)
	defer cancel()
	m, err := r.s.ports.Peer.Show(ctx, dest, r.id)
	if err != nil {
		return fault.KindOf(err) != fault.NotFound
	}
	return !m.Status.Ended()
}

// inboundOf reads where the destination wants the guest sent.
func inboundOf(res api.PreparedResult) virt.Inbound {
	return virt.Inbound{URI: res.URI, MigrateURI: res.MigrateURI, TLSName: res.TLSName}
}

// rollback lets the destination undo what it made. It asks until it is answered, for
// RollbackTimeout at most; then the destination finds out by itself when its claim
// runs out. A destination where the guest runs refuses: then nothing is clear, and
// neither is it when one is silent that may have been told to let the guest run.
func (r *run) rollback(ctx context.Context) error {
	c, dest := r.s.cfg, r.record().Migration.Dest
	limited, cancel := within(ctx, c.RollbackTimeout, "rollback on "+dest)
	defer cancel()
	refused := func(err error) bool { return fault.KindOf(err) == fault.Conflict }
	retry := green.Retry{Max: -1, First: c.RetryFirst, Limit: c.RetryLimit, Retryable: func(err error) bool { return !refused(err) }}
	_, err := green.RetryCall(limited, retry, func(ctx context.Context) (struct{}, error) { return struct{}{}, r.rollbackOnce(ctx) })
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case refused(err) && r.record().Resolved == VerdictNone:
		return errors.Join(errUnknown, fault.Wrap(err, op, dest))
	case r.record().Resolved == VerdictNone && r.handedOver(ctx): // it may run there, and then it runs twice
		return errors.Join(errUnknown, fault.Wrap(err, op, dest))
	}
	logkit.From(ctx).Warn("the destination could not be told to undo; it will find out when its claim runs out", logkit.Err(err))
	return fault.Wrap(err, "rollback_live_migration_at_destination", dest)
}

// rollbackOnce asks the destination once.
func (r *run) rollbackOnce(ctx context.Context) error {
	ctx, cancel := within(ctx, r.s.cfg.PeerTimeout, "one rollback call")
	defer cancel()
	rec := r.record()
	if err := causeOf(ctx, r.s.ports.Peer.Rollback(ctx, rec.Migration.Dest, rec.ref(false))); err != nil {
		return err
	}
	r.note(func(rec *Record) { rec.RolledBack = true })
	return nil
}

// errUnconfirmed: the guest must not go on here yet, because it might run there.
var errUnconfirmed = errors.New("the guest stands still here, and the destination has not confirmed that it never ran there")

// letStand gives the guest back the state in which check found it. A guest that the
// migration stopped goes on only after the destination has answered that nothing of
// it is left there: it must not run twice. A destination that rollback could not reach is
// asked on, for SettleTimeout: somebody waits for the guest.
func (r *run) letStand(ctx context.Context) error {
	retry := green.Retry{Max: -1, First: r.s.cfg.RetryFirst, Limit: r.s.cfg.RetryLimit, Retryable: func(err error) bool { return !errors.Is(err, errUnknown) }}
	limited, cancel := within(ctx, r.s.cfg.SettleTimeout, "the hypervisor's answer")
	defer cancel()
	_, err := green.RetryCall(limited, retry, func(ctx context.Context) (struct{}, error) { return struct{}{}, r.standOnce(ctx) })
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errUnconfirmed):
		return errors.Join(errUnknown, fault.WrapAs(fault.Conflict, err, op, r.instance))
	}
	return err
}

func (r *run) standOnce(ctx context.Context) error {
	rec := r.record()
	d, err := r.look(ctx)
	sight := SightOf(d, err)
	stuck := sight == SightMoving || sight == SightPaused && rec.PausedByUs
	switch {
	case sight == SightUnknown:
		return fault.Wrap(err, op, r.instance)
	case !stuck || rec.WasPaused:
		return nil
	case !rec.RolledBack && rec.Resolved == VerdictNone:
		if err := r.rollbackOnce(ctx); fault.KindOf(err) == fault.Conflict {
			return errors.Join(errUnknown, fault.Wrap(err, op, rec.Migration.Dest))
		} else if err != nil {
			return errors.Join(errUnconfirmed, err)
		}
	}
	ctx, cancel := within(ctx, r.s.cfg.HypervisorWait, "the hypervisor's answer")
	defer cancel()
	return fault.Wrap(causeOf(ctx, r.s.ports.Hypervisor.Unpause(ctx, r.instance)), op, r.instance)
}

// stopJob undoes perform: no job of this guest may be left.
func (r *run) stopJob(ctx context.Context) error {
	retry := green.Retry{Max: -1, First: r.s.cfg.RetryFirst, Limit: r.s.cfg.RetryLimit, Retryable: func(error) bool { return true }}
	limited, cancel := within(ctx, r.s.cfg.SettleTimeout, "the end of the job")
	defer cancel()
	_, err := green.RetryCall(limited, retry, func(ctx context.Context) (struct{}, error) {
		running, err := r.jobRuns(ctx, new(virt.Job))
		if err != nil || !running {
			return struct{}{}, err
		}
		_ = r.abortJob(ctx) // whether it helped is seen at the next look
		return struct{}{}, fault.New(fault.Conflict, op, r.instance, "the job still runs")
	})
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil { // a job that can't be stopped may still end at the destination
		return errors.Join(errUnknown, err)
	}
	return nil
}

func (r *run) abortJob(ctx context.Context) error {
	ctx, cancel := within(ctx, r.s.cfg.HypervisorWait, "aborting the job")
	defer cancel()
	return causeOf(ctx, r.s.ports.Hypervisor.AbortJob(ctx, r.instance))
}

// jobRuns asks whether a job of the guest is under way, and reads it into j; a guest that
// is off or gone has none.
func (r *run) jobRuns(ctx context.Context, j *virt.Job) (bool, error) {
	ctx, cancel := within(ctx, r.s.cfg.HypervisorWait, theAnswer)
	defer cancel()
	return r.askForJob(ctx, j)
}

// theAnswer is what is waited for, where a hypervisor is asked.
const theAnswer = "the hypervisor's answer"

// askForJob is jobRuns as long as ctx lasts.
func (r *run) askForJob(ctx context.Context, j *virt.Job) (running bool, err error) {
	*j, err = r.s.ports.Hypervisor.Job(ctx, r.instance)
	if err == nil {
		return j.Type == JobUnbounded || j.Type == JobBounded, nil
	}
	err = causeOf(ctx, err)
	if kind := fault.KindOf(err); kind == fault.NotFound || kind == fault.Conflict {
		return false, nil
	}
	return false, fault.Wrap(err, op, r.instance)
}
