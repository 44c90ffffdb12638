package instance_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

func good() instance.Spec {
	return instance.Spec{
		UUID: "0b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b", Name: "web1", VCPUs: 1, MemoryMiB: 128,
		Ports: []instance.Port{{ID: "df8e1f1a-9f5c-4a55-8a5b-0c1d2e3f4a5b", MAC: "52:54:00:00:00:01", Binding: instance.BindingBridge, Bridge: "br-int0"}},
	}
}

func TestSpecCheckNamesEveryReason(t *testing.T) {
	cases := []struct {
		name string
		edit func(*instance.Spec)
		want []string
	}{
		{"good", func(*instance.Spec) {}, nil},
		{"no memory and no cpu", func(s *instance.Spec) { s.VCPUs, s.MemoryMiB = 0, 0 }, []string{"vcpus", "memory_mib"}},
		{"uuid", func(s *instance.Spec) { s.UUID = "X" }, []string{"uuid"}},
		{"name", func(s *instance.Spec) { s.Name = "-a b" }, []string{"name"}},
		{"cpu custom without model", func(s *instance.Spec) { s.CPU.Mode = "custom" }, []string{"cpu: mode custom"}},
		{"boot without kernel", func(s *instance.Spec) { s.Boot.Initrd = "/i" }, []string{"boot: initrd"}},
		{"relative kernel", func(s *instance.Spec) { s.Boot.Kernel = "k" }, []string{"boot.kernel"}},
		{"two sources", func(s *instance.Spec) {
			s.Disks = []instance.Disk{{Source: instance.DiskSource{File: "/a", Image: "/b"}}}
		}, []string{"disks[0].source"}},
		{"bad disk", func(s *instance.Spec) {
			s.Disks = []instance.Disk{{Source: instance.DiskSource{Volume: "v"}, Format: "vmdk", Bus: "ide", SizeGiB: -1, BootIndex: -1}}
		}, []string{"volume", "format", "bus", "size_gib", "boot_index"}},
		{"bad port", func(s *instance.Spec) {
			s.Ports = []instance.Port{{ID: "x", MAC: "33:33:00:00:00:01", MTU: 10, VLAN: 5000, Binding: "sriov"}, {ID: "y", MAC: "01:00:00:00:00:01", Binding: instance.BindingTap, Bridge: "b"}}
		}, []string{"ports[0].id", "ports[0].mac", "mtu", "vlan", "binding", "ports[1].id", "multicast", "has no bridge"}},
		{"port twice", func(s *instance.Spec) { s.Ports = append(s.Ports, s.Ports[0]) }, []string{"ports[1].id", "ports[1].mac"}},
		{"bridge missing", func(s *instance.Spec) { s.Ports[0].Bridge = "" }, []string{"ports[0].bridge"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := good()
			c.edit(&s)
			err := s.Check()
			if len(c.want) == 0 {
				if err != nil {
					t.Fatalf("Check() = %v, want nil", err)
				}
				return
			}
			if !errors.Is(err, fault.InvalidArgument) {
				t.Fatalf("Check() = %v, want invalid_argument", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("Check() = %q, want it to name %q", err, w)
				}
			}
		})
	}
}

func TestDeviceName(t *testing.T) {
	if got := good().Ports[0].Device(); got != "tapdf8e1f1a-9f" {
		t.Errorf("Device() = %q, want tapdf8e1f1a-9f", got)
	}
	if got := (instance.Port{ID: "abc"}).Device(); got != "tapabc" {
		t.Errorf("Device() of a short id = %q, want tapabc", got)
	}
}

var allVM = []instance.VMState{
	instance.VMBuilding, instance.VMActive, instance.VMPaused, instance.VMSuspended, instance.VMStopped, instance.VMError, instance.VMDeleted,
}

// Every (from, to) pair: the table below is the drawing in state.go, one row a state.
func TestCanMoveAllPairs(t *testing.T) {
	allowed := map[instance.VMState]string{
		instance.VMBuilding:  "building active stopped error deleted",
		instance.VMActive:    "active paused suspended stopped error deleted",
		instance.VMPaused:    "paused active stopped error deleted",
		instance.VMSuspended: "suspended active stopped error deleted",
		instance.VMStopped:   "stopped active paused error deleted",
		instance.VMError:     "error active stopped paused suspended deleted",
		instance.VMDeleted:   "deleted",
	}
	for _, from := range allVM {
		for _, to := range allVM {
			want := strings.Contains(" "+allowed[from]+" ", " "+string(to)+" ")
			if got := instance.CanMove(from, to); got != want {
				t.Errorf("CanMove(%s, %s) = %v, want %v", from, to, got, want)
			}
		}
	}
}

func TestVMStateOf(t *testing.T) {
	cases := []struct {
		power instance.PowerState
		old   instance.VMState
		want  instance.VMState
	}{
		{instance.PowerRunning, instance.VMStopped, instance.VMActive},
		{instance.PowerPaused, instance.VMActive, instance.VMPaused},
		{instance.PowerSuspended, instance.VMActive, instance.VMSuspended},
		{instance.PowerShutdown, instance.VMActive, instance.VMStopped},
		{instance.PowerShutdown, instance.VMSuspended, instance.VMSuspended},
		{instance.PowerCrashed, instance.VMActive, instance.VMStopped},
		{instance.PowerPending, instance.VMActive, instance.VMActive},
	}
	for _, c := range cases {
		if got := instance.VMStateOf(c.power, c.old); got != c.want {
			t.Errorf("VMStateOf(%s, %s) = %s, want %s", c.power, c.old, got, c.want)
		}
	}
}

func TestUUID(t *testing.T) {
	id := instance.NewUUID()
	if err := instance.CheckUUID("x", id); err != nil {
		t.Error(err)
	}
	if err := instance.CheckUUID("x", strings.ToUpper(id)); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("an upper-case UUID: %v, want invalid_argument", err)
	}
}

// Ports that are made at the same time have devices of their own.
func TestNewPortID(t *testing.T) {
	devices := map[string]bool{}
	for range 1000 {
		id := instance.NewPortID()
		if err := instance.CheckUUID("port", id); err != nil {
			t.Fatal(err)
		}
		devices[instance.Port{ID: id}.Device()] = true
	}
	if len(devices) < 999 { // two of a thousand alike among 2^40 would be a wonder
		t.Errorf("1000 ports have %d devices", len(devices))
	}
}
