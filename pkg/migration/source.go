package migration

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// op is the operation that errors of this package name.
const op = "live_migration"

// ErrStopping is the cause with which the agent ends the context of a Run when it
// stops: the walk returns at once and the job is left to the hypervisors.
var ErrStopping = errors.New("the agent is stopping; the migration goes on after its next start")

// Source conducts the migrations that leave this host. Its methods may be called
// from any goroutine.
type Source struct {
	cfg    Config
	ports  SourcePorts
	slots  *slots
	table  []step[*run]
	budget *budget
	cancel func() // of the subscription

	metronome *green.Metronome // carries out the beats of the monitors
	watched   atomic.Int64     // migrations that have a monitor

	mu   sync.Mutex
	runs map[string]*run // in progress, by instance
}

// NewSource makes a Source. It subscribes to the hypervisor's events; Close ends that.
func NewSource(cfg Config, ports SourcePorts) *Source {
	cfg = cfg.WithDefaults()
	s := &Source{
		cfg: cfg, ports: ports, slots: newSlots(cfg.OutboundSlots), table: sourceTable(), budget: newBudget(cfg.BudgetMiB), metronome: green.NewMetronome(),
		runs: map[string]*run{},
	}
	s.cancel = ports.Hypervisor.Subscribe(s.hear)
	return s
}

// Close ends the subscription. Runs must have returned.
func (s *Source) Close() { s.cancel() }

// hear hands an event to the migration that it concerns; those of the connection
// concern all.
func (s *Source) hear(e virt.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Kind == virt.EventConnected {
		for _, r := range s.runs {
			r.poke()
			r.hurry()
		}
		return
	}
	if r := s.runs[e.Domain]; r != nil {
		r.hear(e)
	}
}

// Check gives every reason against moving inst: this host's and the destination's. It
// changes nothing. err means that it could not be found out.
func (s *Source) Check(ctx context.Context, inst instance.Instance, args api.MigrateArgs) (reasons []string, err error) {
	r := newRun(s, NewRecord(inst, args, s.cfg.Host, ""))
	found, reasons, err := r.examine(ctx)
	if err != nil {
		return nil, err
	}
	r.setLocked(new(found(*r.rec))) // nobody else has it
	if args.Dest == s.cfg.Host {
		return r.rec.bySpeaker(reasons, nil), nil
	}
	ctx, cancel := within(ctx, s.cfg.CheckTimeout, "the destination's check")
	defer cancel()
	theirs, err := s.ports.Peer.Check(ctx, args.Dest, r.peerArgs())
	if err = causeOf(ctx, err); err != nil && len(reasons) == 0 {
		return nil, fault.Wrap(err, op, args.Dest)
	}
	if err != nil {
		return append(r.rec.bySpeaker(reasons, nil), "the destination could not be asked: "+err.Error()), nil
	}
	_, reasons = r.rec.weigh(theirs, reasons)
	return reasons, nil
}

// merge joins two lists of reasons, each reason once.
func merge(a, b []string) []string {
	for _, reason := range b {
		if !slices.Contains(a, reason) {
			a = append(a, reason)
		}
	}
	return a
}

// Accept journals a new record and makes the migration known to Abort before its
// turn has come; Run follows. Of a record that is known already it changes nothing.
// Conflict while the instance has another migration in progress.
func (s *Source) Accept(ctx context.Context, rec Record) error {
	r, known, err := s.register(&rec)
	if known || err != nil {
		return err
	}
	if err := r.save(ctx, func(*Record) {}); err != nil {
		s.drop(r)
		return err
	}
	s.mu.Lock()
	r.accepted = true
	s.mu.Unlock()
	return nil
}

// Forget takes back an Accept whose Run will never come. Of a migration that runs
// it does nothing.
func (s *Source) Forget(rec Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.runs[rec.Migration.Instance]
	if r != nil && r.id == rec.Migration.UUID && !r.begun {
		delete(s.runs, rec.Migration.Instance)
	}
}

