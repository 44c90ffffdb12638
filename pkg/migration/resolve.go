package migration

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// Look gathers the facts of both hosts on a frozen migration, once, and what they prove
// by now. It changes nothing here; a destination that sees its guest run may own it
// meanwhile. Conflict for a migration whose outcome is known.
func (s *Source) Look(ctx context.Context, rec Record) (Facts, Verdict, error) {
	if rec.Role != RoleSource || !rec.Frozen() || rec.Ended() {
		return Facts{}, VerdictNone, fault.Newf(fault.Conflict, "resolve_migration", rec.Migration.UUID,
			"the outcome of this migration is not in doubt: it is %s", rec.Migration.Status)
	}
	r := newRun(s, rec)
	running, facts := r.sourceFacts(ctx, nil)
	facts, _ = r.destFacts(ctx, facts) // no answer is a fact too: the sight stays unknown
	if running {
		return facts, VerdictUnknown, nil
	}
	return facts, r.judge(facts), nil
}

// Fence stops the older copy of a guest of a frozen migration that runs on both hosts,
// when the destination owns it; the next Look proves then where it is. It is an error when
// the facts don't allow that.
func (s *Source) Fence(ctx context.Context, rec Record) error {
	return newRun(s, rec).fence(ctx)
}

// Conducts reports whether a migration is in progress here at this moment.
func (s *Source) Conducts(rec Record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.runs[rec.Migration.Instance]
	return r != nil && r.id == rec.Migration.UUID
}

/*
Settle ends the freeze of a migration and gives the record with which Run goes on:

	completed   the destination has the guest  ─▶ switch ─▶ clean ─▶ end
	failed      the guest is here              ─▶ undo perform, prepare, … ─▶ end

Without byPerson the facts must have proved v, and every later step looks for itself as
always. A person may know more than the hosts can see (a host that burned down), so the
person's word stands where a host does not answer. It is conflict when what a host does
see speaks against it: nothing that runs is ever destroyed.
*/
func (s *Source) Settle(ctx context.Context, rec Record, v Verdict, byPerson bool) (Record, error) {
	facts, proved, err := s.Look(ctx, rec)
	if err != nil {
		return rec, err
	}
	if err := lawfulVerdict(rec, facts, v); err != nil {
		return rec, err
	}
	if !byPerson && proved != v {
		return rec, fault.Newf(fault.Conflict, "resolve_migration", rec.Migration.UUID, "the facts do not prove that it is %s", v)
	}
	r, err := s.thaw("resolve_migration", &rec)
	if err != nil {
		return rec, err
	}
	defer s.drop(r)
	err = r.save(ctx, func(rec *Record) {
		rec.Settling = true
		if byPerson {
			rec.Resolved = v
		}
		if v == VerdictCompleted {
			*rec = rec.advance(PhaseSwitch, instance.MigrationPost, false)
			rec.Verdict, rec.Migration.Fault = VerdictNone, nil
			return
		}
		phase := rec.Phase
		if afterPerform(phase) {
			phase = PhasePerform
		}
		*rec = rec.advance(phase, instance.MigrationRunning, true)
		rec.Verdict = v
	})
	if err == nil {
		logkit.From(ctx).Warn("a frozen migration goes on as "+string(v), logkit.Instance.Of(r.instance), logkit.Migration.Of(r.id),
			logkit.Key("by_person").Of(byPerson))
	}
	return r.withTimeline(), err
}

// thaw registers a frozen migration that was looked at, so that nobody else does anything
// to it until it is dropped. Looking takes its time: it is conflict when somebody has
// settled the migration meanwhile. As in pickUp the journal is read under the lock.
func (s *Source) thaw(method string, rec *Record) (*run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runs[rec.Migration.Instance] != nil {
		return nil, fault.New(fault.Conflict, method, rec.Migration.UUID, "this migration is being looked at already, or the instance migrates")
	}
	now, known := s.ports.Journal.Load(RoleSource, rec.Migration.UUID)
	if !known || !now.Frozen() || now.Ended() || !now.UpdatedAt.Equal(rec.UpdatedAt) {
		return nil, fault.Newf(fault.Conflict, method, rec.Migration.UUID, "this migration has gone on since it was looked at: it is %s", now.Migration.Status)
	}
	r := newRun(s, *rec)
	s.runs[rec.Migration.Instance] = r
	return r, nil
}

// GoOn is Run for a migration that was settled or taken up, and that several may want to go
// on. rec only says which: how it stands is read when nobody has it in hand, so that it can't
// have gone on since. It does nothing, and that is no error, to one that somebody has in hand,
// that has ended or that is frozen.
func (s *Source) GoOn(ctx context.Context, rec Record) error {
	r, err := s.pickUp(rec.Migration.Instance, rec.Migration.UUID)
	if r == nil {
		return err
	}
	return s.run(ctx, r, false)
}

// pickUp hands a migration that nobody has in hand to its conductor, as the journal has it;
// nil: there is nothing to do. It is read under the lock: whoever had it before has written
// its last word then.
func (s *Source) pickUp(instanceID, migrationID string) (*run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.runs[instanceID]; r != nil {
		if r.id != migrationID {
			return nil, busyWith(r)
		}
		return nil, nil
	}
	rec, known := s.ports.Journal.Load(RoleSource, migrationID)
	if !known || rec.Frozen() || rec.Ended() {
		return nil, nil
	}
	r := newRun(s, rec)
	r.begun = true
	s.runs[instanceID] = r
	return r, nil
}

// lawfulVerdict refuses what the facts speak against.
func lawfulVerdict(rec Record, f Facts, v Verdict) error {
	no := func(format string, args ...any) error {
		return fault.Newf(fault.Conflict, "resolve_migration", rec.Migration.UUID, format, args...).
			WithHint("on %s the guest is %s, on %s %s: end the copy that is not wanted there, by virsh, and resolve again",
				rec.Migration.Source, f.Source, rec.Migration.Dest, f.Dest)
	}
	switch v {
	case VerdictCompleted:
		if f.Source == SightRunning {
			return no("it can't be resolved as completed: the guest runs on %s", rec.Migration.Source)
		}
		if (f.Dest == SightAbsent || f.Dest == SightLeft) && !f.Superseded {
			return no("it can't be resolved as completed: %s answers that it has not got the guest", rec.Migration.Dest)
		}
	case VerdictFailed, VerdictCancelled:
		if f.Owned || f.held() {
			return no("it can't be resolved as failed: %s has the guest", rec.Migration.Dest)
		}
		if f.gone() {
			return no("it can't be resolved as failed: %s has not got the guest any more", rec.Migration.Source)
		}
	case VerdictNone, VerdictUnknown:
		return fault.New(fault.InvalidArgument, "resolve_migration", "as", "say completed or failed")
	}
	return nil
}
