package simulate_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/compose"
	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/simulate"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

var update = flag.Bool("update", false, "write the comparison of the policies into docs again; read the difference before you commit it")

// The model: a guest of 4 GiB, all of it used, that writes to half of it, over a link of 1 GiB/s.
const (
	modelMemoryMiB  = 4096
	modelWorkingSet = 2048
	modelLinkMiB    = 1024
	modelPatience   = 2 * time.Hour // longer than any policy's own
	libvirtPatience = 15 * time.Minute
)

// dirtyRates are percent of the link.
func dirtyRates() []int { return []int{30, 60, 90, 120} }

// contender is one policy of the comparison.
type contender struct {
	name  string
	agent func(*migration.Config) // nil: libvirt alone, nobody decides anything
}

func contenders() []contender {
	adaptive := func(on migration.OnStall) func(*migration.Config) {
		return func(c *migration.Config) {
			c.Policy, c.OnStall, c.PermitPostCopy = "adaptive", on, on == migration.StallPostCopy
		}
	}
	return []contender{
		{"libvirt's defaults", nil},
		{"nova", func(c *migration.Config) { c.Policy = "nova" }},
		{"adaptive, abort", adaptive(migration.StallAbort)},
		{"adaptive, pause", adaptive(migration.StallPause)},
		{"adaptive, post_copy", adaptive(migration.StallPostCopy)},
	}
}

// ending is how one migration went.
type ending struct {
	policy, end string
	dirty       int
	took        time.Duration
	downtime    time.Duration
	bytes       uint64
}

// The policies beside each other on the model, in virtual time: the table and the plot
// of docs/performance.md are what comes out here.
func TestPolicies(t *testing.T) {
	var all []ending
	for _, c := range contenders() {
		for _, dirty := range dirtyRates() {
			dir := t.TempDir()
			e := ending{policy: c.name, dirty: dirty}
			synctest.Test(t, func(t *testing.T) {
				if c.agent == nil {
					e.byLibvirt(t)
				} else {
					e.byAgents(t, dir, c.agent)
				}
			})
			all = append(all, e)
		}
	}
	goldenSection(t, "../../docs/performance.md", "policies", policyTable(all))
	goldenFile(t, "../../docs/policies.svg", policyPlot(all))
}

func modelSpec(dirty int) instance.Spec {
	return instance.Spec{
		UUID: instance.NewUUID(), VCPUs: 1, MemoryMiB: modelMemoryMiB, Boot: instance.Boot{Kernel: "/boot/vmlinuz"},
		Metadata: map[string]string{
			"fake.used_percent": "100", "fake.working_set_mib": fmt.Sprint(modelWorkingSet), "fake.dirty_mib": fmt.Sprint(modelLinkMiB * dirty / 100),
		},
	}
}

// byLibvirt migrates without an agent, and gives up as an operator would.
func (e *ending) byLibvirt(t *testing.T) {
	world := fake.NewWorld(t.Context())
	drivers := make([]*fake.Driver, 0, 2)
	for _, name := range []string{"a", "b"} {
		h, err := fake.NewHost(world, fake.Config{Name: name, BandwidthMiB: modelLinkMiB})
		if err != nil {
			t.Fatal(err)
		}
		drivers = append(drivers, h.Open())
	}
	from, to := drivers[0], drivers[1]
	def := virt.Definition{Spec: modelSpec(e.dirty), Generation: 1}
	r := virt.MigrateRequest{Instance: def.Spec.UUID, Migration: instance.NewUUID(), Generation: 2}
	must(t, from.Define(t.Context(), def))
	must(t, from.Start(t.Context(), def.Spec.UUID))
	<-time.After(time.Second)
	arriving := def
	arriving.Generation, arriving.Migration = 2, r.Migration
	inbound, err := to.PrepareIncoming(t.Context(), virt.Incoming{Definition: arriving, Source: "a"})
	must(t, err)
	r.Inbound = inbound
	began := time.Now()
	giveUp := time.AfterFunc(libvirtPatience, func() { _ = from.AbortJob(t.Context(), r.Instance) })
	err = from.Migrate(t.Context(), r)
	giveUp.Stop()
	e.took, e.end = time.Since(began), "completed"
	if err != nil {
		e.end = "never: given up"
		return
	}
	j, err := from.CompletedJob(t.Context(), r.Instance)
	must(t, err)
	e.downtime, e.bytes = j.Downtime, j.Memory.Processed
}

