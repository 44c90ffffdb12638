package virttest

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

func testStartDestroy(b *bench) {
	b.t.Helper()
	id := b.running()
	first := b.lookup(b.Source, id)
	if !first.Active() {
		b.t.Errorf("a running guest is %+v, want an ID", first)
	}
	b.ok("Start of a running guest", b.Source.Start(b.ctx, id))
	if again := b.lookup(b.Source, id); again.ID != first.ID {
		b.t.Errorf("Start of a running guest changed its ID from %d to %d", first.ID, again.ID)
	}
	b.ok("Destroy", b.Source.Destroy(b.ctx, id))
	if d := b.lookup(b.Source, id); d.State != virt.Shutoff || d.Active() || d.Reason != virt.ReasonDestroyed {
		b.t.Errorf("after Destroy the guest is %+v, want it off by destroyed", d)
	}
	b.ok("Destroy of a guest that is off", b.Source.Destroy(b.ctx, id))
	b.ok("Start after Destroy", b.Source.Start(b.ctx, id))
	if d := b.waitState(b.Source, id, virt.Running); d.ID == first.ID {
		b.t.Errorf("the new start has ID %d again, want a new one", d.ID)
	}
}

func testPause(b *bench) {
	b.t.Helper()
	id := b.running()
	before := b.lookup(b.Source, id)
	b.ok("Pause", b.Source.Pause(b.ctx, id))
	if d := b.lookup(b.Source, id); d.State != virt.Paused || d.Reason != virt.ReasonUser || d.ID != before.ID {
		b.t.Errorf("after Pause the guest is %+v, want it paused by user with ID %d", d, before.ID)
	}
	b.ok("Pause of a paused guest", b.Source.Pause(b.ctx, id))
	b.wants(fault.Conflict, "Shutdown of a paused guest", b.Source.Shutdown(b.ctx, id, virt.ShutdownACPI))
	b.ok("Unpause", b.Source.Unpause(b.ctx, id))
	if d := b.lookup(b.Source, id); d.State != virt.Running || d.ID != before.ID {
		b.t.Errorf("after Unpause the guest is %+v, want it running with ID %d", d, before.ID)
	}
	b.ok("Unpause of a running guest", b.Source.Unpause(b.ctx, id))
	b.ok("Pause", b.Source.Pause(b.ctx, id))
	b.ok("Destroy of a paused guest", b.Source.Destroy(b.ctx, id))
	if d := b.lookup(b.Source, id); d.State != virt.Shutoff {
		b.t.Errorf("after Destroy the guest is %+v, want it off", d)
	}
}

func testWrongStates(b *bench) {
	b.t.Helper()
	id := b.defined()
	h := b.Source
	b.wants(fault.Conflict, "Shutdown of a guest that is off", h.Shutdown(b.ctx, id, virt.ShutdownACPI))
	b.wants(fault.Conflict, "Pause of a guest that is off", h.Pause(b.ctx, id))
	b.wants(fault.Conflict, "Unpause of a guest that is off", h.Unpause(b.ctx, id))
	b.wants(fault.Conflict, "Save of a guest that is off", h.Save(b.ctx, id))
	b.wants(fault.Conflict, "Restore without a save", h.Restore(b.ctx, id))
	_, err := h.Stats(b.ctx, id)
	b.wants(fault.Conflict, "Stats of a guest that is off", err)
	_, err = h.Job(b.ctx, id)
	b.wants(fault.Conflict, "Job of a guest that is off", err)
	_, err = h.CompletedJob(b.ctx, id)
	b.wants(fault.NotFound, "CompletedJob of a guest that never moved", err)
	if d := b.lookup(h, id); d.State != virt.Shutoff {
		b.t.Errorf("the guest is %+v, want it still off", d)
	}
}

func testSave(b *bench) {
	b.t.Helper()
	id := b.booted()
	first := b.lookup(b.Source, id)
	b.ok("Save", b.Source.Save(b.ctx, id))
	if d := b.lookup(b.Source, id); d.State != virt.Shutoff || !d.Saved || d.Active() || d.Reason != virt.ReasonSaved {
		b.t.Errorf("after Save the guest is %+v, want it off by saved, with a save", d)
	}
	b.ok("Restore", b.Source.Restore(b.ctx, id))
	if d := b.waitState(b.Source, id, virt.Running); d.Saved || d.ID == first.ID {
		b.t.Errorf("after Restore the guest is %+v, want it running without a save, with another ID than %d", d, first.ID)
	}
	b.ok("Save", b.Source.Save(b.ctx, id))
	b.ok("Start", b.Source.Start(b.ctx, id))
	if d := b.waitState(b.Source, id, virt.Running); d.Saved {
		b.t.Errorf("after Start the guest is %+v, want the save discarded", d)
	}
	b.ok("Destroy", b.Source.Destroy(b.ctx, id))
	b.wants(fault.Conflict, "Restore of a discarded save", b.Source.Restore(b.ctx, id))
	b.ok("Start", b.Source.Start(b.ctx, id))
	b.ok("Save", b.Source.Save(b.ctx, id))
	b.ok("Undefine with a save", b.Source.Undefine(b.ctx, id, true))
	b.gone(b.Source, id)
}

