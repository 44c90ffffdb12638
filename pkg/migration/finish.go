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

// confirm asks the destination until it answers that it owns the guest. Silence is
// waited out (PostTimeout); an answer that it does not own only for SettleTimeout:
// then nobody owns it, and people decide.
func (r *run) confirm(ctx context.Context) error {
	r.releaseSlot()
	c, since := r.s.cfg, time.Now()
	var denied time.Time // since when the answer is no
	var silence logkit.Repeated
	for pause := time.Duration(0); ; {
		res, err := r.post(ctx, true)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil && res.Owned:
			r.noteDowntime(res)
			return nil
		case r.record().Resolved == VerdictCompleted:
			logkit.From(ctx).Warn("the destination does not say that it owns the guest; a person has decided so", logkit.Err(err))
			return nil
		case err != nil:
			denied = time.Time{}
			silence.Warn(ctx, "the destination has not answered yet that it owns the guest", err)
		case denied.IsZero():
			denied = time.Now()
		}
		if !denied.IsZero() && time.Since(denied) > c.SettleTimeout {
			return errors.Join(errUnknown, fault.Newf(fault.Conflict, op, r.id,
				"the guest left, but %s does not own it; there it is %q (%s)", r.record().Migration.Dest, res.State, res.Reason))
		}
		if time.Since(since) > c.PostTimeout {
			return errors.Join(errUnknown, fault.Wrap(err, op, r.id))
		}
		pause = min(pause+c.RetryFirst, c.RetryLimit)
		if err := green.Sleep(ctx, pause); err != nil {
			return causeOf(ctx, err)
		}
	}
}

// post asks the destination once whether it owns the guest.
func (r *run) post(ctx context.Context, ended bool) (api.OwnedResult, error) {
	rec := r.record()
	ctx, cancel := within(ctx, r.s.cfg.PeerTimeout, "post_live_migration_at_destination on "+rec.Migration.Dest)
	defer cancel()
	res, err := r.s.ports.Peer.Post(ctx, rec.Migration.Dest, rec.ref(ended))
	return res, causeOf(ctx, err)
}

// noteDowntime keeps what the destination measured, for a source whose own
// statistics went with the domain.
func (r *run) noteDowntime(res api.OwnedResult) {
	if res.DowntimeMS == 0 {
		return
	}
	r.note(func(rec *Record) {
		var known instance.Result
		if rec.Migration.Result != nil {
			known = *rec.Migration.Result
		}
		known.DowntimeMS = res.DowntimeMS
		rec.Migration.Result = &known
	})
}

// clean removes what stayed behind, now that the destination owns the guest. A copy
// that stands still here is destroyed. A guest that came back is no leftover: an agent
// that died while it cleaned up may find it here when it is started again, and nothing
// of it is touched.
func (r *run) clean(ctx context.Context) error {
	hv, rec := r.s.ports.Hypervisor, r.record()
	back := false
	look := func(ctx context.Context) (err error) { back, err = r.cameBack(ctx); return err }
	if err := r.stubbornly(ctx, look); err != nil {
		return fault.Wrap(err, op, r.instance)
	}
	if back {
		logkit.From(ctx).Info("the guest has come back meanwhile: nothing of it is removed")
		return fault.Wrap(r.stubbornly(ctx, func(ctx context.Context) error { return r.s.ports.Owner.Disown(ctx, rec) }), op, r.instance)
	}
	for _, do := range []func(context.Context) error{
		r.dropCopy,
		func(ctx context.Context) error { return r.s.ports.Plugger.Unplug(ctx, r.instance, rec.ports()) },
		func(ctx context.Context) error { return hv.RemoveDisks(ctx, rec.here(), targetsOf(rec.Copies)) },
		func(ctx context.Context) error { return hv.Undefine(ctx, r.instance, !rec.KeepFolder) },
		func(ctx context.Context) error { return r.s.ports.Owner.Disown(ctx, rec) },
	} {
		if err := r.stubbornly(ctx, do); err != nil {
			return fault.Wrap(err, op, r.instance)
		}
	}
	return nil
}

// cameBack reports whether the domain here is of a later life of the guest than the one
// that this migration took away: a later migration brought it back. Its generation says
// so from its birth, for it came in its definition.
func (r *run) cameBack(ctx context.Context) (bool, error) {
	d, err := r.look(ctx)
	if fault.KindOf(err) == fault.NotFound {
		return false, nil
	}
	return err == nil && d.Generation >= r.record().Migration.Generation, err
}

