package instance

import "slices"

// VMState is what the owner of the server believes it has.
type VMState string

// The vm_states that this agent uses (nova.md section 0).
const (
	VMBuilding  VMState = "building"
	VMActive    VMState = "active"
	VMPaused    VMState = "paused"
	VMSuspended VMState = "suspended"
	VMStopped   VMState = "stopped"
	VMError     VMState = "error"
	VMDeleted   VMState = "deleted"
)

// TaskState says which operation holds the instance; empty: none.
type TaskState string

// The task_states that this agent uses (nova.md section 0).
const (
	TaskNone        TaskState = ""
	TaskSpawning    TaskState = "spawning"
	TaskPoweringOn  TaskState = "powering-on"
	TaskPoweringOff TaskState = "powering-off"
	TaskRebooting   TaskState = "rebooting"
	TaskRebootHard  TaskState = "rebooting_hard"
	TaskPausing     TaskState = "pausing"
	TaskUnpausing   TaskState = "unpausing"
	TaskSuspending  TaskState = "suspending"
	TaskResuming    TaskState = "resuming"
	TaskMigrating   TaskState = "migrating"
	TaskDeleting    TaskState = "deleting"
	TaskUpdating    TaskState = "updating" // a port is attached or detached; nova has no task state for it
)

// PowerState is what the hypervisor says right now.
type PowerState string

// The power_states, by nova's names.
const (
	PowerPending   PowerState = "pending" // no state: not known, or not there
	PowerRunning   PowerState = "running"
	PowerPaused    PowerState = "paused"
	PowerShutdown  PowerState = "shutdown"
	PowerCrashed   PowerState = "crashed"
	PowerSuspended PowerState = "suspended"
)

/*
The vm_state moves, drawn. A task state is set while an arrow is walked and
cleared at its end; a failed walk stays where it was, or ends in error when
nothing else can be said of the guest.

	            build                 pause
	(none) ──▶ building ──▶ active ◀─────────▶ paused
	               │         ▲  │  ◀─────────▶ suspended
	               │   start │  │ stop, guest went off
	               ▼         │  ▼
	             error ◀──── stopped            (every state) ── terminate ──▶ deleted
*/

// moves lists where each vm_state may go; a state may always stay, go to error
// and go to deleted.
var moves = map[VMState][]VMState{
	VMBuilding:  {VMActive, VMStopped},
	VMActive:    {VMPaused, VMSuspended, VMStopped},
	VMPaused:    {VMActive, VMStopped},
	VMSuspended: {VMActive, VMStopped},
	VMStopped:   {VMActive, VMPaused},
	VMError:     {VMActive, VMStopped, VMPaused, VMSuspended},
	VMDeleted:   {},
}

// CanMove reports whether a vm_state may change from one to the other. A deleted
// instance moves nowhere.
func CanMove(from, to VMState) bool {
	if from == to {
		return true
	}
	if from == VMDeleted {
		return false
	}
	if to == VMError || to == VMDeleted {
		return true
	}
	return slices.Contains(moves[from], to)
}

// VMStateOf derives the vm_state that fits what the hypervisor reports, for a
// guest that runs under no task. old decides where the power state does not.
func VMStateOf(p PowerState, old VMState) VMState {
	switch p {
	case PowerRunning:
		return VMActive
	case PowerPaused:
		return VMPaused
	case PowerSuspended:
		return VMSuspended
	case PowerShutdown, PowerCrashed:
		if old == VMSuspended { // a managed save looks like a guest that is off
			return VMSuspended
		}
		return VMStopped
	case PowerPending:
		return old
	}
	return old
}