// byAgents migrates by a cast.
func (e *ending) byAgents(t *testing.T, dir string, policy func(*migration.Config)) {
	log, err := logkit.New(logkit.Options{Out: io.Discard})
	must(t, err)
	ctx, bus := compose.Logging(logkit.Into(t.Context(), log)), rpc.NewBus()
	var cfg agent.Config
	policy(&cfg.Migration)
	f, err := simulate.Start(ctx, simulate.Config{
		Hosts: []string{"a", "b"}, StateDir: dir, Fake: fake.Config{BandwidthMiB: modelLinkMiB},
		Node: compose.Config{Agent: cfg, State: state.Options{NoSync: true}},
		Dial: func(_ context.Context, host string) (rpc.Transport, error) { return bus.Connect(host), nil },
	})
	must(t, err)
	defer func() { must(t, f.Stop(ctx)) }()
	ctl := bus.Connect("controller")
	spec := modelSpec(e.dirty)
	cast(t, ctl, api.BuildAndRunInstance, api.BuildArgs{Spec: spec})
	<-time.After(10 * time.Second)
	id := instance.NewUUID()
	cast(t, ctl, api.LiveMigration, api.MigrateArgs{Instance: spec.UUID, Dest: "b", Migration: id})
	var m instance.Migration
	for until := time.Now().Add(modelPatience); !m.Status.Ended() && time.Now().Before(until); <-time.After(time.Second) {
		entry, err := ctl.Get(ctx, rpc.Migrations, []string{"a", id})
		if err == nil {
			must(t, json.Unmarshal(entry.Value, &m))
		}
	}
	if !m.Status.Ended() {
		t.Fatalf("%s at %d %%: not ended: %+v", e.policy, e.dirty, m)
	}
	e.end = string(m.Status)
	if m.Mode != "" && m.Mode != instance.ModePreCopy {
		e.end += ", " + string(m.Mode)
	}
	e.took = time.Duration(m.Result.TotalMS) * time.Millisecond
	if e.took == 0 {
		e.took = m.EndedAt.Sub(m.StartedAt)
	}
	e.downtime, e.bytes = time.Duration(m.Result.DowntimeMS)*time.Millisecond, m.Result.Bytes
	for _, at := range m.Result.Timeline {
		if at.Action == "pause" { // from then on the guest stood still, whatever the hypervisor counts
			e.downtime = e.took - time.Duration(at.AtMS)*time.Millisecond
		}
	}
}

func cast(t *testing.T, ctl rpc.Transport, method string, args any) {
	t.Helper()
	body, err := json.Marshal(args)
	must(t, err)
	must(t, ctl.Cast(t.Context(), "a", rpc.Message{Method: method, RequestID: instance.NewUUID(), Version: api.Version, Args: body}))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// policyTable is the table of docs/performance.md.
func policyTable(all []ending) string {
	var b strings.Builder
	b.WriteString("| policy | the guest writes, % of the link | end | time to end, s | downtime, ms | GiB moved |\n| --- | --: | --- | --: | --: | --: |\n")
	for _, e := range all {
		downtime, moved := "", ""
		if e.downtime > 0 {
			downtime = fmt.Sprint(e.downtime.Milliseconds())
		}
		if e.bytes > 0 {
			moved = fmt.Sprintf("%.1f", float64(e.bytes)/(1<<30))
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %.1f | %s | %s |\n", e.policy, e.dirty, e.end, e.took.Seconds(), downtime, moved)
	}
	return b.String()
}

// goldenSection compares what a file has between its markers, or writes it.
func goldenSection(t *testing.T, path, name, want string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	must(t, err)
	begin, end := "<!-- "+name+": written by go test ./pkg/simulate -run TestPolicies -update -->\n", "<!-- end of "+name+" -->\n"
	head, rest, ok := strings.Cut(string(raw), begin)
	got, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no markers %q … %q", path, begin, end)
	}
	if *update {
		must(t, os.WriteFile(path, []byte(head+begin+want+end+tail), 0o600))
		return
	}
	if d := cmp.Diff(got, want); d != "" {
		t.Errorf("%s is older than the policies; go test ./pkg/simulate -run TestPolicies -update writes it (-it +now):\n%s", path, d)
	}
}

// goldenFile compares a whole file, or writes it.
func goldenFile(t *testing.T, path, want string) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(path, []byte(want), 0o600))
		return
	}
	got, err := os.ReadFile(path)
	must(t, err)
	if d := cmp.Diff(string(got), want); d != "" {
		t.Errorf("%s is older than the policies; go test ./pkg/simulate -run TestPolicies -update writes it (-it +now):\n%s", path, d)
	}
}