func testConsole(b *bench) {
	b.t.Helper()
	id := b.booted()
	all, err := b.Source.Console(b.ctx, id, 0)
	b.ok("Console", err)
	b.eventually("the console grows", func() (bool, string) {
		now, err := b.Source.Console(b.ctx, id, -1)
		return err == nil && len(now) > len(all) && bytes.HasPrefix(now, all), fmt.Sprintf("%d then %d bytes, %v", len(all), len(now), err)
	})
	b.ok("Destroy", b.Source.Destroy(b.ctx, id))
	all, err = b.Source.Console(b.ctx, id, 0)
	b.ok("Console of a guest that is off", err)
	if !strings.Contains(string(all), b.Tick) {
		b.t.Errorf("the console of a guest that went off holds %q, want %q in it", all, b.Tick)
	}
	tail, err := b.Source.Console(b.ctx, id, 5)
	b.ok("Console", err)
	if len(tail) != 5 || !bytes.HasSuffix(all, tail) {
		b.t.Errorf("Console(5) = %q, want the last 5 bytes of %q", tail, all)
	}
	more, err := b.Source.Console(b.ctx, id, len(all)+100)
	b.ok("Console", err)
	if !bytes.Equal(more, all) {
		b.t.Errorf("Console of more bytes than there are = %d bytes, want all %d", len(more), len(all))
	}
}

func testStats(b *bench) {
	b.t.Helper()
	id := b.booted()
	first, err := b.Source.Stats(b.ctx, id)
	b.ok("Stats", err)
	if want := uint64(b.specs[id].MemoryMiB) << 10; first.MemoryKiB != want {
		b.t.Errorf("Stats gives %d KiB of memory, want %d", first.MemoryKiB, want)
	}
	b.eventually("the CPU time grows", func() (bool, string) {
		now, err := b.Source.Stats(b.ctx, id)
		return err == nil && now.CPUTimeNS > first.CPUTimeNS, fmt.Sprintf("%d then %d ns, %v", first.CPUTimeNS, now.CPUTimeNS, err)
	})
}

func testShutdown(b *bench) {
	b.t.Helper()
	c := b.collect(b.Source)
	id := b.booted()
	first := b.lookup(b.Source, id)
	b.ok("Shutdown", b.Source.Shutdown(b.ctx, id, virt.ShutdownACPI))
	d := b.waitState(b.Source, id, virt.Shutoff)
	if d.Active() || d.Reason != virt.ReasonShutdown {
		b.t.Errorf("after Shutdown the guest is %+v, want it off by shutdown", d)
	}
	b.waitEvents(c, id, step{virt.EventStarted, ""}, step{virt.EventStopped, ""})
	b.wants(fault.Conflict, "Shutdown of a guest that is off", b.Source.Shutdown(b.ctx, id, virt.ShutdownACPI))
	b.ok("Start", b.Source.Start(b.ctx, id))
	if d := b.waitState(b.Source, id, virt.Running); d.ID == first.ID {
		b.t.Errorf("the new start has ID %d again, want a new one", d.ID)
	}
}

func testEvents(b *bench) {
	b.t.Helper()
	c := b.collect(b.Source)
	id := b.defined()
	b.ok("Start", b.Source.Start(b.ctx, id))
	b.ok("Pause", b.Source.Pause(b.ctx, id))
	b.ok("Unpause", b.Source.Unpause(b.ctx, id))
	b.ok("Destroy", b.Source.Destroy(b.ctx, id))
	b.ok("Undefine", b.Source.Undefine(b.ctx, id, true))
	found := b.waitEvents(c, id, step{virt.EventDefined, ""}, step{virt.EventStarted, virt.ReasonBooted}, step{virt.EventSuspended, ""},
		step{virt.EventResumed, ""}, step{virt.EventStopped, virt.ReasonDestroyed}, step{virt.EventUndefined, ""})
	for i := 1; i < len(found); i++ {
		if found[i].At.IsZero() || found[i].At.Before(found[i-1].At) {
			b.t.Errorf("event %+v comes after %+v but is not later", found[i], found[i-1])
		}
	}
	if first := c.all()[0]; first.Kind != virt.EventConnected || first.Domain != "" {
		b.t.Errorf("the first event is %+v, want connected", first)
	}
}

func testEventsCancel(b *bench) {
	b.t.Helper()
	kept, ended := b.collect(b.Source), &collector{}
	cancel := b.Source.Subscribe(ended.add)
	first, second := b.newDefinition(1), b.newDefinition(1)
	b.ok("Define", b.Source.Define(b.ctx, first))
	b.waitEvents(ended, first.Spec.UUID, step{virt.EventDefined, ""})
	cancel()
	cancel()
	b.ok("Define", b.Source.Define(b.ctx, second))
	b.waitEvents(kept, second.Spec.UUID, step{virt.EventDefined, ""})
	b.never("an event after cancel", func() (bool, string) {
		seen := ended.of(second.Spec.UUID)
		return len(seen) != 0, describe(seen)
	})
}
