package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

var update = flag.Bool("update", false, "write the golden files again")

// golden compares text with testdata/golden/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got); make golden writes it again:\n%s", path, d)
	}
}

// TestHelp holds every page of help; each command has an example and a sentence.
func TestHelp(t *testing.T) {
	var b strings.Builder
	a := newApp(strings.NewReader(""), &b, &b, nil)
	a.tree() // as often as one likes
	var walk func(path []string)
	walk = func(path []string) {
		cmd, _, err := a.root.Find(path)
		if err != nil {
			t.Fatal(err)
		}
		if cmd.Name() == "completion" || cmd.Name() == "help" {
			return // cobra's own
		}
		if cmd.Short == "" || cmd.Example == "" && len(path) > 0 && cmd.Runnable() {
			t.Errorf("%s lacks a sentence or an example", cmd.CommandPath())
		}
		fmt.Fprintf(&b, "\n===== %s\n\n", cmd.CommandPath())
		if err := cmd.Help(); err != nil {
			t.Fatal(err)
		}
		for _, child := range cmd.Commands() {
			walk(append(append([]string(nil), path...), child.Name()))
		}
	}
	walk(nil)
	golden(t, "help.txt", b.String())
}

// The help of a flag names the words that it takes, and what it offers on Tab are these.
func TestMigrationWords(t *testing.T) {
	words := map[string][]string{
		"policy":      instance.Policies(),
		"compression": instance.CompressionWords(),
	}
	root := newApp(strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}, nil).root
	for path, flags := range map[string][]string{
		"migration start": {"policy", "compression"}, "migration check": {"policy", "compression"}, "host drain": {"policy"},
	} {
		cmd, _, err := root.Find(strings.Fields(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range flags {
			usage := cmd.Flag(name).Usage
			said, _, _ := strings.Cut(strings.ReplaceAll(usage, " or ", ", "), " (")
			if !slices.Equal(strings.Split(said, ", "), words[name]) {
				t.Errorf("%s --%s says %q, want %q", path, name, usage, words[name])
			}
			complete, ok := cmd.GetFlagCompletionFunc(name)
			if !ok {
				t.Fatalf("%s --%s offers nothing", path, name)
			}
			if offered, _ := complete(cmd, nil, ""); !slices.Equal(offered, words[name]) {
				t.Errorf("%s --%s offers %q, want %q", path, name, offered, words[name])
			}
		}
	}
}

func someHosts() []controller.Host {
	at := time.Date(2026, 5, 17, 10, 0, 0, 0, time.UTC)
	view := func(name string, used int) api.HostView {
		return api.HostView{
			Host: name, Agent: "0.1.0", APIVersion: "1.0", MachineID: "4c4c", Enabled: true, Driver: "libvirt", Hypervisor: "connected", HypervisorType: "QEMU",
			HypervisorVersion: "10.0.2", CPUModel: "EPYC-Milan", StartedAt: at, ReportedAt: at,
			Resources: api.Resources{VCPUs: 64, VCPUsUsed: used, MemoryMiB: 262144, MemoryMiBUsed: used * 1536, DiskGiB: 900, DiskFreeGiB: 700, Instances: used / 2, Foreign: 1},
		}
	}
	hosts := []controller.Host{
		{HostView: view("node1", 12), Age: 2300 * time.Millisecond},
		{HostView: view("node2.rack7.example", 64), Age: 9 * time.Second},
		{HostView: view("node3", 0), Age: 3 * time.Hour, Down: true},
		{HostView: view("node4", 2), Age: 400 * time.Millisecond},
	}
	hosts[1].MigrationsOut, hosts[1].MigrationsIn = 2, 1
	hosts[1].Enabled, hosts[1].DisabledReason = false, "new disks on Friday"
	hosts[1].Problems = []string{"migration 0b6e8e43 ended with an unknown outcome"}
	hosts[3].Hypervisor = "away"
	return hosts
}

func someInstance() instance.Instance {
	at := time.Date(2026, 5, 17, 10, 0, 0, 0, time.Local)
	port := instance.Port{ID: "df8e1f1a-9f00-4a55-8a5b-0c1d2e3f4a5b", MAC: "52:54:00:aa:bb:cc", Binding: instance.BindingBridge, Bridge: "br0"}
	return instance.Instance{
		UUID: web1, Name: "web1", Host: "node1", Generation: 3, VMState: instance.VMActive, TaskState: instance.TaskMigrating, PowerState: instance.PowerRunning,
		Spec: instance.Spec{
			VCPUs: 4, MemoryMiB: 8192, CPU: instance.CPU{Mode: "host-model"}, Disks: []instance.Disk{{Source: instance.DiskSource{Image: "/srv/debian.qcow2"}, SizeGiB: 20}},
			Metadata: map[string]string{"owner": "ann", "env": "test"},
		},
		Ports: []instance.PortStatus{{Port: port, State: instance.PortPlugged, Device: port.Device()}}, CreatedAt: at, UpdatedAt: at.Add(time.Hour),
		Fault: fault.New(fault.Timeout, "reboot_instance", "", "the guest did not answer within 2 minutes"),
	}
}

func someMigration() instance.Migration {
	at := time.Date(2026, 5, 17, 10, 0, 0, 0, time.Local)
	return instance.Migration{
		UUID: web2, Generation: 4, Instance: web1, Source: "node1", Dest: "node2", RequestID: web2, Status: instance.MigrationRunning, Phase: "perform",
		Mode: instance.ModePreCopy, Policy: "adaptive", StartedAt: at, UpdatedAt: at.Add(12 * time.Second),
		Progress: instance.Progress{
			Memory: instance.Amount{Total: 8 << 30, Processed: 5 << 30, Remaining: 3 << 30}, Bandwidth: 512 << 20, DirtyRate: 128 << 20, Iteration: 3,
			PermittedDowntimeMS: 300, ImpliedDowntimeMS: 950, Percent: 62, ElapsedMS: 12000,
		},
	}
}

// TestTables holds what people see.
func TestTables(t *testing.T) {
	synctest.Test(t, testTables) // where the time stands still
}

func testTables(t *testing.T) {
	t.Helper()
	ended := someMigration()
	ended.UUID, ended.Status, ended.Phase, ended.EndedAt = web1, instance.MigrationCompleted, "end", ended.StartedAt.Add(19*time.Second)
	ended.Result = &instance.Result{DowntimeMS: 41, TotalMS: 18700, Bytes: 9 << 30, Iterations: 5}
	other := someInstance()
	other.UUID, other.Name, other.Host, other.TaskState, other.VMState, other.PowerState = web2, "db-with-a-long-name", "node2", "", instance.VMStopped, instance.PowerShutdown
	var b bytes.Buffer
	hostTable(&b, someHosts())
	b.WriteString("\n")
	hostFacts(&b, someHosts()[1])
	b.WriteString("\n")
	instanceTable(&b, []instance.Instance{someInstance(), other})
	b.WriteString("\n")
	instanceFacts(&b, someInstance())
	b.WriteString("\n")
	migrationFacts(&b, someMigration(), web1)
	b.WriteString("\n")
	migrationFacts(&b, ended, "web1 ("+web1+")")
	b.WriteString("\n")
	migrationTable(&b, []instance.Migration{ended}, map[string]string{web1: "web1"})
	golden(t, "tables.txt", b.String())
	for line := range strings.Lines(b.String()) {
		if strings.TrimRight(line, " \n") != strings.TrimRight(line, "\n") {
			t.Errorf("%q ends with spaces", line)
		}
	}
}

// Lines of progress come at most once a second, and the last one always.
func TestProgressLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b strings.Builder
		a := newApp(strings.NewReader(""), &b, &b, nil)
		a.output = outputTable
		p := a.newProgress("web1")
		m := someMigration()
		m.Status, m.Progress = instance.MigrationPreparing, instance.Progress{}
		show := func(after time.Duration) {
			time.Sleep(after)
			if err := p.update(m); err != nil {
				t.Fatal(err)
			}
		}
		show(0)
		m.Status, m.Progress = instance.MigrationRunning, someMigration().Progress
		show(500 * time.Millisecond) // too soon
		show(time.Second)
		show(time.Second) // nothing new
		m.Progress.DirtyRate = m.Progress.Bandwidth
		show(time.Second)
		m.Mode, m.Progress.Percent = instance.ModePostCopy, 97
		show(time.Second)
		m.Status, m.Progress.Bandwidth = instance.MigrationCompleted, 0
		show(0)
		golden(t, "progress.txt", b.String())
	})
}

