package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/libvirt"
	"github.com/compute-agent/compute-agent/test/lab"
)

// kinds keeps the kinds of the events that a driver tells of.
type kinds struct {
	mu   sync.Mutex
	seen []virt.EventKind
}

func (k *kinds) add(ev virt.Event) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen = append(k.seen, ev.Kind)
}

// count counts the events of one kind so far.
func (k *kinds) count(kind virt.EventKind) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, s := range k.seen {
		if s == kind {
			n++
		}
	}
	return n
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// runGuest defines and starts a guest by the driver, removes it at the end of the test, and waits until it is up.
func runGuest(t *testing.T, d *libvirt.Driver, s instance.Spec) {
	t.Helper()
	t.Cleanup(func() { removeGuest(t, d, s.UUID) })
	must(t, "Define", d.Define(t.Context(), virt.Definition{Spec: s, Generation: 1}))
	must(t, "Start", d.Start(t.Context(), s.UUID))
	waitTick(t, d, s.UUID)
}

func removeGuest(t *testing.T, d *libvirt.Driver, id string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if err := d.Destroy(ctx, id); err != nil && !errors.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := d.Undefine(ctx, id, true); err != nil {
		t.Error(err)
	}
}

// waitTick waits until the guest writes to its console from now on.
func waitTick(t *testing.T, d *libvirt.Driver, id string) {
	t.Helper()
	before := -1
	waitFor(t, time.Minute, "the guest ticks", func() bool {
		out, err := d.Console(t.Context(), id, 0)
		n := strings.Count(string(out), "tick ")
		if before < 0 && err == nil {
			before = n
		}
		return err == nil && n > before
	})
}

func TestDriverSurvivesItsLibvirt(t *testing.T) {
	l := startLab(t)
	var next atomic.Int32
	h := l.Host(1)
	d := openDriver(t, h, func(c *libvirt.Config) {
		c.CallTimeout, c.ConnectTimeout, c.PingInterval = 2*time.Second, 2*time.Second, time.Second
	})
	seen := &kinds{}
	d.Subscribe(seen.add)
	spec := specs(t, l, &next)()
	runGuest(t, d, spec)

	must(t, "kill libvirtd", h.StopLibvirt(t.Context(), true))
	waitFor(t, 10*time.Second, "disconnected", func() bool { return seen.count(virt.EventDisconnected) == 1 })
	if _, err := d.Lookup(t.Context(), spec.UUID); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Lookup without libvirtd: %v, want unavailable", err)
	}
	must(t, "start libvirtd", h.StartLibvirt(t.Context(), 30*time.Second))
	waitFor(t, 30*time.Second, "connected again", func() bool { return seen.count(virt.EventConnected) == 2 })
	dom, err := d.Lookup(t.Context(), spec.UUID)
	if err != nil || dom.State != virt.Running || !dom.Owned || dom.Generation != 1 {
		t.Errorf("after libvirtd came back: %+v, %v, want it running and ours", dom, err)
	}

	signal := libvirtd(t, h)
	signal(syscall.SIGSTOP)
	began := time.Now()
	_, err = d.Lookup(t.Context(), spec.UUID)
	if took := time.Since(began); !errors.Is(err, fault.Timeout) && !errors.Is(err, fault.Unavailable) || took > 5*time.Second {
		t.Errorf("Lookup at a libvirtd that hangs: %v after %s, want timeout or unavailable within its bound", err, took)
	}
	waitFor(t, 20*time.Second, "it is noticed", func() bool { return seen.count(virt.EventDisconnected) == 2 })
	signal(syscall.SIGCONT)
	waitFor(t, 30*time.Second, "connected again", func() bool { return seen.count(virt.EventConnected) == 3 })
	must(t, "Pause", d.Pause(t.Context(), spec.UUID))
	waitFor(t, 10*time.Second, "events flow again", func() bool { return seen.count(virt.EventSuspended) == 1 })
}

