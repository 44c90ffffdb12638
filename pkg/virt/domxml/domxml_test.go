package domxml_test

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/beevik/etree"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

// rewrite makes the golden files anew: go test ./pkg/virt/domxml -golden. Read the
// difference before it is committed; what is in them is what libvirt is given.
var rewrite = flag.Bool("golden", false, "write the golden files of testdata anew")

const (
	id        = "01a2002c-b472-742e-8ae8-efbde158d5c3"
	mover     = "01a20030-0000-7000-8000-000000000001"
	instances = "/var/lib/compute-agent/instances"
)

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func port(n, mtu int) instance.Port {
	digit := string(rune('0' + n))
	return instance.Port{
		ID: digit + "b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b", MAC: "52:54:00:AB:CD:0" + digit, MTU: mtu, Binding: instance.BindingTap,
	}
}

func TestBuild(t *testing.T) {
	kernel := instance.Boot{Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd", Cmdline: `console=ttyS0 a="b" <&>`}
	cases := map[string]struct {
		d    virt.Definition
		host domxml.Defaults
	}{
		"kernel.xml": {
			d: virt.Definition{Generation: 1, Spec: instance.Spec{
				UUID: id, Name: "web-1", VCPUs: 2, MemoryMiB: 512, Boot: kernel, Ports: []instance.Port{port(1, 0), port(2, 1450)},
			}},
			host: domxml.Defaults{InstancesPath: instances},
		},
		"disks.xml": {
			d: virt.Definition{Generation: 7, Migration: mover, Spec: instance.Spec{
				UUID: id, VCPUs: 4, MemoryMiB: 2048, Machine: "pc-q35-7.2", Firmware: "efi",
				CPU: instance.CPU{Mode: "custom", Model: "Haswell"},
				Disks: []instance.Disk{
					{Source: instance.DiskSource{Image: "/images/debian.qcow2"}, SizeGiB: 10, BootIndex: 1},
					{Source: instance.DiskSource{File: "/shared/data.raw"}, Bus: "scsi", Shared: true, BootIndex: 2},
					{Source: instance.DiskSource{Volume: "pool/volume"}, Format: "qcow2", Bus: "sata"},
					{Source: instance.DiskSource{File: "/iso/seed.raw"}, ReadOnly: true, Shared: true},
				},
			}},
			host: domxml.Defaults{InstancesPath: instances, VirtType: "kvm", Emulator: "/usr/bin/qemu-system-x86_64"},
		},
		"pc.xml": {
			d:    virt.Definition{Generation: 1, Spec: instance.Spec{UUID: id, VCPUs: 1, MemoryMiB: 128, Machine: "pc-i440fx-7.2", Boot: kernel}},
			host: domxml.Defaults{InstancesPath: instances, VirtType: "kvm"},
		},
	}
	for name, c := range cases {
		xml, err := domxml.Build(c.d, c.host)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden(t, name, xml+"\n")
		info, err := domxml.Parse(xml)
		if err != nil || !info.Owned || info.UUID != id || info.VCPUs != c.d.Spec.VCPUs || info.MemoryMiB != c.d.Spec.MemoryMiB {
			t.Errorf("%s: Parse = %+v, %v", name, info, err)
		}
		want := domxml.Metadata{Instance: id, Name: c.d.Spec.Name, Generation: c.d.Generation, Migration: c.d.Migration}
		if info.Metadata != want {
			t.Errorf("%s: metadata %+v, want %+v", name, info.Metadata, want)
		}
	}
}

func TestCPU(t *testing.T) {
	cases := []struct {
		virtType string
		cpu      instance.CPU
		want     string
	}{
		{"qemu", instance.CPU{}, `mode="custom"`},
		{"kvm", instance.CPU{}, `mode="host-model"`},
		{"kvm", instance.CPU{Mode: "host-passthrough"}, `mode="host-passthrough" check="none" migratable="on"`},
		{"qemu", instance.CPU{Mode: "maximum"}, `mode="maximum"`},
	}
	for _, c := range cases {
		d := virt.Definition{Spec: instance.Spec{UUID: id, VCPUs: 1, MemoryMiB: 128, CPU: c.cpu}}
		xml, err := domxml.Build(d, domxml.Defaults{VirtType: c.virtType})
		if err != nil || !strings.Contains(xml, c.want) {
			t.Errorf("%s %+v: %v, want %s in\n%s", c.virtType, c.cpu, err, c.want, xml)
		}
	}
}

func TestTargets(t *testing.T) {
	bus := func(names ...string) []instance.Disk {
		out := make([]instance.Disk, len(names))
		for i, n := range names {
			out[i].Bus = n
		}
		return out
	}
	got := domxml.Targets(bus("", "scsi", "virtio", "sata", "scsi"))
	if diff := cmp.Diff([]string{"vda", "sda", "vdb", "sdb", "sdc"}, got); diff != "" {
		t.Errorf("Targets (-want +got):\n%s", diff)
	}
	many := domxml.Targets(make([]instance.Disk, 26*27+1))
	if many[25] != "vdz" || many[26] != "vdaa" || many[26*27-1] != "vdzz" || many[26*27] != "vdaaa" {
		t.Errorf("the 26th to the last target: %s %s %s %s", many[25], many[26], many[26*27-1], many[26*27])
	}
}

// fromLibvirt is a running domain as libvirt 9.0 gives it with the MIGRATABLE flag,
// with parts that this package does not know.
func fromLibvirt(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "libvirt.xml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestForDestination(t *testing.T) {
	out, err := domxml.ForDestination(fromLibvirt(t), domxml.Destination{Generation: 8, Migration: mover})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "destination.xml", out)
	if strings.Contains(out, "<mtu") {
		t.Error("an interface without an MTU got one")
	}
	again, err := domxml.ForDestination(out, domxml.Destination{Generation: 8, Migration: mover})
	if err != nil || again != out {
		t.Errorf("a second rewrite changes something (%v):\n%s", err, cmp.Diff(out, again))
	}
}