func (s *Source) register(rec *Record) (r *run, known bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, known = s.runs[rec.Migration.Instance]
	if !known {
		r = newRun(s, *rec)
		s.runs[rec.Migration.Instance] = r
		return r, false, nil
	}
	if r.id != rec.Migration.UUID {
		return nil, false, busyWith(r)
	}
	return r, true, nil
}

// busyWith refuses another migration of the instance.
func busyWith(r *run) error {
	return fault.Newf(fault.Conflict, op, r.instance, "migration %s of this instance is in progress", r.id).
		WithHint("wait for its end, or abort it")
}

func (s *Source) drop(r *run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runs[r.instance] == r {
		delete(s.runs, r.instance)
	}
}

// Run walks a migration from rec.Phase to its end, and blocks meanwhile: the
// instance's lane. A restart resumes with the same call. When ctx ends it returns at
// once with its cause; the record stays as it stands and the job is left to the
// hypervisors. The error tells why the migration did not complete: its kind is
// cancelled after an abort; with status error the outcome is unknown. rec is only read,
// before anything is waited for.
func (s *Source) Run(ctx context.Context, rec *Record) (*instance.Migration, error) {
	r, accepted, err := s.begin(rec)
	if err != nil {
		return &rec.Migration, err
	}
	err = s.run(ctx, r, accepted)
	return r.copied(), err
}

func (s *Source) run(ctx context.Context, r *run, accepted bool) error {
	defer s.drop(r)
	defer r.releaseSlot()
	return r.conduct(ctx, accepted)
}

// begin hands a migration to its conductor, once.
func (s *Source) begin(rec *Record) (r *run, accepted bool, err error) {
	r, _, err = s.register(rec)
	if err != nil {
		return nil, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.begun {
		return nil, false, fault.New(fault.Conflict, op, rec.Migration.UUID, "this migration runs already")
	}
	r.begun = true
	return r, r.accepted, nil
}

// Abort asks for the end of a migration, in any phase; an empty migrationID means
// the one in progress. It never waits for the instance's lane; the request is in the
// journal when it returns. It is conflict when the guest has switched over already,
// not_found when there is none.
func (s *Source) Abort(ctx context.Context, instanceID, migrationID string) error {
	r, err := s.find("live_migration_abort", instanceID, migrationID)
	if err != nil {
		return err
	}
	return r.abort(ctx, "on request")
}

// ForceComplete makes a running migration end: by post-copy where it is permitted,
// else by pausing the guest. It waits, bounded, until that was done.
func (s *Source) ForceComplete(ctx context.Context, instanceID, migrationID string) error {
	r, err := s.find("live_migration_force_complete", instanceID, migrationID)
	if err != nil {
		return err
	}
	return r.force(ctx)
}

// SetBandwidth changes the limit of a migration that has not switched over yet, in
// MiB/s; 0 lifts it. It outlives a restart, and is in force when it returns if memory
// moves. Conflict when the guest has left.
func (s *Source) SetBandwidth(ctx context.Context, instanceID, migrationID string, mib uint64) error {
	r, err := s.find("live_migration_set_bandwidth", instanceID, migrationID)
	if err != nil {
		return err
	}
	return r.setBandwidth(ctx, mib)
}

func (s *Source) find(method, instanceID, migrationID string) (*run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.runs[instanceID]
	if r == nil || migrationID != "" && r.id != migrationID {
		return nil, fault.New(fault.NotFound, method, instanceID, "no such migration of this instance is in progress here").
			WithHint("compute-agent migration list shows the migrations and their source hosts")
	}
	return r, nil
}

// progressEvery is how often one migration's progress may be told.
func (s *Source) progressEvery() time.Duration {
	each := time.Duration(s.watched.Load()) * time.Second / time.Duration(s.cfg.ProgressRate)
	return max(s.cfg.ProgressInterval, each)
}

// SlotsLeft tells how many outbound slots are free; below zero: more migrations that ran
// already were taken up than there are slots.
func (s *Source) SlotsLeft() int { return s.slots.left() }

// Active tells how many migrations are on their way out of this host, those that
// wait included.
func (s *Source) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.runs)
}