// dropCopy destroys a paused leftover of a guest that is owned elsewhere.
func (r *run) dropCopy(ctx context.Context) error {
	d, err := r.look(ctx)
	switch SightOf(d, err) {
	case SightRunning:
		if err := r.fence(ctx); err != nil {
			return err
		}
		return fault.New(fault.Conflict, op, r.instance, "a copy of the guest was stopped here; it is removed next")
	case SightMoving, SightPaused, SightPostCopy, SightLost:
		logkit.From(ctx).Warn("a copy of the guest stands still here and is removed: " + string(d.State) + " (" + string(d.Reason) + ")")
		return r.s.ports.Hypervisor.Destroy(ctx, r.instance)
	case SightAbsent, SightOff, SightLeft:
		return nil
	case SightUnknown:
		return err
	}
	return err
}

// fence pauses the copy of the guest that runs here although the destination has
// committed. libvirt makes such a twin when the reply of its finishing step is lost: its
// source takes silence for failure and resumes.
//
// Could this ever stop the only copy that runs? All of this must hold:
//
//   - the destination answers that it owns the guest. It says so of a guest only that its
//     hypervisor has resumed ([Committed]), after that is in its journal, and never takes
//     it back. So the copy here forked at the switch-over, its time is over, and it must
//     not write to disks that are the other's;
//   - the copy here is of the generation before the migration. A guest that was owned there
//     and came back has a later one: it is not touched;
//   - and the owner's guest lives: it runs or is paused; or it went off in good order; or
//     it has moved on or was deleted, as the destination's records say. Then a copy here is
//     wanted by nobody.
//
// The answer may be as old as the question ([Config.PeerTimeout]), and the owner's guest
// may crash meanwhile. The copy here is stale then all the same: what the owner's wrote
// since is not in its memory. A destination whose guest is known to have crashed, or was
// lost in post-copy, is no reason to stop anything: that is for people to decide.
func (r *run) fence(ctx context.Context) error {
	d, err := r.look(ctx)
	if err != nil || SightOf(d, nil) != SightRunning {
		return err
	}
	res, err := r.post(ctx, false)
	if err != nil {
		return err
	}
	rec := r.record()
	if !res.Owned || !lives(res) || d.Generation >= rec.Migration.Generation {
		return errors.Join(errUnknown, fault.New(fault.Conflict, op, r.instance, "the guest runs on both hosts"))
	}
	logkit.From(ctx).Error("the guest runs here and the destination owns it: the copy here is stopped")
	ctx, cancel := within(ctx, r.s.cfg.HypervisorWait, "stopping the copy of the guest")
	defer cancel()
	return fault.Wrap(causeOf(ctx, r.s.ports.Hypervisor.Pause(ctx, r.instance)), op, r.instance)
}

// lives reports whether the owner's guest is well, as far as a copy elsewhere is concerned.
func lives(res api.OwnedResult) bool {
	if res.Superseded {
		return true
	}
	d := virt.Domain{State: virt.State(res.State), Reason: virt.Reason(res.Reason)}
	switch SightOf(d, nil) {
	case SightRunning:
		return d.State != virt.Crashed
	case SightPaused:
		return true
	case SightOff:
		return d.Reason == virt.ReasonShutdown || d.Reason == virt.ReasonDestroyed || d.Reason == virt.ReasonSaved
	case SightUnknown, SightAbsent, SightLeft, SightMoving, SightPostCopy, SightLost:
	}
	return false
}

// stubbornly repeats what must be done until it is.
func (r *run) stubbornly(ctx context.Context, do func(context.Context) error) error {
	var trouble logkit.Repeated
	retry := green.Retry{
		Max: -1, First: r.s.cfg.RetryFirst, Limit: r.s.cfg.RetryLimit,
		Retryable: func(err error) bool { return !errors.Is(err, errUnknown) },
		OnRetry: func(_ int, err error, _ time.Duration) {
			trouble.Warn(ctx, "cleaning up after the migration is tried again", err)
		},
	}
	_, err := green.RetryCall(ctx, retry, func(ctx context.Context) (struct{}, error) { return struct{}{}, do(ctx) })
	return causeOf(ctx, err)
}

// eventGrace is how long after the end of the hypervisor's call its completed event may
// still come; they are told on different ways.
const eventGrace = 50 * time.Millisecond

