package fake_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
	"github.com/compute-agent/compute-agent/pkg/virt/virttest"
)

var (
	_ virttest.Driver = (*fake.Driver)(nil)
	_ virttest.Ports  = (*fake.Driver)(nil)
)

// newSpec is a small guest.
func newSpec() instance.Spec {
	id := instance.NewUUID()
	return instance.Spec{
		UUID: id, Name: "guest-" + id[len(id)-6:], VCPUs: 1, MemoryMiB: 128, Machine: "pc-q35-7.2",
		Boot:  instance.Boot{Kernel: "/boot/vmlinuz"},
		Ports: []instance.Port{newPort()},
	}
}

func newPort() instance.Port {
	id := uuid.NewString() // a random one: a tap's name is the first 11 characters of it
	return instance.Port{ID: id, MAC: "52:54:00:" + id[:2] + ":" + id[2:4] + ":" + id[4:6], Binding: instance.BindingTap}
}

// brisk is a host whose guests are up and tick in milliseconds.
func brisk(name string) fake.Config {
	g := fake.DefaultGuest()
	g.Boot, g.Tick, g.ACPIAfter = 5*time.Millisecond, 20*time.Millisecond, 5*time.Millisecond
	return fake.Config{Name: name, Guest: g}
}

// newHost makes a host that ends with the test.
func newHost(t *testing.T, w *fake.World, c fake.Config) *fake.Host {
	t.Helper()
	h, err := fake.NewHost(w, c)
	if err != nil {
		t.Fatalf("NewHost(%s): %v", c.Name, err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return h
}

func open(t *testing.T, h *fake.Host) *fake.Driver {
	t.Helper()
	d := h.Open()
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

func rig(t *testing.T, source, dest *fake.Host) virttest.Rig {
	t.Helper()
	return virttest.Rig{
		Source: open(t, source), Dest: open(t, dest), Spec: newSpec, Shutdown: true, PostCopy: true, Wait: 20 * time.Second,
		Port: newPort,
		Foreign: func(t *testing.T) string {
			t.Helper()
			return source.AddForeign("somebody-elses")
		},
		Break: func(t *testing.T) func() {
			t.Helper()
			return source.Faults().Add(fake.Fault{Method: fake.PointPostCopy, Err: errors.New("the stream broke")})
		},
	}
}

// life is a context for what a test starts; it outlives t.Context, which ends
// before the clean-up.
func life(t *testing.T) context.Context {
	t.Helper()
	return context.WithoutCancel(t.Context())
}

func TestSuite(t *testing.T) {
	virttest.Suite(t, func(t *testing.T) virttest.Rig {
		t.Helper()
		w := fake.NewWorld(life(t))
		return rig(t, newHost(t, w, brisk("a")), newHost(t, w, brisk("b")))
	})
}

func TestSuiteOnVirtualTime(t *testing.T) {
	inBubble := func(t *testing.T, name string, f func(t *testing.T)) {
		t.Helper()
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	virttest.SuiteWith(t, inBubble, func(t *testing.T) virttest.Rig {
		t.Helper()
		w := fake.NewWorld(life(t))
		return rig(t, newHost(t, w, fake.Config{Name: "a"}), newHost(t, w, fake.Config{Name: "b"}))
	})
}

func TestSuiteAcrossTheLink(t *testing.T) {
	virttest.Suite(t, func(t *testing.T) virttest.Rig {
		t.Helper()
		var hosts [2]*fake.Host
		for i := range hosts { // a world each: only the link joins them
			c := brisk(fmt.Sprintf("process-%d", i))
			c.Listen, c.Dir = "127.0.0.1:0", t.TempDir()
			ctx, cancel := context.WithCancel(life(t))
			t.Cleanup(cancel)
			hosts[i] = newHost(t, fake.NewWorld(ctx), c)
		}
		return rig(t, hosts[0], hosts[1])
	})
}

// mustStart defines and starts a guest.
func mustStart(t *testing.T, d *fake.Driver, s instance.Spec) {
	t.Helper()
	if err := errors.Join(d.Define(t.Context(), virt.Definition{Spec: s, Generation: 1}), d.Start(t.Context(), s.UUID)); err != nil {
		t.Fatalf("define and start: %v", err)
	}
}

func prepare(t *testing.T, to *fake.Driver, s instance.Spec, generation uint64) virt.MigrateRequest {
	t.Helper()
	r := virt.MigrateRequest{Instance: s.UUID, Migration: instance.NewUUID(), Generation: generation}
	in, err := to.PrepareIncoming(t.Context(), virt.Incoming{
		Definition: virt.Definition{Spec: s, Generation: generation, Migration: r.Migration}, Source: "a",
	})
	if err != nil {
		t.Fatalf("PrepareIncoming: %v", err)
	}
	r.Inbound = in
	return r
}