func TestForDestinationRefuses(t *testing.T) {
	mine := fromLibvirt(t)
	cases := []struct {
		name, xml string
		want      fault.Kind
	}{
		{"nothing", "", fault.Internal},
		{"no XML", "<domain", fault.Internal},
		{"not a domain", "<network/>", fault.Internal},
		{"foreign", "<domain><uuid>" + id + "</uuid></domain>", fault.Conflict},
		{"other metadata only", strings.Replace(mine, domxml.Namespace, "urn:other", 1), fault.Conflict},
		{"broken generation", strings.Replace(mine, "<ca:generation>7<", "<ca:generation>x<", 1), fault.Internal},
	}
	for _, c := range cases {
		if out, err := domxml.ForDestination(c.xml, domxml.Destination{Generation: 1}); fault.KindOf(err) != c.want {
			t.Errorf("%s: %q, %v, want kind %s", c.name, out, err, c.want)
		}
	}
}

// Whatever stands in a domain's XML, known or not, survives: take our metadata out
// of both and nothing differs.
func TestUnknownElementsSurvive(t *testing.T) {
	base := fromLibvirt(t)
	rapid.Check(t, func(t *rapid.T) {
		doc := etree.NewDocument()
		if err := doc.ReadFromString(base); err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 8).Draw(t, "insertions") {
			insert(t, doc.Root())
		}
		before, err := doc.WriteToString()
		if err != nil {
			t.Fatal(err)
		}
		after, err := domxml.ForDestination(before, domxml.Destination{Generation: rapid.Uint64().Draw(t, "generation"), Migration: mover})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(withoutOurs(t, before), withoutOurs(t, after)); diff != "" {
			t.Fatalf("something changed (-before +after):\n%s", diff)
		}
	})
}

// insert puts a random element somewhere, except into our own metadata.
func insert(t *rapid.T, root *etree.Element) {
	var places []*etree.Element
	for _, e := range append(root.FindElements("//*"), root) {
		if e.NamespaceURI() != domxml.Namespace {
			places = append(places, e)
		}
	}
	place := rapid.SampledFrom(places).Draw(t, "place")
	name := rapid.StringMatching(`x-[a-z]{1,6}`)
	e := etree.NewElement(name.Draw(t, "tag"))
	e.CreateAttr(name.Draw(t, "attribute"), rapid.StringMatching(`[a-z<>&'" ]{0,8}`).Draw(t, "value"))
	if rapid.Bool().Draw(t, "namespaced") {
		e.Space = "qemu"
		e.CreateAttr("xmlns:qemu", "http://libvirt.org/schemas/domain/qemu/1.0")
	}
	e.SetText(rapid.StringMatching(`[a-z<>& ]{0,8}`).Draw(t, "text"))
	place.InsertChildAt(rapid.IntRange(0, len(place.Child)).Draw(t, "at"), e)
}

