package virttest

import (
	"errors"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

func testDefine(b *bench) {
	b.t.Helper()
	first, second := b.newDefinition(1), b.newDefinition(1)
	for _, d := range []virt.Definition{first, second} {
		b.ok("Define", b.Source.Define(b.ctx, d))
	}
	d := b.lookup(b.Source, first.Spec.UUID)
	want := virt.Domain{
		UUID: first.Spec.UUID, Name: d.Name, ID: -1, State: virt.Shutoff, Reason: d.Reason, Persistent: true, Owned: true,
		Generation: 1, VCPUs: first.Spec.VCPUs, MemoryMiB: first.Spec.MemoryMiB,
	}
	if d != want {
		b.t.Errorf("Lookup after Define = %+v, want %+v", d, want)
	}
	if d.Name == "" {
		b.t.Error("Lookup after Define: the domain has no name")
	}
	list, err := b.Source.List(b.ctx)
	b.ok("List", err)
	for _, d := range []virt.Definition{first, second} {
		if n := count(list, d.Spec.UUID); n != 1 {
			b.t.Errorf("List holds %s %d times, want once", d.Spec.UUID, n)
		}
	}
	other, err := b.Dest.List(b.ctx)
	b.ok("List on the other host", err)
	if count(other, first.Spec.UUID) != 0 {
		b.t.Error("the other host lists a domain that is not its own")
	}
	b.ok("Undefine", b.Source.Undefine(b.ctx, first.Spec.UUID, true))
	b.gone(b.Source, first.Spec.UUID)
	b.lookup(b.Source, second.Spec.UUID)
}

func count(list []virt.Domain, id string) int {
	n := 0
	for _, d := range list {
		if d.UUID == id {
			n++
		}
	}
	return n
}

func testUndefine(b *bench) {
	b.t.Helper()
	d := b.newDefinition(1)
	b.ok("Undefine of what was never defined", b.Source.Undefine(b.ctx, d.Spec.UUID, true))
	b.ok("Define", b.Source.Define(b.ctx, d))
	b.ok("Define again", b.Source.Define(b.ctx, d))
	for _, files := range []bool{false, false, true, true} {
		b.ok("Undefine", b.Source.Undefine(b.ctx, d.Spec.UUID, files))
		b.gone(b.Source, d.Spec.UUID)
	}
	b.ok("Define after Undefine", b.Source.Define(b.ctx, d))
	b.ok("Start", b.Source.Start(b.ctx, d.Spec.UUID))
	b.wants(fault.Conflict, "Undefine of a running guest", b.Source.Undefine(b.ctx, d.Spec.UUID, true))
	b.waitState(b.Source, d.Spec.UUID, virt.Running)
	b.ok("Destroy", b.Source.Destroy(b.ctx, d.Spec.UUID))
	b.ok("Undefine without files", b.Source.Undefine(b.ctx, d.Spec.UUID, false))
	b.ok("Define on kept files", b.Source.Define(b.ctx, d))
	b.ok("Start on kept files", b.Source.Start(b.ctx, d.Spec.UUID))
}

func testRedefine(b *bench) {
	b.t.Helper()
	id := b.running()
	before := b.lookup(b.Source, id)
	b.ok("Define of a running guest", b.Source.Define(b.ctx, virt.Definition{Spec: b.specs[id], Generation: 2}))
	after := b.lookup(b.Source, id)
	if after.ID != before.ID || after.State != virt.Running {
		b.t.Errorf("after Define the guest is %+v, want it running as ID %d", after, before.ID)
	}
	b.ok("Destroy", b.Source.Destroy(b.ctx, id))
	if d := b.lookup(b.Source, id); !d.Persistent || d.Generation != 2 {
		b.t.Errorf("off after a redefinition: %+v, want it persistent with generation 2", d)
	}
}

func testGeneration(b *bench) {
	b.t.Helper()
	d := b.newDefinition(1)
	d.Generation, d.Migration = 7, instance.NewUUID()
	b.ok("Define", b.Source.Define(b.ctx, d))
	if got := b.lookup(b.Source, d.Spec.UUID); got.Generation != 7 || got.Migration != d.Migration || !got.Owned {
		b.t.Errorf("Lookup = %+v, want owned, generation 7, migration %s", got, d.Migration)
	}
	b.ok("Start", b.Source.Start(b.ctx, d.Spec.UUID))
	if got := b.lookup(b.Source, d.Spec.UUID); got.Generation != 7 || got.Migration != d.Migration || !got.Owned {
		b.t.Errorf("Lookup of the running guest = %+v, want owned, generation 7, migration %s", got, d.Migration)
	}
	b.ok("Destroy", b.Source.Destroy(b.ctx, d.Spec.UUID))
	d.Generation, d.Migration = 1<<53+1, ""
	b.ok("Define anew", b.Source.Define(b.ctx, d))
	if got := b.lookup(b.Source, d.Spec.UUID); got.Generation != 1<<53+1 || got.Migration != "" {
		b.t.Errorf("Lookup = %+v, want generation %d without a migration", got, uint64(1<<53+1))
	}
}

func testNotFound(b *bench) {
	b.t.Helper()
	id, h := instance.NewUUID(), b.Source
	_, err := h.Lookup(b.ctx, id)
	b.wants(fault.NotFound, "Lookup", err)
	_, err = h.Console(b.ctx, id, 0)
	b.wants(fault.NotFound, "Console", err)
	_, err = h.Stats(b.ctx, id)
	b.wants(fault.NotFound, "Stats", err)
	_, err = h.Job(b.ctx, id)
	b.wants(fault.NotFound, "Job", err)
	_, err = h.CompletedJob(b.ctx, id)
	b.wants(fault.NotFound, "CompletedJob", err)
	b.wants(fault.NotFound, "Start", h.Start(b.ctx, id))
	b.wants(fault.NotFound, "Shutdown", h.Shutdown(b.ctx, id, virt.ShutdownACPI))
	b.wants(fault.NotFound, "Destroy", h.Destroy(b.ctx, id))
	b.wants(fault.NotFound, "Pause", h.Pause(b.ctx, id))
	b.wants(fault.NotFound, "Unpause", h.Unpause(b.ctx, id))
	b.wants(fault.NotFound, "Save", h.Save(b.ctx, id))
	b.wants(fault.NotFound, "Restore", h.Restore(b.ctx, id))
	b.wants(fault.NotFound, "AbortJob", h.AbortJob(b.ctx, id))
	b.wants(fault.NotFound, "SetMaxDowntime", h.SetMaxDowntime(b.ctx, id, time.Second))
	b.wants(fault.NotFound, "SetBandwidth", h.SetBandwidth(b.ctx, id, 1))
	b.wants(fault.NotFound, "StartPostCopy", h.StartPostCopy(b.ctx, id))
	b.ok("Undefine", h.Undefine(b.ctx, id, true))
	b.ok("CancelIncoming", h.CancelIncoming(b.ctx, id, instance.NewUUID()))

	d := b.newDefinition(1)
	r := b.newMigration(b.Dest, d.Spec.UUID, 2)
	b.wants(fault.NotFound, "Migrate", h.Migrate(b.ctx, r))
	b.ok("CancelIncoming", b.Dest.CancelIncoming(b.ctx, r.Instance, r.Migration))
}

func testCheck(b *bench) {
	b.t.Helper()
	d := b.newDefinition(1)
	reasons, err := b.Source.Check(b.ctx, d)
	b.ok("Check", err)
	if len(reasons) != 0 {
		b.t.Errorf("Check of a spec that this host can run = %q, want no reasons", reasons)
	}
	d.Spec.Machine = "no-such-machine-0.1"
	d.Spec.Disks = append(slices.Clone(d.Spec.Disks), instance.Disk{Source: instance.DiskSource{File: "/nonexistent/virttest/disk.raw"}, Format: "raw"})
	reasons, err = b.Source.Check(b.ctx, d)
	b.ok("Check", err)
	if len(reasons) < 2 {
		b.t.Errorf("Check of an unknown machine type and a missing file = %q, want both reasons", reasons)
	}
	if _, err := b.Source.Lookup(b.ctx, d.Spec.UUID); !errors.Is(err, fault.NotFound) {
		b.t.Errorf("after Check, Lookup: %v, want not_found: Check changes nothing", err)
	}
}

func testForeign(b *bench) {
	b.t.Helper()
	id := b.Foreign(b.t)
	before := b.lookup(b.Source, id)
	if before.Owned || before.Generation != 0 {
		b.t.Errorf("a foreign domain is %+v, want it not owned, without a generation", before)
	}
	list, err := b.Source.List(b.ctx)
	b.ok("List", err)
	if count(list, id) != 1 {
		b.t.Error("List leaves the foreign domain out")
	}
	d := b.newDefinition(1)
	d.Spec.UUID = id
	b.wants(fault.Conflict, "Define over a foreign domain", b.Source.Define(b.ctx, d))
	b.wants(fault.Conflict, "Destroy of a foreign domain", b.Source.Destroy(b.ctx, id))
	b.wants(fault.Conflict, "Undefine of a foreign domain", b.Source.Undefine(b.ctx, id, true))
	if after := b.lookup(b.Source, id); after != before {
		b.t.Errorf("the foreign domain was %+v and is %+v", before, after)
	}
}

func testHost(b *bench) {
	b.t.Helper()
	source, err := b.Source.Host(b.ctx)
	b.ok("Host", err)
	dest, err := b.Dest.Host(b.ctx)
	b.ok("Host", err)
	for _, h := range []virt.Host{source, dest} {
		if h.Hostname == "" || h.MachineID == "" || h.Driver == "" || h.HypervisorType == "" || h.Arch == "" {
			b.t.Errorf("Host = %+v, want host name, machine id, driver, type and architecture", h)
		}
		if h.VCPUs < 1 || h.MemoryMiB < 1 || h.DiskGiB < 1 || h.DiskFreeGiB > h.DiskGiB {
			b.t.Errorf("Host = %+v, want vCPUs, memory and disk, and no more free than there is", h)
		}
	}
	if source.MachineID == dest.MachineID || source.Hostname == dest.Hostname {
		b.t.Errorf("the two hosts are %s (%s) and %s (%s), want different names and machine ids",
			source.Hostname, source.MachineID, dest.Hostname, dest.MachineID)
	}
}
