package libvirt

import (
	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/virt"
)

// states maps virDomainState. Blocked is a running guest that waits for the host.
var states = map[golibvirt.DomainState]virt.State{
	golibvirt.DomainNostate:     virt.NoState,
	golibvirt.DomainRunning:     virt.Running,
	golibvirt.DomainBlocked:     virt.Running,
	golibvirt.DomainPaused:      virt.Paused,
	golibvirt.DomainShutdown:    virt.ShuttingDown,
	golibvirt.DomainShutoff:     virt.Shutoff,
	golibvirt.DomainCrashed:     virt.Crashed,
	golibvirt.DomainPmsuspended: virt.PMSuspended,
}

// The reasons of each state, by libvirt's numbers (libvirt-domain.h). Those that
// package virt has no name for keep libvirt's own.
var (
	runningReasons = []virt.Reason{
		virt.ReasonUnknown, virt.ReasonBooted, virt.ReasonMigrated, "restored", "from_snapshot", virt.ReasonUnpaused,
		virt.ReasonCanceled, "save_canceled", "wakeup", virt.ReasonCrashed, virt.ReasonPostCopy, virt.ReasonPostCopyFailed,
	}
	pausedReasons = []virt.Reason{
		virt.ReasonUnknown, virt.ReasonUser, virt.ReasonMigrating, "save", "dump", "ioerror", "watchdog", "from_snapshot",
		"shutting_down", "snapshot", virt.ReasonCrashed, virt.ReasonStarting, virt.ReasonPostCopy, virt.ReasonPostCopyFailed, "api_error",
	}
	shutoffReasons = []virt.Reason{
		virt.ReasonUnknown, virt.ReasonShutdown, virt.ReasonDestroyed, virt.ReasonCrashed, virt.ReasonMigrated,
		virt.ReasonSaved, virt.ReasonFailed, "from_snapshot", "daemon",
	}
	shutdownReasons = []virt.Reason{virt.ReasonUnknown, virt.ReasonUser}
	crashedReasons  = []virt.Reason{virt.ReasonUnknown, "panicked"}
)

// stateOf translates what DomainGetState answers.
func stateOf(state, reason int32) (virt.State, virt.Reason) {
	s, ok := states[golibvirt.DomainState(state)]
	if !ok {
		return virt.NoState, virt.ReasonUnknown
	}
	reasons := map[virt.State][]virt.Reason{ //nolint:exhaustive // the others have no reasons
		virt.Running: runningReasons, virt.Paused: pausedReasons, virt.Shutoff: shutoffReasons,
		virt.ShuttingDown: shutdownReasons, virt.Crashed: crashedReasons,
	}
	return s, at(reasons[s], reason)
}

func at(names []virt.Reason, i int32) virt.Reason {
	if i < 0 || int(i) >= len(names) {
		return virt.ReasonUnknown
	}
	return names[i]
}

// lifecycles maps virDomainEventType with its details.
var lifecycles = []struct {
	kind    virt.EventKind
	reasons []virt.Reason
}{
	golibvirt.DomainEventDefined:   {virt.EventDefined, []virt.Reason{"added", "updated", "renamed", "from_snapshot"}},
	golibvirt.DomainEventUndefined: {virt.EventUndefined, []virt.Reason{"removed", "renamed"}},
	golibvirt.DomainEventStarted:   {virt.EventStarted, []virt.Reason{virt.ReasonBooted, virt.ReasonMigrated, "restored", "from_snapshot", "wakeup", "recreated"}},
	golibvirt.DomainEventSuspended: {virt.EventSuspended, []virt.Reason{
		virt.ReasonUser, virt.ReasonMigrated, "ioerror", "watchdog", "restored", "from_snapshot", "api_error", virt.ReasonPostCopy, virt.ReasonPostCopyFailed,
	}},
	golibvirt.DomainEventResumed: {virt.EventResumed, []virt.Reason{
		virt.ReasonUnpaused, virt.ReasonMigrated, "from_snapshot", virt.ReasonPostCopy, virt.ReasonPostCopyFailed,
	}},
	golibvirt.DomainEventStopped: {virt.EventStopped, []virt.Reason{
		virt.ReasonShutdown, virt.ReasonDestroyed, virt.ReasonCrashed, virt.ReasonMigrated, virt.ReasonSaved, virt.ReasonFailed, "from_snapshot", "recreated",
	}},
	golibvirt.DomainEventShutdown:    {virt.EventShutdown, []virt.Reason{"finished", "guest", "host"}},
	golibvirt.DomainEventPmsuspended: {virt.EventPMSuspended, []virt.Reason{"memory", "disk"}},
	golibvirt.DomainEventCrashed:     {virt.EventCrashed, []virt.Reason{"panicked", "crashloaded"}},
}

// lifecycle translates one lifecycle event; ok is false for a kind unknown here.
func lifecycle(kind, detail int32) (k virt.EventKind, why virt.Reason, ok bool) {
	if kind < 0 || int(kind) >= len(lifecycles) {
		return "", "", false
	}
	l := lifecycles[kind]
	return l.kind, at(l.reasons, detail), true
}
