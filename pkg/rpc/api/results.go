package api

import (
	"encoding/json"
	"time"

	"github.com/compute-agent/compute-agent/internal/jsonkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// InstanceResult is one instance.
type InstanceResult struct {
	Instance instance.Instance `json:"instance"`
}

// AppendJSON writes the result as encoding/json does.
func (r InstanceResult) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	jsonkit.One(&o, "instance", r.Instance)
	return o.Close()
}

// InstancesResult is all instances of a host, by UUID.
type InstancesResult struct {
	Instances []instance.Instance `json:"instances"`
}

// AppendJSON writes the result as encoding/json does.
func (r InstancesResult) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	jsonkit.Each(&o, "instances", r.Instances)
	return o.Close()
}

// MigrationResult is one migration.
type MigrationResult struct {
	Migration instance.Migration `json:"migration"`
}

// MigrationsResult is many, oldest first.
type MigrationsResult struct {
	Migrations []instance.Migration `json:"migrations"`
}

// ResolveResult is a migration whose outcome is unknown, and what the two hosts see.
type ResolveResult struct {
	Migration instance.Migration `json:"migration"`
	Source    string             `json:"source"`  // what the source sees: running, paused, moving, postcopy, lost, left, off, absent or unknown
	Dest      string             `json:"dest"`    // what the destination sees
	Owned     bool               `json:"owned"`   // the destination says that it owns the guest
	Outcome   string             `json:"outcome"` // what the facts prove: completed, failed, cancelled or unknown
}

// CheckResult lists every reason against a migration; none: it may start.
type CheckResult struct {
	Reasons []string              `json:"reasons"`          // a source gives those of both hosts: what one of them says begins with "on HOST: " or "HOST: "
	Storage instance.StorageFacts `json:"storage,omitzero"` // the destination's, to a source that told its own
}

// PreparedResult tells the source where to send the guest.
type PreparedResult struct {
	URI        string `json:"uri"`
	MigrateURI string `json:"migrate_uri,omitempty"`
	TLSName    string `json:"tls_name,omitempty"` // that the destination's certificate is for; empty: the URI's host
}

// OwnedResult says whether the destination owns the guest, and what it saw of its arrival.
type OwnedResult struct {
	Owned      bool   `json:"owned"`
	State      string `json:"state"`                // of its domain; empty: none; nostate: it could not be asked for
	Reason     string `json:"reason"`               // of that state
	Superseded bool   `json:"superseded,omitempty"` // it was owned here, and was started anew, has moved on or was deleted since
	DowntimeMS int64  `json:"downtime_ms,omitempty"`
}

// ConsoleResult is console text; bytes that are not UTF-8 are replaced.
type ConsoleResult struct {
	Output string `json:"output"`
}

// DiagnosticsResult are the counters of a running guest.
type DiagnosticsResult struct {
	Stats json.RawMessage `json:"stats"`
}

// Resources is what the host has and what is claimed of it.
type Resources struct {
	VCPUs         int `json:"vcpus"`
	VCPUsUsed     int `json:"vcpus_used"`
	MemoryMiB     int `json:"memory_mib"`
	MemoryMiBUsed int `json:"memory_mib_used"`
	DiskGiB       int `json:"disk_gib"`
	DiskFreeGiB   int `json:"disk_free_gib"`
	Instances     int `json:"instances"`
	Foreign       int `json:"foreign"` // domains that are not ours
}

// HostView is a host as its agent reports it, in the bucket COMPUTE_HOSTS.
type HostView struct {
	Host              string    `json:"host"`
	Agent             string    `json:"agent"` // the software's version
	APIVersion        string    `json:"api_version"`
	MachineID         string    `json:"machine_id"`
	Enabled           bool      `json:"enabled"`
	DisabledReason    string    `json:"disabled_reason,omitempty"`
	Driver            string    `json:"driver"`
	Hypervisor        string    `json:"hypervisor"` // connected or away
	HypervisorType    string    `json:"hypervisor_type,omitempty"`
	HypervisorVersion string    `json:"hypervisor_version,omitempty"`
	CPUModel          string    `json:"cpu_model,omitempty"`
	Resources         Resources `json:"resources"`
	MigrationsOut     int       `json:"migrations_out"`
	MigrationsIn      int       `json:"migrations_in"`
	Problems          []string  `json:"problems,omitempty"` // what waits for a person
	StartedAt         time.Time `json:"started_at"`
	ReportedAt        time.Time `json:"reported_at"`
	ReportIntervalMS  int64     `json:"report_interval_ms"`
}

// Down applies the host-down rule (design section 4): no report for longer than after.
func (v HostView) Down(now time.Time, after time.Duration) bool {
	return now.Sub(v.ReportedAt) > after
}

// The kinds of events; the second-last token of their subject.
const (
	EventTask      = "task"
	EventInstance  = "instance"
	EventMigration = "migration"
	EventVIF       = "vif"
	EventHost      = "host"
)

// TaskState is where a cast is in its life.
type TaskState string

/*
The life of a task. refused means: nothing was done.

	accepted ─▶ running ─▶ succeeded | failed
	   └─▶ refused
*/
const (
	TaskAccepted  TaskState = "accepted"
	TaskRunning   TaskState = "running"
	TaskSucceeded TaskState = "succeeded"
	TaskFailed    TaskState = "failed"
	TaskRefused   TaskState = "refused"
)

// Ended reports whether a task has its outcome.
func (s TaskState) Ended() bool {
	return s == TaskSucceeded || s == TaskFailed || s == TaskRefused
}

// TaskEvent is the body of compute.event.<host>.task.<request id>.
type TaskEvent struct {
	RequestID string          `json:"request_id"`
	Method    string          `json:"method"`
	Host      string          `json:"host"`
	Instance  string          `json:"instance,omitempty"`
	Migration string          `json:"migration,omitempty"`
	State     TaskState       `json:"state"`
	Result    json.RawMessage `json:"result,omitempty"`
	Error     *fault.Error    `json:"error,omitempty"`
	At        time.Time       `json:"at"`
}

// AppendJSON writes the event as encoding/json does, without its second pass.
func (e TaskEvent) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	o.String("request_id", e.RequestID)
	o.String("method", e.Method)
	o.String("host", e.Host)
	o.Some("instance", e.Instance)
	o.Some("migration", e.Migration)
	o.String("state", string(e.State))
	if len(e.Result) > 0 {
		o.Raw("result", e.Result)
	}
	if e.Error != nil {
		o.Any("error", e.Error)
	}
	o.Time("at", e.At)
	return o.Close()
}

// InstanceEvent is the body of compute.event.<host>.instance.<uuid>: what changed.
type InstanceEvent struct {
	Instance   string              `json:"instance"`
	Host       string              `json:"host"`
	Event      string              `json:"event"` // e.g. built, started, stopped, rebooted, crashed, arrived, left, deleted
	Detail     string              `json:"detail,omitempty"`
	VMState    instance.VMState    `json:"vm_state"`
	PowerState instance.PowerState `json:"power_state"`
	TaskState  instance.TaskState  `json:"task_state,omitempty"`
	RequestID  string              `json:"request_id,omitempty"`
	At         time.Time           `json:"at"`
}

// MigrationEvent is the body of compute.event.<host>.migration.<uuid>.
type MigrationEvent struct {
	Migration instance.Migration `json:"migration"`
	At        time.Time          `json:"at"`
}
