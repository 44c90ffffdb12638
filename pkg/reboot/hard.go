package reboot

import (
	"context"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Hard takes the guest's power, wires its ports anew, defines it from the record
// and starts it: the only reboot that repairs a guest's network and definition. A
// domain that is gone, or vanishes on the way, is defined again. The whole takes
// at most HardRebootTimeout.
//
// beforeID and the end of ctx are as for Soft.
func (r *Rebooter) Hard(ctx context.Context, d virt.Definition, beforeID int) (Result, error) {
	begin := time.Now()
	w := r.watch(d.Spec.UUID)
	defer w.cancel()
	happened, err := r.hard(ctx, w, d, beforeID)
	if err != nil {
		return Result{}, err
	}
	reason := "asked for"
	if happened {
		reason = "the guest runs under a new id: the reboot had happened already"
	}
	return Result{Type: Hard, Reason: reason, Took: time.Since(begin)}, nil
}

// phase is one step of a hard reboot. A phase that is patient is tried again as often as Config says.
type phase struct {
	name    string
	patient bool
	do      func(ctx context.Context) error
}

/*
The phases of a hard reboot; each may be done again by a task that is resumed.

	destroy ──▶ unplug ──▶ plug ──▶ start: define, start, wait until it runs
	  ▲  │        │                  ▲  │
	  └──┘        └ errors are       └──┘ vanished, off, refused:
	 patient        logged only          patient

Nothing is undone: a guest that can't be started stays off, defined and wired as
far as it came, and the next hard reboot begins anew.
*/
func (r *Rebooter) phases(w *watch, d virt.Definition) []phase {
	id, ports := d.Spec.UUID, d.Spec.Ports
	return []phase{
		{name: "destroy", patient: true, do: func(ctx context.Context) error { return r.destroy(ctx, id) }},
		{name: "unplug", do: func(ctx context.Context) error {
			if err := r.plugger.Unplug(ctx, id, ports); err != nil && ctx.Err() == nil {
				logkit.From(ctx).Warn("a port can't be unplugged before the reboot; plugging mends it", logkit.Instance.Of(id), logkit.Err(err))
			}
			return nil
		}},
		{name: "plug", do: func(ctx context.Context) error { return r.plugger.Plug(ctx, id, ports) }},
		{name: "start", patient: true, do: func(ctx context.Context) error {
			if err := r.define(ctx, d); err != nil {
				return err
			}
			return r.launch(ctx, w)
		}},
	}
}

// hard runs the phases, unless the guest runs under another id than before: then the reboot has happened.
func (r *Rebooter) hard(ctx context.Context, w *watch, d virt.Definition, beforeID int) (happened bool, err error) {
	id := d.Spec.UUID
	ctx, cancel := context.WithTimeoutCause(ctx, r.cfg.HardRebootTimeout,
		fault.Newf(fault.Timeout, "reboot", id, "the hard reboot was not over after %s", r.cfg.HardRebootTimeout).
			WithHint("look at the guest with `compute-agent instance show %s`; hard_reboot_timeout bounds this", id))
	defer cancel()
	seen, err := r.lookup(ctx, id)
	switch {
	case errors.Is(err, fault.NotFound): // it is defined again
	case err != nil:
		return false, outcome(ctx, fault.Wrap(err, "reboot", id))
	case seen.State == virt.Running && seen.Active() && seen.ID != beforeID:
		return true, nil
	}
	for _, p := range r.phases(w, d) {
		begin := time.Now()
		if err := r.run(ctx, id, p); err != nil {
			return false, outcome(ctx, fault.Wrap(err, "reboot: "+p.name, id))
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		logkit.From(ctx).Debug("a phase of the hard reboot is done", logkit.Instance.Of(id), logkit.Phase.Of(p.name), logkit.Took.Of(time.Since(begin)))
	}
	return false, nil
}

// run does a phase, again if it is patient and another try may help.
func (r *Rebooter) run(ctx context.Context, id string, p phase) error {
	retry := green.Retry{
		First: r.cfg.RetryFirst, Limit: 10 * r.cfg.RetryFirst, Retryable: worthAnother,
		OnRetry: func(try int, err error, _ time.Duration) {
			logkit.From(ctx).Warn("will be tried again", logkit.Instance.Of(id), logkit.Phase.Of(p.name), logkit.Key("try").Of(try), logkit.Err(err))
		},
	}
	if p.patient {
		retry.Max = r.cfg.MaxRetry
	}
	_, err := green.RetryCall(ctx, retry, func(ctx context.Context) (struct{}, error) { return struct{}{}, p.do(ctx) })
	return err
}

// worthAnother tells which errors another try may mend.
func worthAnother(err error) bool {
	switch fault.KindOf(err) {
	case fault.InvalidArgument, fault.Unauthorized, fault.PreconditionFailed, fault.UnsupportedMethod, fault.UnsupportedVersion,
		fault.Expired, fault.Cancelled:
		return false
	case fault.NotFound, fault.Conflict, fault.Busy, fault.Timeout, fault.Unavailable, fault.Internal:
		return true
	default:
		return true
	}
}

func (r *Rebooter) lookup(ctx context.Context, id string) (virt.Domain, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	return r.machine.Lookup(ctx, id)
}

func (r *Rebooter) define(ctx context.Context, d virt.Definition) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	return r.machine.Define(ctx, d)
}

// destroy takes the guest's power; one that is gone has none.
func (r *Rebooter) destroy(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.DestroyTimeout)
	defer cancel()
	if err := r.machine.Destroy(ctx, id); !errors.Is(err, fault.NotFound) {
		return err
	}
	return nil
}