// libvirtd gives a way to signal the libvirtd of a host; at the end it goes on.
func libvirtd(t *testing.T, h *lab.Host) func(syscall.Signal) {
	t.Helper()
	text, err := os.ReadFile(h.Outside("/libvirtd.pid"))
	must(t, "libvirtd's process id", err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must(t, "libvirtd's process id", err)
	signal := func(s syscall.Signal) { must(t, "signal", syscall.Kill(pid, s)) }
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	return signal
}

// image makes a small base image that both hosts see, with a text at its start.
func image(t *testing.T, l *lab.Lab, name string, format ...string) string {
	t.Helper()
	dir, err := l.Dir("images")
	must(t, "folder", err)
	must(t, "folder", os.Chmod(dir, 0o755))
	raw := filepath.Join(dir, name+".raw")
	must(t, "image", os.WriteFile(raw, append([]byte("base of "+name), make([]byte, 4<<20)...), 0o644))
	if len(format) == 0 {
		return raw
	}
	path := filepath.Join(dir, name+"."+format[0])
	out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-O", format[0], raw, path).CombinedOutput()
	must(t, string(out), err)
	return path
}

func TestDriverTakesEveryKindOfDisk(t *testing.T) {
	l := startLab(t)
	var next atomic.Int32
	d := openDriver(t, l.Host(1))
	spec := specs(t, l, &next)()
	spec.Disks = []instance.Disk{
		{Source: instance.DiskSource{Image: image(t, l, "one")}, SizeGiB: 1},
		{Source: instance.DiskSource{Image: image(t, l, "two", "qcow2")}, Bus: "scsi", BootIndex: 1},
		{Source: instance.DiskSource{File: image(t, l, "three")}, Bus: "sata", ReadOnly: false},
		{Source: instance.DiskSource{File: image(t, l, "four")}, ReadOnly: true, Shared: true},
	}
	spec.Firmware = "bios"
	if reasons, err := d.Check(t.Context(), virt.Definition{Spec: spec}); err != nil || len(reasons) != 0 {
		t.Errorf("Check = %q, %v, want no reasons", reasons, err)
	}
	for cpu, reasons := range map[string]int{
		"<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>":         0,
		"<cpu mode='custom' match='exact'><model fallback='forbid'>Skylake-Server</model></cpu>": 1, // emulation knows no AVX-512
	} {
		got, err := d.Check(t.Context(), virt.Definition{Spec: spec, CPU: cpu})
		if err != nil || len(got) != reasons {
			t.Errorf("Check of a guest that comes with %s = %q, %v, want %d reasons", cpu, got, err, reasons)
		}
		t.Logf("%s: %q", cpu, got)
	}
	runGuest(t, d, spec)
	stats, err := d.Stats(t.Context(), spec.UUID)
	must(t, "Stats", err)
	for _, target := range []string{"vda", "sda", "sdb", "vdb"} {
		if _, ok := stats.Disks[target]; !ok {
			t.Errorf("no figures of disk %s among %v", target, stats.Disks)
		}
	}
	if _, ok := stats.Nics[spec.Ports[0].Device()]; !ok {
		t.Errorf("no figures of %s among %v", spec.Ports[0].Device(), stats.Nics)
	}
	bad := spec
	bad.CPU, bad.Firmware = instance.CPU{Mode: "custom", Model: "abacus"}, "efi"
	bad.Disks = append([]instance.Disk{{Source: instance.DiskSource{Volume: "no/where"}}}, spec.Disks...)
	reasons, err := d.Check(t.Context(), virt.Definition{Spec: bad})
	if err != nil || len(reasons) < 2 {
		t.Errorf("Check of an unknown CPU, a missing volume and efi = %q, %v, want each", reasons, err)
	}
	t.Logf("reasons: %q", reasons)
}

// Both ways of copying disks: overlays whose bases are on both hosts, and a full copy. What the guest's disk held before
// is on the destination afterwards.
func TestDriverCopiesDisks(t *testing.T) {
	l := startLab(t)
	var next atomic.Int32
	source, dest := openDriver(t, l.Host(1)), openDriver(t, l.Host(2))
	base := image(t, l, "base")
	for name, disks := range map[string][]instance.Disk{
		"overlay": {{Source: instance.DiskSource{Image: base}, SizeGiB: 1}},
		"full":    {{Source: instance.DiskSource{File: hostInstances + "/own.raw"}}}, // each host has a file of its own there
	} {
		t.Run(name, func(t *testing.T) {
			spec := specs(t, l, &next)()
			spec.Disks = disks
			held := filepath.Join(hostInstances, spec.UUID, "disk0.qcow2")
			if file := disks[0].Source.File; file != "" {
				held = file
				must(t, "folder", os.MkdirAll(filepath.Dir(l.Host(1).Outside(file)), 0o755))
				must(t, "folder", os.MkdirAll(filepath.Dir(l.Host(2).Outside(file)), 0o755))
				must(t, "disk", os.WriteFile(l.Host(1).Outside(file), nil, 0o600))
				must(t, "disk", os.Truncate(l.Host(1).Outside(file), 1<<30))
				must(t, "disk", writeAt(l.Host(1).Outside(file), "held by the guest"))
			}
			t.Cleanup(func() { removeGuest(t, dest, spec.UUID) })
			runGuest(t, source, spec)
			r := virt.MigrateRequest{Instance: spec.UUID, Migration: instance.NewUUID(), Generation: 2, Disks: []string{"vda"}}
			def := virt.Definition{Spec: spec, Generation: 2, Migration: r.Migration}
			facts, err := source.Storage(t.Context(), def)
			if err != nil || len(facts.Disks) != 1 || facts.Disks[0].CapacityBytes != 1<<30 {
				t.Fatalf("Storage = %+v, %v, want one disk of 1 GiB", facts, err)
			}
			def.Copies = facts.Disks
			r.Inbound, err = dest.PrepareIncoming(t.Context(), virt.Incoming{Definition: def})
			must(t, "PrepareIncoming", err)
			must(t, "Migrate", source.Migrate(t.Context(), r))
			waitTick(t, dest, spec.UUID)
			job, err := dest.CompletedJob(t.Context(), spec.UUID)
			if err != nil || job.Type != virt.JobCompleted {
				t.Errorf("CompletedJob = %+v, %v", job, err)
			}
			t.Logf("downtime %s, elapsed %s, disk %+v", job.Downtime, job.Elapsed, job.Disk)
			must(t, "Destroy", dest.Destroy(t.Context(), spec.UUID))
			want := "base of base"
			if disks[0].Source.File != "" {
				want = "held by the guest"
			}
			if got := startOf(t, l.Host(2).Outside(held), len(want)); got != want {
				t.Errorf("the disk on the destination begins with %q, want %q", got, want)
			}
		})
	}
}

func writeAt(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), 0)
	return errors.Join(err, f.Close())
}

