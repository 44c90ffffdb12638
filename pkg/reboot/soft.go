package reboot

import (
	"context"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Soft asks the guest to go off and starts it again. It asks by Config.Methods,
// the next one when the last was refused or ignored for MethodTimeout. A guest
// that can't answer (off, paused, gone) is rebooted hard at once, one that doesn't
// go off within WaitSoftReboot then: the Result says which it was, and why.
//
// beforeID is the domain id that the guest had when the task began, from Lookup
// and kept by the caller across restarts; -1 if it was off or not there. A guest
// that runs under another id has been rebooted already: success.
//
// When ctx ends its cause is returned at once and the guest stays as it is.
func (r *Rebooter) Soft(ctx context.Context, d virt.Definition, beforeID int) (Result, error) {
	begin := time.Now()
	w := r.watch(d.Spec.UUID)
	defer w.cancel()
	judgeSoft := func(seen virt.Domain) (sight, string) {
		saw, why := judge(seen, beforeID)
		if saw == waiting && seen.State == virt.Running && w.rebooted.Load() {
			return restarted, "the guest restarted itself"
		}
		return saw, why
	}
	end, err := r.goOff(ctx, w, r.cfg.WaitSoftReboot, &asker{chain: true, every: r.cfg.MethodTimeout}, judgeSoft)
	if err != nil {
		return Result{}, err
	}
	if end.sight == off {
		if err := r.launch(ctx, w); err != nil {
			end = ending{unable, "it went off and could not be started again: " + err.Error()}
		}
	}
	if ctx.Err() != nil {
		return Result{}, context.Cause(ctx)
	}
	if end.sight == off || end.sight == restarted {
		return Result{Type: Soft, Reason: end.reason, Took: time.Since(begin)}, nil
	}
	if end.sight == late {
		end.reason = "did not go off within " + max(r.cfg.WaitSoftReboot, 0).Round(time.Millisecond).String() + ": " + end.reason
	}
	return r.becomeHard(ctx, w, d, turn{beforeID: beforeID, begin: begin, reason: "soft was not possible: " + end.reason})
}

// turn is a soft reboot at the moment it becomes a hard one.
type turn struct {
	beforeID int
	begin    time.Time
	reason   string
}

// becomeHard does by force what could not be done softly.
func (r *Rebooter) becomeHard(ctx context.Context, w *watch, d virt.Definition, t turn) (Result, error) {
	logkit.From(ctx).Info("a soft reboot becomes a hard one", logkit.Instance.Of(d.Spec.UUID), logkit.Key("reason").Of(t.reason))
	happened, err := r.hard(ctx, w, d, t.beforeID)
	if err != nil {
		return Result{}, err
	}
	if happened {
		return Result{Type: Soft, Reason: "the guest was restarted at the last moment", Took: time.Since(t.begin)}, nil
	}
	return Result{Type: Hard, Reason: t.reason, Took: time.Since(t.begin)}, nil
}
