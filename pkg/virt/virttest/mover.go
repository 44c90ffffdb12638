package virttest

import (
	"context"
	"fmt"
	"testing"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// incoming tells a destination of a guest that the bench made.
func (b *bench) incoming(r virt.MigrateRequest) virt.Incoming {
	b.t.Helper()
	spec, known := b.specs[r.Instance]
	if !known {
		b.t.Fatalf("no spec for %s", r.Instance)
	}
	return virt.Incoming{
		Definition: virt.Definition{Spec: spec, Generation: r.Generation, Migration: r.Migration},
		Source:     "virttest-source",
	}
}

// newMigration gives a request that moves the guest to a host, prepared there.
func (b *bench) newMigration(to Driver, id string, generation uint64) virt.MigrateRequest {
	b.t.Helper()
	r := virt.MigrateRequest{Instance: id, Migration: instance.NewUUID(), Generation: generation}
	inbound, err := to.PrepareIncoming(b.ctx, b.incoming(r))
	b.ok("PrepareIncoming", err)
	r.Inbound = inbound
	return r
}

// start performs a migration beside the case.
func (b *bench) start(r virt.MigrateRequest) beside {
	b.t.Helper()
	return b.later(func(ctx context.Context) error { return b.Source.Migrate(ctx, r) })
}

// slow starts a migration that is held back, and waits until its memory moves.
func (b *bench) slow(r virt.MigrateRequest) beside {
	b.t.Helper()
	r.BandwidthMiB = b.SlowMiB
	done := b.start(r)
	b.waitJob(r.Instance, "memory moves", func(j virt.Job) bool { return j.Memory.Processed > 0 && j.Memory.Remaining > 0 })
	return done
}

// waitJob waits until the running job on the source is as wanted.
func (b *bench) waitJob(id, what string, want func(virt.Job) bool) virt.Job {
	b.t.Helper()
	var found virt.Job
	b.eventually("job: "+what, func() (bool, string) {
		j, err := b.Source.Job(b.ctx, id)
		found = j
		return err == nil && j.Type == virt.JobUnbounded && want(j), fmt.Sprintf("%+v, %v", j, err)
	})
	return found
}

// arrived asserts that the guest is on one host, as its owner, and not on the other.
func (b *bench) arrived(from, to Driver, r virt.MigrateRequest, want virt.State) virt.Domain {
	b.t.Helper()
	d := b.waitState(to, r.Instance, want)
	if !d.Owned || d.Generation != r.Generation || d.Migration != r.Migration || !d.Active() {
		b.t.Errorf("on the destination the guest is %+v, want it owned, active, generation %d, migration %s", d, r.Generation, r.Migration)
	}
	b.gone(from, r.Instance)
	b.eventually("the domain is persistent on the destination", func() (bool, string) {
		d, err := to.Lookup(b.ctx, r.Instance)
		return err == nil && d.Persistent, fmt.Sprintf("%+v, %v", d, err)
	})
	return d
}

// completed asserts the statistics of a job that moved a guest.
func completed(t *testing.T, where string, j virt.Job) {
	t.Helper()
	if j.Type != virt.JobCompleted || j.Elapsed <= 0 || j.Downtime <= 0 || j.Memory.Total == 0 || j.Memory.Processed == 0 {
		t.Errorf("%s: completed job %+v, want type completed, elapsed, a measured downtime, memory total and processed", where, j)
	}
	if j.Memory.Remaining != 0 {
		t.Errorf("%s: completed job has %d bytes remaining, want 0", where, j.Memory.Remaining)
	}
}

func testPrepare(b *bench) {
	b.t.Helper()
	id := b.running()
	r := b.newMigration(b.Dest, id, 2)
	again, err := b.Dest.PrepareIncoming(b.ctx, b.incoming(r))
	b.ok("PrepareIncoming again", err)
	if again != r.Inbound || again.URI == "" {
		b.t.Errorf("PrepareIncoming again = %+v, want %+v", again, r.Inbound)
	}
	b.ok("CancelIncoming", b.Dest.CancelIncoming(b.ctx, id, r.Migration))
	b.ok("CancelIncoming again", b.Dest.CancelIncoming(b.ctx, id, r.Migration))
	b.gone(b.Dest, id)
	_, err = b.Dest.PrepareIncoming(b.ctx, b.incoming(r))
	b.ok("PrepareIncoming after CancelIncoming", err)
	b.ok("Migrate", b.result("Migrate", b.start(r)))
	b.arrived(b.Source, b.Dest, r, virt.Running)
	b.wants(fault.Conflict, "CancelIncoming of a guest that runs", b.Dest.CancelIncoming(b.ctx, id, r.Migration))
	b.waitState(b.Dest, id, virt.Running)
}

func testMigrate(b *bench) {
	b.t.Helper()
	source, dest := b.collect(b.Source), b.collect(b.Dest)
	id := b.booted()
	r := b.newMigration(b.Dest, id, 2)
	b.ok("Migrate", b.result("Migrate", b.start(r)))
	b.arrived(b.Source, b.Dest, r, virt.Running)

	b.waitEvents(dest, id, step{virt.EventStarted, virt.ReasonMigrated}, step{virt.EventResumed, virt.ReasonMigrated})
	b.waitEvents(source, id, step{virt.EventSuspended, virt.ReasonMigrated}, step{virt.EventStopped, virt.ReasonMigrated})
	done := b.waitEvents(source, id, step{virt.EventJobCompleted, ""})[0]
	if done.Job == nil {
		b.t.Fatal("job-completed came without statistics")
	}
	completed(b.t, "event", *done.Job)
	j, err := b.Dest.CompletedJob(b.ctx, id)
	b.ok("CompletedJob on the destination", err)
	completed(b.t, "destination", j)
	if j, err := b.Source.CompletedJob(b.ctx, id); err != nil {
		b.wants(fault.NotFound, "CompletedJob on the source, whose domain is gone", err)
	} else {
		completed(b.t, "source", j)
	}
	if j, err := b.Dest.Job(b.ctx, id); err != nil || j.Type != virt.JobNone {
		b.t.Errorf("Job on the destination = %+v, %v, want none", j, err)
	}
	before, err := b.Dest.Console(b.ctx, id, 0)
	b.ok("Console on the destination", err)
	b.eventually("the guest goes on ticking on the destination", func() (bool, string) {
		now, err := b.Dest.Console(b.ctx, id, 0)
		return err == nil && len(now) > len(before), fmt.Sprintf("%d bytes, %v", len(now), err)
	})
	b.ok("Undefine on the source", b.Source.Undefine(b.ctx, id, true))
	b.waitState(b.Dest, id, virt.Running)
}

func testRoundTrip(b *bench) {
	b.t.Helper()
	id := b.running()
	there := b.newMigration(b.Dest, id, 2)
	b.ok("Migrate", b.result("Migrate", b.start(there)))
	b.arrived(b.Source, b.Dest, there, virt.Running)
	b.ok("Undefine what stayed", b.Source.Undefine(b.ctx, id, true))
	back := b.newMigration(b.Source, id, 3)
	b.ok("Migrate back", b.result("Migrate back", b.later(func(ctx context.Context) error { return b.Dest.Migrate(ctx, back) })))
	b.arrived(b.Dest, b.Source, back, virt.Running)
	b.ok("Destroy", b.Source.Destroy(b.ctx, id))
	if d := b.lookup(b.Source, id); d.Generation != 3 || d.Migration != back.Migration {
		b.t.Errorf("off after it came back the guest is %+v, want generation 3 and migration %s in its definition", d, back.Migration)
	}
	b.ok("Start", b.Source.Start(b.ctx, id))
}

func testMigratePaused(b *bench) {
	b.t.Helper()
	source, dest := b.collect(b.Source), b.collect(b.Dest)
	id := b.booted()
	b.ok("Pause", b.Source.Pause(b.ctx, id))
	r := b.newMigration(b.Dest, id, 2)
	b.ok("Migrate", b.result("Migrate", b.start(r)))
	if d := b.arrived(b.Source, b.Dest, r, virt.Paused); d.Reason != virt.ReasonUser {
		b.t.Errorf("the guest that left paused is %+v, want it paused by user", d)
	}
	b.waitEvents(dest, id, step{virt.EventStarted, virt.ReasonMigrated}, step{virt.EventSuspended, ""})
	b.waitEvents(source, id, step{virt.EventStopped, virt.ReasonMigrated})
	b.waitEvents(source, id, step{virt.EventJobCompleted, ""})
	if found := match(dest.of(id), []step{{virt.EventResumed, ""}}); len(found) != 0 {
		b.t.Errorf("the destination resumed a guest that left paused: %s", describe(dest.of(id)))
	}
	b.ok("Unpause", b.Dest.Unpause(b.ctx, id))
	b.waitState(b.Dest, id, virt.Running)
}

func testMigrateNowhere(b *bench) {
	b.t.Helper()
	id := b.running()
	before := b.lookup(b.Source, id)
	r := b.newMigration(b.Dest, id, 2)
	b.ok("CancelIncoming", b.Dest.CancelIncoming(b.ctx, id, r.Migration))
	self, err := b.Source.PrepareIncoming(b.ctx, b.incoming(r))
	if err == nil { // a driver may refuse here already, or when the guest is sent
		r.Inbound = self
		err = b.Source.Migrate(b.ctx, r)
	}
	if err == nil {
		b.t.Error("a migration from a host to itself was not refused")
	}
	if d := b.lookup(b.Source, id); d.State != virt.Running || d.ID != before.ID || d.Generation != 1 {
		b.t.Errorf("after it the guest is %+v, want it running as before: %+v", d, before)
	}
	b.gone(b.Dest, id)
}

func testCompression(b *bench) {
	b.t.Helper()
	id := b.running()
	r := b.newMigration(b.Dest, id, 2)
	for _, c := range []virt.MigrateRequest{
		{Compression: "no-such"}, {Compression: instance.CompressXBZRLE, Parallel: 2}, {Compression: instance.CompressMT, PostCopy: true}, {Compression: instance.CompressZstd},
	} {
		bad := r
		bad.Compression, bad.Parallel, bad.PostCopy = c.Compression, c.Parallel, c.PostCopy
		l, err := b.Source.CheckLeaving(b.ctx, bad)
		b.ok("CheckLeaving", err)
		if len(l.Reasons) == 0 {
			b.t.Errorf("CheckLeaving with compression %q gives no reason", c.Compression)
		}
		b.wants(fault.InvalidArgument, "Migrate with compression "+c.Compression, b.Source.Migrate(b.ctx, bad))
	}
	r.Compression = instance.CompressXBZRLE
	l, err := b.Source.CheckLeaving(b.ctx, r)
	b.ok("CheckLeaving", err)
	if len(l.Reasons) > 0 {
		b.t.Errorf("CheckLeaving with %s = %q, want no reason", r.Compression, l.Reasons)
	}
	b.ok("Migrate", b.result("Migrate", b.start(r)))
	b.arrived(b.Source, b.Dest, r, virt.Running)
}