// startOf reads the first bytes that a guest would read from a disk.
func startOf(t *testing.T, path string, n int) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	out, err := exec.CommandContext(t.Context(), "qemu-img", "dd", "-U", "-O", "raw", "bs=512", "count=1", "if="+path, "of="+raw).CombinedOutput()
	must(t, string(out), err)
	text, err := os.ReadFile(raw)
	must(t, "read", err)
	return string(text[:n])
}

// An agent that dies in the middle of a migration: libvirt goes on, and the next driver finds the job.
func TestDriverFindsARunningJob(t *testing.T) {
	l := startLab(t)
	var next atomic.Int32
	source, dest := openDriver(t, l.Host(1)), openDriver(t, l.Host(2))
	spec := specs(t, l, &next)()
	t.Cleanup(func() { removeGuest(t, dest, spec.UUID) })
	runGuest(t, source, spec)
	r := virt.MigrateRequest{Instance: spec.UUID, Migration: instance.NewUUID(), Generation: 2, BandwidthMiB: 4, AutoConverge: true}
	var err error
	r.Inbound, err = dest.PrepareIncoming(t.Context(), virt.Incoming{Definition: virt.Definition{Spec: spec, Generation: 2, Migration: r.Migration}})
	must(t, "PrepareIncoming", err)
	done := make(chan error, 1)
	first, err := libvirt.Open(t.Context(), libvirt.Config{SocketPath: l.Host(1).Socket(), InstancesPath: hostInstances, VirtType: "qemu"})
	must(t, "Open", err)
	waitFor(t, 10*time.Second, "connected", func() bool { _, err := first.List(t.Context()); return err == nil })
	go func() { done <- first.Migrate(t.Context(), r) }()
	moving := func() bool {
		j, err := source.Job(t.Context(), spec.UUID)
		return err == nil && j.Type == virt.JobUnbounded && j.Memory.Processed > 0
	}
	waitFor(t, 20*time.Second, "memory moves", moving)
	must(t, "Close", first.Close())
	if err := <-done; !errors.Is(err, fault.Unavailable) {
		t.Errorf("Migrate of a driver that was closed: %v, want unavailable", err)
	}
	waitFor(t, 10*time.Second, "the job goes on", moving)
	second := r
	second.Migration = instance.NewUUID()
	if err := source.Migrate(t.Context(), second); !errors.Is(err, fault.Conflict) {
		t.Errorf("another migration meanwhile: %v, want conflict", err)
	}
	must(t, "SetBandwidth", source.SetBandwidth(t.Context(), spec.UUID, 0))
	waitFor(t, time.Minute, "it arrives", func() bool {
		d, err := dest.Lookup(t.Context(), spec.UUID)
		return err == nil && d.State == virt.Running && d.Generation == 2
	})
	waitFor(t, 30*time.Second, "it is gone from the source", func() bool {
		_, err := source.Lookup(t.Context(), spec.UUID)
		return errors.Is(err, fault.NotFound)
	})
}

