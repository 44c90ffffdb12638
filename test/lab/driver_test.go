package lab_test

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/libvirt"
	"github.com/compute-agent/compute-agent/pkg/virt/virttest"
	"github.com/compute-agent/compute-agent/test/lab"
)

// hostInstances is the folder of instances inside each host: one that the host has for its own.
const hostInstances = "/var/lib/libvirt/compute-agent"

// openDriver starts the libvirt driver on a host and waits until it is connected.
func openDriver(t *testing.T, h *lab.Host, change ...func(*libvirt.Config)) *libvirt.Driver {
	t.Helper()
	c := libvirt.Config{
		SocketPath:         h.Socket(),
		InstancesPath:      hostInstances,
		LocalInstancesPath: h.Outside(hostInstances),
		VirtType:           "qemu",
		LiveMigrationURI:   "qemu+tcp://%s/system",
		Log: func(_ context.Context, msg string, err error) {
			if testing.Verbose() && err != nil {
				fmt.Fprintln(os.Stderr, h.Name+":", msg, err)
			}
		},
	}
	for _, f := range change {
		f(&c)
	}
	d, err := libvirt.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	connected := make(chan struct{}, 1)
	defer d.Subscribe(func(ev virt.Event) {
		if ev.Kind == virt.EventConnected {
			select {
			case connected <- struct{}{}:
			default:
			}
		}
	})()
	select {
	case <-connected:
	case <-time.After(30 * time.Second):
		t.Fatalf("the driver of %s did not connect", h.Name)
	}
	return d
}

// specs makes specs of guests with one port whose tap is on every host.
func specs(t *testing.T, l *lab.Lab, next *atomic.Int32) func() instance.Spec {
	t.Helper()
	return func() instance.Spec {
		n := int(next.Add(1))
		address := l.GuestAddress(n%200 + 1)
		port := instance.Port{ID: fmt.Sprintf("%08x-0000-4000-8000-%012x", n, n), MAC: lab.MAC(address.Addr()), Binding: instance.BindingTap}
		for _, h := range l.Hosts() {
			if err := h.AddTap(t.Context(), port.Device()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := h.DeleteTap(context.WithoutCancel(t.Context()), port.Device()); err != nil {
					t.Error(err)
				}
			})
		}
		guest := l.Guest()
		return instance.Spec{
			UUID: instance.NewUUID(), Name: fmt.Sprintf("guest-%d", n), VCPUs: 1, MemoryMiB: 128,
			Boot:  instance.Boot{Kernel: guest.Kernel, Initrd: guest.Initrd, Cmdline: guest.Cmdline(address)},
			Ports: []instance.Port{port},
		}
	}
}

func TestDriverKeepsItsPromises(t *testing.T) {
	l := startLab(t)
	var next atomic.Int32
	virttest.Suite(t, func(t *testing.T) virttest.Rig {
		t.Helper()
		return virttest.Rig{
			Source:   openDriver(t, l.Host(1)),
			Dest:     openDriver(t, l.Host(2)),
			Spec:     specs(t, l, &next),
			Foreign:  func(t *testing.T) string { t.Helper(); return defineForeign(t, l) },
			Tick:     "tick 3", // by then the guest listens to its power button
			Shutdown: true,
			PostCopy: true,
			Break: func(t *testing.T) func() {
				t.Helper()
				must(t, "break", quietly(t.Context(), l, true, l.Host(1).BreakStream))
				return func() { must(t, "heal", quietly(t.Context(), l, false, l.Host(1).Unfilter)) }
			},
		}
	})
}

// defineForeign defines a domain without our metadata on the first host.
func defineForeign(t *testing.T, l *lab.Lab) string {
	t.Helper()
	dir, err := l.Dir("xml")
	if err != nil {
		t.Fatal(err)
	}
	file := dir + "/foreign.xml"
	d := lab.Domain{Name: "foreign", Tap: tap, Address: l.GuestAddress(199)}
	if err := os.WriteFile(file, []byte(d.XML(l.Guest())), 0o600); err != nil {
		t.Fatal(err)
	}
	h := l.Host(1)
	virsh(t, h, "define", file)
	t.Cleanup(func() {
		if _, err := h.Virsh(context.WithoutCancel(t.Context()), "undefine", d.Name); err != nil {
			t.Error(err)
		}
	})
	return virsh(t, h, "domuuid", d.Name)
}