func TestExitCodes(t *testing.T) {
	want := map[fault.Kind]int{
		fault.InvalidArgument: 2, fault.NotFound: 3, fault.Conflict: 4, fault.PreconditionFailed: 4, fault.Busy: 5, fault.Expired: 5, fault.Timeout: 5,
		fault.Unavailable: 5, fault.Unauthorized: 6, fault.UnsupportedMethod: 7, fault.UnsupportedVersion: 7, fault.Cancelled: 8, fault.Internal: 1,
		"a kind of a later version": 1,
	}
	for kind, code := range want {
		if got := exitCode(fmt.Errorf("while: %w", fault.New(kind, "", "", "m"))); got != code {
			t.Errorf("exit code of %s = %d, want %d", kind, got, code)
		}
		if kind.Known() && kind != fault.Internal && !strings.Contains(exitCodesHelp, string(kind)) {
			t.Errorf("help exit-codes does not name %s", kind)
		}
	}
	if got := exitCode(errors.New("x")); got != 1 {
		t.Errorf("exit code of any other error = %d", got)
	}
}

func TestUnits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 ms", 999 * time.Millisecond: "999 ms", 1200 * time.Millisecond: "1.2 s", 12 * time.Second: "12 s",
		61 * time.Second: "1 min 1 s", 90 * time.Minute: "1 h 30 min", 72 * time.Hour: "3 days",
	} {
		if got := short(d); got != want {
			t.Errorf("short(%s) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 1000 << 20: "1.0 GiB", 250 << 30: "250 GiB", 1 << 62: "4096 PiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

// YAML has the members, the order and the types of the JSON.
func TestYAML(t *testing.T) {
	got, err := toYAML([]byte(`{"b":"1.0","a":[1,"true",null,{"c":"x: y"}],"t":true,"e":[],"o":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := "b: \"1.0\"\na:\n  - 1\n  - \"true\"\n  - null\n  - c: 'x: y'\nt: true\ne: []\no: {}\n"
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("toYAML (-want +got):\n%s", d)
	}
}
