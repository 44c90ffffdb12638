package libvirt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// guest puts a domain of ours into the daemon and gives a request that moves it.
func (r rig) guest(t *testing.T) virt.MigrateRequest {
	t.Helper()
	id := uuid.New()
	xml, err := domxml.Build(virt.Definition{Spec: instance.Spec{UUID: id.String(), VCPUs: 1, MemoryMiB: 128}, Generation: 1}, domxml.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	r.set(func(d *daemon) { d.domains[id] = xml })
	return virt.MigrateRequest{
		Instance: id.String(), Migration: uuid.NewString(), Generation: 2, Inbound: virt.Inbound{URI: "qemu+tcp://h2/system"},
	}
}

// readPerform reads what perform was asked for.
func readPerform(t *testing.T, args []byte) (uri string, params fields, flags golibvirt.DomainMigrateFlags) {
	t.Helper()
	r := &reader{rest: args}
	r.domain()
	if r.uint32() == 1 {
		uri = r.string()
	}
	params = fieldsOf(r.params())
	r.string() // the cookie
	flags = golibvirt.DomainMigrateFlags(r.int32())
	if r.err != nil {
		t.Errorf("perform's arguments can't be read: %v", r.err)
	}
	return uri, params, flags
}

func TestMigrateSendsTheNewOwner(t *testing.T) {
	withRig(t, nil, func(r rig) {
		t := r.t
		req := r.guest(t)
		r.set(func(d *daemon) {
			d.script[procPerform] = func(_ *daemonConn, args []byte) ([]byte, error) {
				uri, params, flags := readPerform(t, args)
				if uri != req.Inbound.URI || flags != 1|2|8|16 {
					t.Errorf("perform to %q with flags %d, want %q and 27", uri, flags, req.Inbound.URI)
				}
				for _, name := range []string{"destination_xml", "persistent_xml"} {
					info, err := domxml.Parse(params.text(name))
					if err != nil || !info.Owned || info.Metadata.Generation != 2 || info.Metadata.Migration != req.Migration {
						t.Errorf("%s holds %+v, %v, want generation 2 and the migration", name, info.Metadata, err)
					}
				}
				return xdr(0), nil
			}
		})
		before := r.dialled()
		if err := r.d.Migrate(t.Context(), req); err != nil {
			t.Errorf("Migrate: %v", err)
		}
		synctest.Wait()
		if r.dialled() != before+1 || r.open() != 2 {
			t.Errorf("%d dials and %d open connections, want one more dial, which is closed again", r.dialled()-before, r.open())
		}
	})
}

func TestPerformOutlivesItsCaller(t *testing.T) {
	withRig(t, nil, func(r rig) {
		t := r.t
		req := r.guest(t)
		release, ended := make(chan struct{}), make(chan struct{})
		r.set(func(d *daemon) {
			d.script[procPerform] = func(*daemonConn, []byte) ([]byte, error) {
				defer close(ended)
				<-release
				return xdr(0), nil
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.d.Migrate(ctx, req) }()
		synctest.Wait()
		wantKind(t, "a second migration of the guest", r.d.Migrate(t.Context(), req), fault.Conflict)
		cancel()
		wantKind(t, "Migrate after its caller left", <-done, fault.Cancelled)
		time.Sleep(2 * time.Hour)
		if _, err := r.hostname(t.Context()); err != nil {
			t.Errorf("another call during a long perform: %v", err)
		}
		wantKind(t, "a second migration while the first goes on", r.d.Migrate(t.Context(), req), fault.Conflict)
		close(release)
		<-ended
		synctest.Wait()
		r.set(func(d *daemon) {
			d.script[procPerform] = func(*daemonConn, []byte) ([]byte, error) { return xdr(0), nil }
		})
		if err := r.d.Migrate(t.Context(), req); err != nil {
			t.Errorf("a migration after the first: %v", err)
		}
		r.log.wants(t, "connected")
	})
}

func TestPerformsAreBounded(t *testing.T) {
	two := func(_ *daemon, c *Config) { c.MaxMigrations = 2 }
	withRig(t, two, func(r rig) {
		t := r.t
		release := make(chan struct{})
		r.set(func(d *daemon) {
			d.script[procPerform] = func(*daemonConn, []byte) ([]byte, error) { <-release; return xdr(0), nil }
		})
		done := make(chan error, 3)
		for range 3 {
			req := r.guest(t)
			go func() { done <- r.d.Migrate(t.Context(), req) }()
		}
		synctest.Wait()
		r.set(func(d *daemon) {
			if d.calls[procPerform] != 2 {
				t.Errorf("%d performs at a time, want 2", d.calls[procPerform])
			}
		})
		close(release)
		for range 3 {
			if err := <-done; err != nil {
				t.Errorf("a migration that waited its turn: %v", err)
			}
		}
	})
}

func TestMigrateToSelfIsRefused(t *testing.T) {
	withRig(t, nil, func(r rig) {
		t := r.t
		req := r.guest(t)
		for _, uri := range []string{"qemu+tcp://h1/system", "qemu:///system", "qemu+tls://localhost/system"} {
			req.Inbound.URI = uri
			wantKind(t, uri, r.d.Migrate(t.Context(), req), fault.InvalidArgument)
		}
		r.set(func(d *daemon) {
			if d.calls[procPerform] != 0 {
				t.Error("a perform was sent")
			}
		})
	})
}

func TestForeignDomainIsNotTouched(t *testing.T) {
	withRig(t, nil, func(r rig) {
		t := r.t
		req := r.guest(t)
		r.set(func(d *daemon) {
			d.script[procMetadata] = func(*daemonConn, []byte) ([]byte, error) {
				return nil, golibvirt.Error{Code: 80, Message: "metadata not found"}
			}
		})
		ctx, id := t.Context(), req.Instance
		for name, err := range map[string]error{
			"Start": r.d.Start(ctx, id), "Destroy": r.d.Destroy(ctx, id), "Pause": r.d.Pause(ctx, id), "Unpause": r.d.Unpause(ctx, id),
			"Save": r.d.Save(ctx, id), "Restore": r.d.Restore(ctx, id), "Undefine": r.d.Undefine(ctx, id, true),
			"Shutdown": r.d.Shutdown(ctx, id, virt.ShutdownACPI), "AbortJob": r.d.AbortJob(ctx, id), "Migrate": r.d.Migrate(ctx, req),
		} {
			wantKind(t, name, err, fault.Conflict)
		}
	})
}

// incoming is a guest that arrives with an overlay, a shared file and a disk of its own.
func incoming(t *testing.T, dir string) virt.Incoming {
	t.Helper()
	base := filepath.Join(dir, "base.raw")
	if err := os.WriteFile(base, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return virt.Incoming{Definition: virt.Definition{
		Copies:     []instance.DiskFacts{{Target: "vda", Format: "qcow2", CapacityBytes: 1 << 30}, {Target: "vdb", Format: "raw", CapacityBytes: 12345}},
		Generation: 2, Migration: uuid.NewString(),
		Spec: instance.Spec{
			UUID: uuid.NewString(), VCPUs: 1, MemoryMiB: 128,
			Disks: []instance.Disk{
				{Source: instance.DiskSource{Image: base}, SizeGiB: 1},
				{Source: instance.DiskSource{File: filepath.Join(dir, "own.raw")}},
			},
		},
	}}
}

// tool is a stand-in for qemu-img that makes its last path, so that these tests
// need no QEMU.
func tool(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qemu-img")
	script := "#!/bin/sh\nfor a; do case $a in /*.raw|/*.part) last=$a;; esac; done\necho made >\"$last\"\n"
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestIncomingIsPreparedAndCancelled(t *testing.T) {
	withTool := func(_ *daemon, c *Config) { c.QemuImg = tool(t) }
	dir := t.TempDir()
	withRig(t, withTool, func(r rig) {
		t := r.t
		in := incoming(t, dir)
		id := in.Spec.UUID
		to, err := r.d.PrepareIncoming(t.Context(), in)
		if err != nil || to.URI != "qemu+tls://h1/system" || to.MigrateURI != "" {
			t.Fatalf("PrepareIncoming = %+v, %v", to, err)
		}
		if again, err := r.d.PrepareIncoming(t.Context(), in); err != nil || again != to {
			t.Errorf("again: %+v, %v, want %+v", again, err, to)
		}
		made := []string{
			domxml.ConsolePath(r.d.cfg.InstancesPath, id), domxml.OverlayPath(r.d.cfg.InstancesPath, id, 0), in.Spec.Disks[1].Source.File,
		}
		for _, path := range made {
			if !exists(path) {
				t.Errorf("%s is missing", path)
			}
		}
		other := in
		other.Migration = uuid.NewString()
		_, err = r.d.PrepareIncoming(t.Context(), other)
		wantKind(t, "another migration onto what the first left", err, fault.Conflict)
		for range 2 {
			if err := r.d.CancelIncoming(t.Context(), id, other.Migration); err != nil || !exists(made[0]) {
				t.Errorf("cancelling another migration: %v, the folder must stay", err)
			}
		}
		for range 2 {
			if err := r.d.CancelIncoming(t.Context(), id, in.Migration); err != nil {
				t.Errorf("CancelIncoming: %v", err)
			}
		}
		for _, path := range append(made, r.d.folder(id)) {
			if exists(path) {
				t.Errorf("%s is still there", path)
			}
		}
	})
}

func TestSharedFolderOfTheRunningGuestStays(t *testing.T) {
	withTool := func(_ *daemon, c *Config) { c.QemuImg = tool(t) }
	dir := t.TempDir()
	withRig(t, withTool, func(r rig) {
		t := r.t
		in := incoming(t, dir)
		in.Spec.Disks = in.Spec.Disks[:1]
		in.Spec.Disks[0].Shared = true
		in.Copies = nil
		overlay := domxml.OverlayPath(r.d.cfg.InstancesPath, in.Spec.UUID, 0)
		if err := os.MkdirAll(filepath.Dir(overlay), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(overlay, []byte("the guest's"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := r.d.PrepareIncoming(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		if err := r.d.CancelIncoming(t.Context(), in.Spec.UUID, in.Migration); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(overlay); err != nil || string(text) != "the guest's" {
			t.Errorf("the overlay holds %q, %v, want it untouched", text, err)
		}
		if exists(r.d.notePath(in.Spec.UUID)) {
			t.Error("the note is still there")
		}
	})
}

// Every state in which the guest may be somebody's is a conflict; only one that is
// still arriving for this very migration is ended.
func TestCancelIncomingSparesGuests(t *testing.T) {
	cases := []struct {
		name          string
		state, reason int32
		migration     string // in the domain's metadata; "" is another one
		want          fault.Kind
	}{
		{"running", 1, 2, "m", fault.Conflict},
		{"running in post-copy", 1, 10, "m", fault.Conflict},
		{"paused in post-copy", 3, 12, "m", fault.Conflict},
		{"paused, post-copy failed", 3, 13, "m", fault.Conflict},
		{"paused by user", 3, 1, "m", fault.Conflict},
		{"off", 5, 1, "m", fault.Conflict},
		{"arriving for another migration", 3, 2, "", fault.Conflict},
		{"arriving", 3, 2, "m", ""},
		{"about to arrive", 3, 11, "m", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			withRig(t, nil, func(r rig) {
				t := r.t
				id, migration := uuid.New(), uuid.NewString()
				mark := uuid.NewString()
				if c.migration != "" {
					mark = migration
				}
				destroyed := r.arrivingDomain(t, id, mark, c.state, c.reason)
				err := r.d.CancelIncoming(t.Context(), id.String(), migration)
				wantKind(t, c.name, err, c.want)
				if *destroyed != (c.want == "") {
					t.Errorf("destroyed: %t", *destroyed)
				}
			})
		})
	}
}

// The procedures that only these tests need.
const (
	procIsPersistent = 151
	procDestroyFlags = 234
)

// arrivingDomain puts a domain in a state into the daemon and tells whether it was destroyed.
func (r rig) arrivingDomain(t *testing.T, id uuid.UUID, migration string, state, reason int32) *bool {
	t.Helper()
	def := virt.Definition{Spec: instance.Spec{UUID: id.String(), VCPUs: 1, MemoryMiB: 128}, Generation: 2, Migration: migration}
	xml, err := domxml.Build(def, domxml.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	destroyed := false
	r.set(func(d *daemon) {
		d.domains[id] = xml
		d.script[procState] = func(*daemonConn, []byte) ([]byte, error) { return xdr(state, reason), nil }
		d.script[procIsPersistent] = func(*daemonConn, []byte) ([]byte, error) { return xdr(0), nil }
		d.script[procDestroyFlags] = func(*daemonConn, []byte) ([]byte, error) { destroyed = true; return nil, nil }
	})
	return &destroyed
}

func TestQemuImgFailureIsTold(t *testing.T) {
	broken := func(_ *daemon, c *Config) { c.QemuImg = "/nonexistent/qemu-img" }
	dir := t.TempDir()
	withRig(t, broken, func(r rig) {
		t := r.t
		in := incoming(t, dir)
		_, err := r.d.PrepareIncoming(t.Context(), in)
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "qemu-img") {
			t.Errorf("PrepareIncoming without qemu-img: %v, want it named", err)
		}
		if err := r.d.CancelIncoming(t.Context(), in.Spec.UUID, in.Migration); err != nil || exists(r.d.folder(in.Spec.UUID)) {
			t.Errorf("CancelIncoming after it: %v, want nothing left", err)
		}
	})
}