func withoutOurs(t *rapid.T, xml string) string {
	doc := etree.NewDocument()
	if err := doc.ReadFromString(xml); err != nil {
		t.Fatal(err)
	}
	for _, e := range doc.FindElements("/domain/metadata/*") {
		if e.NamespaceURI() == domxml.Namespace {
			e.Parent().RemoveChild(e)
		}
	}
	out, err := doc.WriteToString()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestParse(t *testing.T) {
	info, err := domxml.Parse(fromLibvirt(t))
	if err != nil {
		t.Fatal(err)
	}
	want := domxml.Info{
		UUID: id, Name: "web-1", VCPUs: 2, MemoryMiB: 512, Owned: true,
		Metadata: domxml.Metadata{Instance: id, Name: "web-1", Generation: 7},
		Disks: []domxml.DiskInfo{
			{Target: "vda", Source: instances + "/" + id + "/disk0.qcow2", Backed: true},
			{Target: "sda", Source: "/iso/seed.raw", ReadOnly: true},
		},
	}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
	copied := strings.Replace(fromLibvirt(t), "<uuid>"+id, "<uuid>"+mover, 1)
	if info, err = domxml.Parse(copied); err != nil || info.Owned || info.Metadata != (domxml.Metadata{}) {
		t.Errorf("a copy under another UUID: %+v, %v, want it foreign", info, err)
	}
}

func TestParseMemory(t *testing.T) {
	cases := []struct {
		memory string
		want   int
	}{
		{"<memory>1024</memory>", 1},
		{"<memory unit='KiB'>524288</memory>", 512},
		{"<memory unit='MiB'>3</memory>", 3},
		{"<memory unit='G'>2</memory>", 2048},
		{"<memory unit='b'>1048576</memory>", 1},
		{"", 0},
		{"<memory unit='fathom'>1</memory>", -1},
		{"<memory>much</memory>", -1},
	}
	for _, c := range cases {
		info, err := domxml.Parse("<domain><vcpu>1</vcpu>" + c.memory + "</domain>")
		if (err != nil) != (c.want < 0) || err == nil && info.MemoryMiB != c.want {
			t.Errorf("%s: %d MiB, %v, want %d", c.memory, info.MemoryMiB, err, c.want)
		}
	}
}

func TestMetadataRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := domxml.Metadata{
			Instance: id, Name: rapid.StringMatching(`[A-Za-z0-9<&>"']{0,20}`).Draw(t, "name"),
			Generation: rapid.Uint64().Draw(t, "generation"), Migration: rapid.SampledFrom([]string{"", mover}).Draw(t, "migration"),
		}
		xml, err := m.XML()
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := domxml.ParseMetadata(xml); !ok || got != m {
			t.Fatalf("%+v became %+v, %t by way of %s", m, got, ok, xml)
		}
	})
	for _, bad := range []string{"", "<", "<a/>", "<instance/>", "<instance><uuid>x</uuid><generation>-1</generation></instance>"} {
		if m, ok := domxml.ParseMetadata(bad); ok {
			t.Errorf("%q is taken for %+v", bad, m)
		}
	}
}

// Everything that hangs on the host is named, and the CPU is as libvirt wrote it.
func TestLeaving(t *testing.T) {
	const xml = `<domain type='kvm'><name>g</name><vcpu>1</vcpu>
	<cpu mode='custom' match='exact' check='full'><model fallback='forbid'>qemu64</model><feature policy='require' name='x2apic'/></cpu>
	<devices>
		<disk type='file' device='disk'><source file='/a'/><target dev='vda'/></disk>
		<disk type='block' device='lun'><source dev='/dev/sda'/><target dev='sda'/><alias name='scsi0-0-0-0'/></disk>
		<hostdev mode='subsystem' type='pci'><alias name='hostdev0'/></hostdev>
		<interface type='hostdev'><alias name='net1'/></interface>
		<interface type='ethernet'><alias name='net0'/></interface>
		<filesystem type='mount'><driver type='virtiofs'/></filesystem>
		<tpm model='tpm-tis'><backend type='passthrough'/></tpm>
		<tpm model='tpm-crb'><backend type='emulator'/></tpm>
	</devices></domain>`
	reasons, cpu, err := domxml.Leaving(xml)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"hostdev0", "net1", "filesystem", "backend", "scsi0-0-0-0"}
	if len(reasons) != len(want) {
		t.Errorf("reasons %q, want one for each of %v", reasons, want)
	}
	for _, name := range want {
		if !slices.ContainsFunc(reasons, func(r string) bool { return strings.HasPrefix(r, "device "+name+" can't move: ") }) {
			t.Errorf("reasons %q, want one for %s", reasons, name)
		}
	}
	if !strings.HasPrefix(cpu, "<cpu mode='custom'") && !strings.HasPrefix(cpu, `<cpu mode="custom"`) || !strings.Contains(cpu, "x2apic") {
		t.Errorf("CPU %q", cpu)
	}
	if _, _, err := domxml.Leaving("<no"); err == nil {
		t.Error("XML that is none gave no error")
	}
}
