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
	begin, id := time.Now(), d.Spec.UUID
	w := r.watch(id)
	defer w.cancel()
	judgeSoft := func(seen virt.Domain) (sight, string) { return judge(seen, beforeID) }
	end, err := r.goOff(ctx, w, r.cfg.WaitSoftReboot, &asker{chain: true, every: r.cfg.MethodTimeout}, judgeSoft)
	if err != nil {
		return Result{}, err
	}
	switch end.sight {
	case restarted:
		return Result{Type: Soft, Reason: end.reason, Took: time.Since(begin)}, nil
	case off:
		err := r.launch(ctx, w)
		if err == nil {
			return Result{Type: Soft, Reason: end.reason, Took: time.Since(begin)}, nil
		}
		if ctx.Err() != nil {
			return Result{}, context.Cause(ctx)
		}
		end.reason = "it went off and could not be started again: " + err.Error()
	case late:
		end.reason = "the guest did not go off within " + r.cfg.WaitSoftReboot.String() + "; " + end.reason
	case unable:
		end.reason = "the guest could not be asked: " + end.reason
	case waiting: // not an end
	}
	logkit.From(ctx).Info("a soft reboot becomes a hard one", logkit.Instance.Of(id), logkit.Key("reason").Of(end.reason))
	happened, err := r.hard(ctx, w, d, beforeID)
	if err != nil {
		return Result{}, err
	}
	if happened {
		return Result{Type: Soft, Reason: "the guest was restarted at the last moment", Took: time.Since(begin)}, nil
	}
	return Result{Type: Hard, Reason: end.reason, Took: time.Since(begin)}, nil
}
