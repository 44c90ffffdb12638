package instance_test

import (
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/internal/jsonkit/jsontest"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// What writes its own JSON writes what encoding/json does, member by member.
func TestAppendJSON(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	why := fault.New(fault.Internal, "plug", "tap0", "no bridge").WithDetail("bridge", "br0")
	port := instance.Port{ID: "p1", MAC: "52:54:00:00:00:01", MTU: 9000, Binding: instance.BindingBridge, Bridge: "br0", VLAN: 7, WaitForEvent: true}
	status := instance.PortStatus{Port: port, State: instance.PortPlugged, Device: "tapp1", Fault: why}
	disk := instance.Disk{
		Source: instance.DiskSource{File: "/f", Image: "/i", Volume: "p/v"}, Format: "qcow2", Bus: "virtio", SizeGiB: 3, BootIndex: 1, Shared: true, ReadOnly: true,
	}
	spec := instance.Spec{
		UUID: "u1", Name: "web", VCPUs: 2, MemoryMiB: 512, CPU: instance.CPU{Mode: "custom", Model: "qemu64"}, Machine: "q35", Firmware: "efi",
		Boot:  instance.Boot{Kernel: "/k", Initrd: "/i", Cmdline: "console=ttyS0 \"é\""},
		Disks: []instance.Disk{disk, {}}, Ports: []instance.Port{port, {}}, Metadata: map[string]string{"b": "2", "a": "1", "": "\n"},
	}
	jsontest.Same(t, port)
	jsontest.Same(t, status)
	jsontest.Same(t, disk.Source)
	jsontest.Same(t, disk)
	jsontest.Same(t, spec.CPU)
	jsontest.Same(t, spec.Boot)
	jsontest.Same(t, spec)
	jsontest.Same(t, instance.Instance{
		UUID: "u1", Name: "web", Host: "h1", Generation: 3, VMState: instance.VMActive, TaskState: instance.TaskRebooting, PowerState: instance.PowerRunning,
		Spec: spec, Ports: []instance.PortStatus{status, {}}, CreatedAt: at, UpdatedAt: at.Add(time.Hour), Fault: why,
	})
}
