package virttest

import (
	"context"
	"fmt"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

func testStatistics(b *bench) {
	b.t.Helper()
	source := b.collect(b.Source)
	id := b.booted()
	r := b.newMigration(b.Dest, id, 2)
	done := b.slow(r)
	first := b.waitJob(id, "figures", func(j virt.Job) bool { return j.Memory.Remaining > 0 && j.Iteration > 0 && j.Elapsed > 0 })
	if first.Memory.Total < first.Memory.Remaining || first.Memory.Total < uint64(b.specs[id].MemoryMiB)<<20 {
		b.t.Errorf("job %+v: want a total of at least the guest's memory and what remains", first)
	}
	second := b.waitJob(id, "remaining falls", func(j virt.Job) bool { return j.Memory.Remaining < first.Memory.Remaining })
	if second.Elapsed <= first.Elapsed || second.Memory.Processed <= first.Memory.Processed {
		b.t.Errorf("job %+v, then %+v: want elapsed and processed to grow", first, second)
	}
	if second.Memory.Total != first.Memory.Total {
		b.t.Errorf("job %+v, then %+v: want the total to stay", first, second)
	}
	b.ok("SetBandwidth", b.Source.SetBandwidth(b.ctx, id, 0))
	b.ok("Migrate", b.result("Migrate", done))
	b.arrived(b.Source, b.Dest, r, virt.Running)
	event := b.waitEvents(source, id, step{virt.EventIteration, ""})[0]
	if event.Iteration == 0 {
		b.t.Errorf("event %+v: want the number of the iteration", event)
	}
	j, err := b.Dest.CompletedJob(b.ctx, id)
	b.ok("CompletedJob", err)
	if j.Memory.Processed < second.Memory.Processed || j.Elapsed < second.Elapsed || j.Iteration < second.Iteration {
		b.t.Errorf("completed %+v: want at least what was seen on the way: %+v", j, second)
	}
}

func testAbort(b *bench) {
	b.t.Helper()
	source := b.collect(b.Source)
	id := b.booted()
	before := b.lookup(b.Source, id)
	r := b.newMigration(b.Dest, id, 2)
	done := b.slow(r)
	b.ok("AbortJob", b.Source.AbortJob(b.ctx, id))
	if err := b.result("Migrate", done); err == nil {
		b.t.Error("Migrate of an aborted job gave no error")
	}
	if d := b.waitState(b.Source, id, virt.Running); d.ID != before.ID || d.Generation != 1 || d.Migration != "" {
		b.t.Errorf("after the abort the guest is %+v, want it as before: %+v", d, before)
	}
	b.gone(b.Dest, id)
	b.ok("CancelIncoming", b.Dest.CancelIncoming(b.ctx, id, r.Migration))
	b.ok("CancelIncoming again", b.Dest.CancelIncoming(b.ctx, id, r.Migration))
	if j, err := b.Source.Job(b.ctx, id); err != nil || j.Type != virt.JobNone {
		b.t.Errorf("Job after the abort = %+v, %v, want none", j, err)
	}
	b.wants(fault.Conflict, "AbortJob again", b.Source.AbortJob(b.ctx, id))
	if stopped := match(source.of(id), []step{{virt.EventStopped, ""}}); len(stopped) != 0 {
		b.t.Errorf("the abort stopped the guest: %s", describe(source.of(id)))
	}
	next := b.newMigration(b.Dest, id, 3)
	b.ok("Migrate after an abort", b.result("Migrate", b.start(next)))
	b.arrived(b.Source, b.Dest, next, virt.Running)
}

func testSteer(b *bench) {
	b.t.Helper()
	id := b.booted()
	r := b.newMigration(b.Dest, id, 2)
	done := b.slow(r)
	b.ok("SetMaxDowntime", b.Source.SetMaxDowntime(b.ctx, id, 500*time.Millisecond))
	b.ok("SetBandwidth", b.Source.SetBandwidth(b.ctx, id, b.SlowMiB*2))
	j := b.waitJob(id, "it still moves", func(j virt.Job) bool { return j.Memory.Remaining > 0 })
	slowest := time.Duration(j.Memory.Remaining/(b.SlowMiB<<20)) * time.Second
	sped := time.Now()
	b.ok("SetBandwidth", b.Source.SetBandwidth(b.ctx, id, 0))
	b.ok("Migrate", b.result("Migrate", done))
	if took := time.Since(sped); slowest > 4*time.Second && took > slowest {
		b.t.Errorf("without a limit the rest took %v, want less than %v at %d MiB/s", took, slowest, b.SlowMiB)
	}
	b.arrived(b.Source, b.Dest, r, virt.Running)
}

func testTwice(b *bench) {
	b.t.Helper()
	id := b.booted()
	r := b.newMigration(b.Dest, id, 2)
	done := b.slow(r)
	second := r
	second.Migration = instance.NewUUID()
	b.wants(fault.Conflict, "a second migration of the guest", b.Source.Migrate(b.ctx, second))
	b.waitJob(id, "the first goes on", func(j virt.Job) bool { return j.Memory.Remaining > 0 })
	b.ok("SetBandwidth", b.Source.SetBandwidth(b.ctx, id, 0))
	b.ok("Migrate", b.result("Migrate", done))
	b.arrived(b.Source, b.Dest, r, virt.Running)
}

func testNoJob(b *bench) {
	b.t.Helper()
	id := b.running()
	if j, err := b.Source.Job(b.ctx, id); err != nil || j.Type != virt.JobNone {
		b.t.Errorf("Job of a guest that stays = %+v, %v, want none", j, err)
	}
	b.wants(fault.Conflict, "AbortJob without a job", b.Source.AbortJob(b.ctx, id))
	b.wants(fault.Conflict, "StartPostCopy without a job", b.Source.StartPostCopy(b.ctx, id))
	if _, err := b.Source.CompletedJob(b.ctx, id); err == nil {
		b.t.Error("CompletedJob of a guest that never moved gave no error")
	} else {
		b.wants(fault.NotFound, "CompletedJob of a guest that never moved", err)
	}
	b.waitState(b.Source, id, virt.Running)
}

func testCallerLeaves(b *bench) {
	b.t.Helper()
	source := b.collect(b.Source)
	id := b.booted()
	r := b.newMigration(b.Dest, id, 2)
	slow := r
	slow.BandwidthMiB = b.SlowMiB
	caller, leave := context.WithCancel(b.ctx)
	defer leave()
	done := b.later(func(context.Context) error { return b.Source.Migrate(caller, slow) })
	b.waitJob(id, "memory moves", func(j virt.Job) bool { return j.Memory.Processed > 0 })
	leave()
	if err := b.result("Migrate after its caller left", done); err == nil {
		b.t.Error("Migrate gave no error when its caller left")
	}
	b.waitJob(id, "it goes on", func(j virt.Job) bool { return j.Memory.Processed > 0 })
	b.ok("SetBandwidth", b.Source.SetBandwidth(b.ctx, id, 0))
	b.waitEvents(source, id, step{virt.EventJobCompleted, ""})
	b.arrived(b.Source, b.Dest, r, virt.Running)
}

func testPostCopy(b *bench) {
	b.t.Helper()
	source, dest := b.collect(b.Source), b.collect(b.Dest)
	id := b.booted()
	r := b.newMigration(b.Dest, id, 2)
	r.PostCopy = true
	done := b.slow(r)
	b.ok("StartPostCopy", b.Source.StartPostCopy(b.ctx, id))
	b.waitEvents(dest, id, step{virt.EventResumed, virt.ReasonPostCopy})
	if err := b.Source.AbortJob(b.ctx, id); err == nil {
		b.t.Error("AbortJob in post-copy gave no error")
	}
	b.ok("Migrate", b.result("Migrate", done))
	b.waitEvents(dest, id, step{virt.EventStarted, virt.ReasonMigrated}, step{virt.EventResumed, virt.ReasonPostCopy}, step{virt.EventResumed, virt.ReasonMigrated})
	b.waitEvents(source, id, step{virt.EventSuspended, ""}, step{virt.EventStopped, virt.ReasonMigrated})
	b.arrived(b.Source, b.Dest, r, virt.Running)
}

func testBrokenPostCopy(b *bench) {
	b.t.Helper()
	source, dest := b.collect(b.Source), b.collect(b.Dest)
	id := b.booted()
	r := b.newMigration(b.Dest, id, 2)
	r.PostCopy, r.PostCopyMiB = true, b.SlowMiB
	b.wants(fault.Conflict, "ResumePostCopy of a guest that runs", b.Source.ResumePostCopy(b.ctx, r))
	done := b.slow(r)
	b.wants(fault.Conflict, "ResumePostCopy in pre-copy", b.Source.ResumePostCopy(b.ctx, r))
	b.ok("StartPostCopy", b.Source.StartPostCopy(b.ctx, id))
	b.waitEvents(dest, id, step{virt.EventResumed, virt.ReasonPostCopy})
	b.ok("SetBandwidth in post-copy", b.Source.SetBandwidth(b.ctx, id, max(b.SlowMiB/2, 1)))
	heal := b.Break(b.t)
	if err := b.result("Migrate over a broken stream", done); err == nil {
		b.t.Error("Migrate over a broken stream gave no error")
	}
	b.waitEvents(source, id, step{virt.EventSuspended, virt.ReasonPostCopyFailed})
	if d := b.lookup(b.Source, id); d.State != virt.Paused || d.Reason != virt.ReasonPostCopyFailed {
		b.t.Errorf("the source is %s (%s), want its broken post-copy seen", d.State, d.Reason)
	}
	if d := b.lookup(b.Dest, id); d.Reason != virt.ReasonPostCopyFailed {
		b.t.Errorf("the destination is %s (%s), want its broken post-copy seen", d.State, d.Reason)
	}
	heal()
	b.eventually("it is taken up and ends", func() (bool, string) {
		err := b.Source.ResumePostCopy(b.ctx, r)
		return err == nil, fmt.Sprint(err)
	})
	b.arrived(b.Source, b.Dest, r, virt.Running)
	b.waitEvents(dest, id, step{virt.EventResumed, virt.ReasonPostCopy}, step{virt.EventResumed, virt.ReasonMigrated})
}
