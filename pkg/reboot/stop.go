package reboot

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Stop powers the guest off. A clean stop asks it first, at 0, 10, 20, … seconds
// (ShutdownRetryInterval), until it is off or ShutdownTimeout is over; a guest that
// can't answer is not waited for. Then its power is taken in any case. A guest that
// is off, or gone, is success.
//
// When ctx ends its cause is returned at once and the guest stays as it is.
func (r *Rebooter) Stop(ctx context.Context, id string, clean bool) error {
	if clean && r.cfg.ShutdownTimeout > 0 {
		w := r.watch(id)
		defer w.cancel()
		end, err := r.goOff(ctx, w, r.cfg.ShutdownTimeout, &asker{every: r.cfg.ShutdownRetryInterval}, judgeStop)
		if err != nil {
			return err
		}
		if end.sight != off {
			logkit.From(ctx).Info("a clean stop becomes a power off", logkit.Instance.Of(id), logkit.Key("reason").Of(end.reason))
		}
	}
	err := r.run(ctx, id, phase{name: "destroy", patient: true, do: func(ctx context.Context) error { return r.destroy(ctx, id) }})
	return outcome(ctx, fault.Wrap(err, "stop", id))
}
