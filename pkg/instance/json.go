package instance

import "github.com/compute-agent/compute-agent/internal/jsonkit"

// An instance is written at each change of its state, to the journal and to the view, and for
// each reader: it writes itself, as encoding/json does.

// AppendJSON implements [jsonkit.Appender].
func (i Instance) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	o.String("uuid", i.UUID)
	o.String("name", i.Name)
	o.String("host", i.Host)
	o.Uint("generation", i.Generation)
	o.String("vm_state", string(i.VMState))
	o.Some("task_state", string(i.TaskState))
	o.String("power_state", string(i.PowerState))
	jsonkit.One(&o, "spec", i.Spec)
	if len(i.Ports) > 0 {
		jsonkit.Each(&o, "ports", i.Ports)
	}
	o.Time("created_at", i.CreatedAt)
	o.Time("updated_at", i.UpdatedAt)
	if i.Fault != nil {
		o.Any("fault", i.Fault)
	}
	return o.Close()
}

// AppendJSON implements [jsonkit.Appender].
func (s Spec) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	o.String("uuid", s.UUID)
	o.Some("name", s.Name)
	o.Int("vcpus", s.VCPUs)
	o.Int("memory_mib", s.MemoryMiB)
	if s.CPU != (CPU{}) {
		jsonkit.One(&o, "cpu", s.CPU)
	}
	o.Some("machine", s.Machine)
	o.Some("firmware", s.Firmware)
	if s.Boot != (Boot{}) {
		jsonkit.One(&o, "boot", s.Boot)
	}
	if len(s.Disks) > 0 {
		jsonkit.Each(&o, "disks", s.Disks)
	}
	if len(s.Ports) > 0 {
		jsonkit.Each(&o, "ports", s.Ports)
	}
	o.Texts("metadata", s.Metadata)
	return o.Close()
}

// AppendJSON implements [jsonkit.Appender].
func (c CPU) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	o.Some("mode", c.Mode)
	o.Some("model", c.Model)
	return o.Close()
}

// AppendJSON implements [jsonkit.Appender].
func (b Boot) AppendJSON(to []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: to}
	o.Some("kernel", b.Kernel)
	o.Some("initrd", b.Initrd)
	o.Some("cmdline", b.Cmdline)
	return o.Close()
}

// AppendJSON implements [jsonkit.Appender].
func (d Disk) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	jsonkit.One(&o, "source", d.Source)
	o.Some("format", d.Format)
	o.Some("bus", d.Bus)
	o.SomeInt("size_gib", d.SizeGiB)
	o.SomeInt("boot_index", d.BootIndex)
	o.True("shared", d.Shared)
	o.True("read_only", d.ReadOnly)
	return o.Close()
}

// AppendJSON implements [jsonkit.Appender].
func (d DiskSource) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	o.Some("file", d.File)
	o.Some("image", d.Image)
	o.Some("volume", d.Volume)
	return o.Close()
}

// AppendJSON implements [jsonkit.Appender].
func (p Port) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	p.members(&o)
	return o.Close()
}

func (p Port) members(o *jsonkit.Object) {
	o.String("id", p.ID)
	o.String("mac", p.MAC)
	o.SomeInt("mtu", p.MTU)
	o.String("binding", string(p.Binding))
	o.Some("bridge", p.Bridge)
	o.SomeInt("vlan", p.VLAN)
	o.True("wait_for_event", p.WaitForEvent)
}

// AppendJSON implements [jsonkit.Appender].
func (p PortStatus) AppendJSON(b []byte) ([]byte, error) {
	o := jsonkit.Object{Buf: b}
	p.members(&o)
	o.String("state", string(p.State))
	o.Some("device", p.Device)
	if p.Fault != nil {
		o.Any("fault", p.Fault)
	}
	return o.Close()
}