func TestDriverMovesOnParallelConnections(t *testing.T) {
	l := startLab(t)
	var next atomic.Int32
	source, dest := openDriver(t, l.Host(1)), openDriver(t, l.Host(2))
	spec := specs(t, l, &next)()
	t.Cleanup(func() { removeGuest(t, dest, spec.UUID) })
	runGuest(t, source, spec)
	r := virt.MigrateRequest{Instance: spec.UUID, Migration: instance.NewUUID(), Generation: 2, Parallel: 2}
	var err error
	r.Inbound, err = dest.PrepareIncoming(t.Context(), virt.Incoming{Definition: virt.Definition{Spec: spec, Generation: 2, Migration: r.Migration}})
	must(t, "PrepareIncoming", err)
	must(t, "Migrate", source.Migrate(t.Context(), r))
	waitTick(t, dest, spec.UUID)
}

// TestDriverCost tells what calls cost on a real libvirtd; it fails only if they are absurd.
func TestDriverCost(t *testing.T) {
	l := startLab(t)
	var next atomic.Int32
	d := openDriver(t, l.Host(1))
	make1 := specs(t, l, &next)
	const domains = 20
	for range domains {
		s := make1()
		t.Cleanup(func() { removeGuest(t, d, s.UUID) })
		must(t, "Define", d.Define(t.Context(), virt.Definition{Spec: s, Generation: 1}))
	}
	for name, f := range map[string]func() error{
		"Lookup": func() error {
			_, err := d.Lookup(t.Context(), "00000000-0000-4000-8000-000000000000")
			return expected(err, fault.NotFound)
		},
		"List": func() error { _, err := d.List(t.Context()); return err },
		"Host": func() error { _, err := d.Host(t.Context()); return err },
	} {
		must(t, name, f())
		const rounds = 50
		began := time.Now()
		for range rounds {
			must(t, name, f())
		}
		each := time.Since(began) / rounds
		t.Logf("%s: %s each (%d domains)", name, each.Round(time.Microsecond), domains)
		if each > 5*time.Second {
			t.Errorf("%s takes %s", name, each)
		}
	}
}

func expected(err error, kind fault.Kind) error {
	if errors.Is(err, kind) {
		return nil
	}
	return fmt.Errorf("not of kind %q: %w", string(kind), err)
}

// What List says of a domain is what Lookup says, in every state that a domain can be brought into.
func TestDriverListsWhatItLooksUp(t *testing.T) {
	l := startLab(t)
	var next atomic.Int32
	d := openDriver(t, l.Host(1))
	make1 := specs(t, l, &next)
	off, on, paused, saved := make1(), make1(), make1(), make1()
	for _, s := range []instance.Spec{off, on, paused, saved} {
		t.Cleanup(func() { removeGuest(t, d, s.UUID) })
		must(t, "Define", d.Define(t.Context(), virt.Definition{Spec: s, Generation: 3, Migration: instance.NewUUID()}))
		if s.UUID != off.UUID {
			must(t, "Start", d.Start(t.Context(), s.UUID))
		}
	}
	must(t, "Pause", d.Pause(t.Context(), paused.UUID))
	must(t, "Save", d.Save(t.Context(), saved.UUID))
	defineForeign(t, l)
	list, err := d.List(t.Context())
	if err != nil || len(list) != 5 {
		t.Fatalf("List = %+v, %v, want five domains", list, err)
	}
	for _, got := range list {
		if want, err := d.Lookup(t.Context(), got.UUID); err != nil || got != want {
			t.Errorf("List says  %+v\nLookup says %+v, %v", got, want, err)
		}
	}
}

// An interface is attached to and detached from a running guest, and is in its definition accordingly.
func TestDriverPlugsInterfaces(t *testing.T) {
	l := startLab(t)
	var next atomic.Int32
	d := openDriver(t, l.Host(1), func(c *libvirt.Config) { c.DetachTimeout = 5 * time.Second })
	make1 := specs(t, l, &next)
	spec, extra := make1(), make1().Ports[0]
	runGuest(t, d, spec)
	has := func() bool {
		s, err := d.Stats(t.Context(), spec.UUID)
		must(t, "Stats", err)
		_, ok := s.Nics[extra.Device()]
		return ok
	}
	for range 2 {
		must(t, "AttachPort", d.AttachPort(t.Context(), spec.UUID, extra))
		if !has() {
			t.Error("the guest does not have the interface after AttachPort")
		}
	}
	waitTick(t, d, spec.UUID)
	for range 2 {
		began := time.Now()
		must(t, "DetachPort", d.DetachPort(t.Context(), spec.UUID, extra))
		t.Logf("DetachPort took %s", time.Since(began).Round(time.Millisecond))
		if has() {
			t.Error("the guest has the interface after DetachPort")
		}
	}
	must(t, "Destroy", d.Destroy(t.Context(), spec.UUID))
	must(t, "AttachPort", d.AttachPort(t.Context(), spec.UUID, extra))
	must(t, "Start", d.Start(t.Context(), spec.UUID))
	if !has() {
		t.Error("a port attached to a guest that is off is not there after its start")
	}
}
