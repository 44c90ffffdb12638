package migration

import (
	"context"
	"errors"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// ErrStopping is the cause with which the agent ends the context of a Run when it
// stops: the walk returns at once and the job is left to the hypervisors.
var ErrStopping = errors.New("the agent is stopping; the migration goes on after its next start")

// errSoon is what the walks answer until their phases are in.
var errSoon = fault.New(fault.UnsupportedMethod, "live_migration", "", "the phases are not in this build")

// Source conducts the migrations that leave this host. Its methods may be called
// from any goroutine.
type Source struct {
	cfg   Config
	ports SourcePorts
}

// NewSource makes a Source. It subscribes to the hypervisor's events; Close ends that.
func NewSource(cfg Config, ports SourcePorts) *Source {
	return &Source{cfg: cfg.withDefaults(), ports: ports}
}

// Close ends the subscription. Runs must have returned.
func (s *Source) Close() {}

// Check gives every reason against moving inst: this host's and the destination's.
// It changes nothing. err means that it could not be found out.
func (s *Source) Check(_ context.Context, _ instance.Instance, _ api.MigrateArgs) (reasons []string, err error) {
	return nil, errSoon
}

// Accept journals a new record and makes the migration known to Abort before its
// turn has come; Run follows. Of a record that is known already it changes nothing.
func (s *Source) Accept(_ context.Context, _ Record) error { return errSoon }

// Run walks a migration from rec.Phase to its end, and blocks meanwhile: the
// instance's lane. A restart resumes with the same call. When ctx ends it returns at
// once with its cause; the record stays as it stands and the job is left to the
// hypervisors. The error tells why the migration did not complete: its kind is
// cancelled after an abort; with status error the outcome is unknown.
func (s *Source) Run(_ context.Context, rec Record) (instance.Migration, error) {
	return rec.Migration, errSoon
}

// Abort asks for the end of a migration, in any phase; an empty migrationID means
// the one in progress. It never waits for the instance's lane. It is conflict when
// the guest has switched over already, not_found when there is none.
func (s *Source) Abort(_ context.Context, _, _ string) error { return errSoon }

// ForceComplete makes a running migration end: by post-copy where it is permitted,
// else by pausing the guest. It waits, bounded, until that was done.
func (s *Source) ForceComplete(_ context.Context, _, _ string) error { return errSoon }