// settle gathers the facts of both hosts until they say how the job ended, or that it
// still runs. What stays unclear for SettleTimeout is unknown.
func (r *run) settle(ctx context.Context, w *worker) (v Verdict, running bool, err error) {
	c := r.s.cfg
	ctx, cancel := within(ctx, c.SettleTimeout, "finding out how the migration ended")
	defer cancel()
	var doubt logkit.Repeated
	for pause := time.Duration(0); ; {
		running, facts := r.sourceFacts(ctx, w)
		if running {
			return VerdictNone, true, nil
		}
		if Outcome(facts) == VerdictCompleted { // nothing that the destination says can change it
			return VerdictCompleted, false, nil
		}
		if pause == 0 && facts.Job == JobNone { // the call has failed, its event may be a moment behind
			pause = eventGrace
			if green.Sleep(ctx, pause) == nil {
				continue
			}
		}
		var why error
		facts, why = r.destFacts(ctx, facts)
		v := r.judge(facts)
		if v != VerdictUnknown {
			return v, false, nil
		}
		if facts.Owned {
			why = errors.Join(why, r.keepOwned(ctx))
		}
		if facts.Source == SightRunning && facts.Owned {
			why = errors.Join(why, r.fence(ctx))
		}
		why = errors.Join(why, r.unclear(facts))
		doubt.Warn(ctx, "it is not clear yet how the migration ended; both hosts are asked again", why)
		pause = min(pause+c.RetryFirst, c.RetryLimit)
		if green.Sleep(ctx, pause) != nil {
			return VerdictUnknown, false, errors.Join(errUnknown, why)
		}
	}
}

// unclear says what is known of a migration whose end is not.
func (r *run) unclear(f Facts) error {
	return fault.Newf(fault.Internal, op, r.id, "on %s the guest is %s, on %s %s (owned: %t), its job %s",
		r.s.cfg.Host, f.Source, r.record().Migration.Dest, f.Dest, f.Owned, f.Job)
}

// sourceFacts looks at this host. The destination counts as not asked.
func (r *run) sourceFacts(ctx context.Context, w *worker) (running bool, f Facts) {
	f = Facts{Source: SightUnknown, Dest: SightUnknown, PostCopy: r.record().PostCopy}
	d, err := r.look(ctx)
	f.Source = SightOf(d, err)
	if running, err = r.jobRuns(ctx, new(virt.Job)); running {
		return true, f
	}
	if err != nil { // without that answer a guest that runs here may still be leaving
		f.Source = SightUnknown
	}
	switch j := r.completedJob(); {
	case j != nil && j.Type != JobNone:
		f.Job = j.Type
	case w != nil && w.succeeded():
		f.Job = JobCompleted
	}
	return false, f
}

// keepOwned journals that the destination has said that it owns the guest.
func (r *run) keepOwned(ctx context.Context) error {
	if r.record().OwnedThere {
		return nil
	}
	return r.save(ctx, func(rec *Record) { rec.OwnedThere = true })
}

// judge is Outcome, and calls a failure by the name of the abort that was asked for. That
// alone is no fact about the job: it may have been over when the abort came. What the
// destination has said once it never takes back: while it is silent the guest did not stay.
func (r *run) judge(f Facts) Verdict {
	v := Outcome(f)
	if (v == VerdictFailed || v == VerdictCancelled) && f.Dest == SightUnknown && r.record().OwnedThere {
		return VerdictUnknown
	}
	if v == VerdictFailed && r.abortAsked() {
		return VerdictCancelled
	}
	return v
}

// destFacts adds what the destination sees.
func (r *run) destFacts(ctx context.Context, f Facts) (Facts, error) {
	res, err := r.post(ctx, false)
	if err != nil {
		return f, err
	}
	f.Owned, f.Superseded, f.Dest = res.Owned, res.Owned && res.Superseded, sightIn(res)
	return f, nil
}

// whyFailed joins what both hosts say of a job that did not bring the guest over.
func (r *run) whyFailed(ctx context.Context, v Verdict, w *worker) error {
	if v == VerdictCancelled {
		return r.aborted()
	}
	rec := r.record()
	errs := []error{fault.New(fault.Internal, op, r.id, "the guest did not reach "+rec.Migration.Dest+"; it is still here")}
	if w != nil {
		errs = append(errs, w.err())
	}
	if j := r.completedJob(); j != nil && j.Error != "" {
		errs = append(errs, errors.New(j.Error))
	}
	ctx, cancel := within(ctx, r.s.cfg.HypervisorWait, "asking "+rec.Migration.Dest+" for its error")
	defer cancel()
	if m, err := r.s.ports.Peer.Show(ctx, rec.Migration.Dest, r.id); err == nil && m.Fault != nil {
		errs = append(errs, fault.Wrap(m.Fault, "", rec.Migration.Dest))
	}
	return errors.Join(errs...)
}
