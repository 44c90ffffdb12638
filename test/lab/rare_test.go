package lab_test

import (
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

// rare are the scenarios of which an ordinary run does one, another one each day.
var rare = []struct {
	name string
	run  func(t *testing.T)
}{
	{"broken post-copy is taken up", brokenPostCopyIsTakenUp},
	{"bandwidth is steered", bandwidthIsSteered},
	{"memory is compressed", memoryIsCompressed},
	{"guests arrive at another address", guestsArriveAtAnotherAddress},
	{"volumes move", volumesMove},
	{"guests leave over TLS", guestsLeaveOverTLS},
	{"on stall post_copy", func(t *testing.T) { eachPolicy(t, "post_copy") }},
	{"on stall pause", func(t *testing.T) { eachPolicy(t, "pause") }},
	{"on stall abort", func(t *testing.T) { eachPolicy(t, "abort") }},
	{"every reason at once", everyReasonAtOnce},
}

// TestRare does the scenario of the day. COMPUTE_AGENT_LAB_RARE: "all", the number of a day, or a regular expression of names.
func TestRare(t *testing.T) {
	wantLab(t)
	wish := os.Getenv("COMPUTE_AGENT_LAB_RARE")
	if wish == "" {
		wish = strconv.Itoa(time.Now().YearDay())
	}
	day, notDay := strconv.Atoi(wish)
	match := regexp.MustCompile(map[bool]string{true: "", false: wish}[wish == "all"])
	for i, r := range rare {
		if notDay == nil && i == day%len(rare) || notDay != nil && match.MatchString(r.name) {
			t.Run(r.name, r.run)
		}
	}
}

// Idle guests and guests that write memory faster than the stream carries it, by each policy; what is done with one that
// can't end by itself is the host's on_stall.
func eachPolicy(t *testing.T, onStall string) {
	t.Helper()
	s := newStage(t, "[migration]\non_stall = \""+onStall+"\"\nlive_migration_permit_post_copy = "+strconv.FormatBool(onStall == "post_copy")+"\n")
	idle, busy := s.boot(t, 10, "h1"), s.boot(t, 11, "h1", "ca.dirty=24")
	there, back := "h2", "h1"
	for _, policy := range []string{"nova", "adaptive", "pause_now", "post_copy_now"} {
		for name, spec := range map[string]instance.Spec{"idle": idle, "busy": busy} {
			t.Run(policy+" "+name, func(t *testing.T) {
				args := api.MigrateArgs{Dest: there, Policy: policy}
				if name == "busy" {
					args.BandwidthMiB, args.CompletionTimeoutSeconds = 8, 8
					if onStall == "pause" { // then all that remains has to go in as much time again
						args.CompletionTimeoutSeconds = 16
					}
				}
				s.byPolicy(t, spec, args, onStall)
			})
		}
		s.bring(t, there, idle, busy)
		there, back = back, there
	}
	_ = back
}

// byPolicy moves a guest and looks at how it ended.
func (s *stage) byPolicy(t *testing.T, spec instance.Spec, args api.MigrateArgs, onStall string) {
	t.Helper()
	ctx := t.Context()
	task, err := s.c.LiveMigration(ctx, spec.UUID, args)
	must(t, "live_migration", err)
	t.Cleanup(func() { _ = task.Close() })
	want := map[string]instance.MigrationMode{"pause": instance.ModePaused, "post_copy": instance.ModePostCopy}[onStall]
	switch {
	case args.Policy == "pause_now":
		want = instance.ModePaused
	case args.Policy == "post_copy_now":
		want = instance.ModePostCopy
	case args.CompletionTimeoutSeconds == 0:
		want = instance.ModePreCopy
	}
	_, err = task.Wait(ctx)
	m, showErr := s.c.ShowMigration(ctx, task.Migration())
	must(t, "show", showErr)
	if want == "" {
		if !errors.Is(err, fault.Cancelled) || m.Status != instance.MigrationCancelled {
			t.Errorf("it ended as %s: %v, want it aborted by policy", m.Status, err)
		}
		return
	}
	if err != nil || m.Status != instance.MigrationCompleted || m.Mode != want && args.CompletionTimeoutSeconds > 0 {
		t.Fatalf("it ended as %s, %s: %v; want it completed in mode %s", m.Status, m.Mode, err, want)
	}
	t.Logf("%s after %d ms, downtime %d ms, %d MiB, %d iterations", m.Mode, m.Result.TotalMS, m.Result.DowntimeMS, m.Result.Bytes>>20, m.Result.Iterations)
	must(t, "ping", lab.WaitPing(ctx, lab.AddressOf(spec.Ports[0].MAC), 10*time.Second))
}

// bring moves those guests to a host that are not there.
func (s *stage) bring(t *testing.T, host string, guests ...instance.Spec) {
	t.Helper()
	for _, spec := range guests {
		if i, err := s.c.ShowInstance(t.Context(), spec.UUID); err != nil || i.Host == host {
			must(t, "show", err)
			continue
		}
		task, err := s.c.LiveMigration(t.Context(), spec.UUID, api.MigrateArgs{Dest: host, Policy: "pause_now"})
		s.do(t, task, err)
	}
}

// Everything that speaks against a migration on real hosts is listed at once: what the source's libvirt says, what the
// destination's does, and what the agents know.
func everyReasonAtOnce(t *testing.T) {
	s := newStage(t)
	ctx := t.Context()
	spec := s.withVolumes(t, 50)
	kernel := s.Host(1).Outside("/var/lib/libvirt/images/kernel") // that only the first host has
	data, err := os.ReadFile(spec.Boot.Kernel)
	must(t, "kernel", err)
	must(t, "kernel", os.WriteFile(kernel, data, 0o644))
	spec.Boot.Kernel = "/var/lib/libvirt/images/kernel"
	task, err := s.c.BuildAndRunInstance(ctx, "h1", spec)
	s.do(t, task, err)
	virsh(t, s.Host(2), "pool-destroy", "vols")
	virsh(t, s.Host(2), "pool-undefine", "vols")
	_, err = s.c.SetHostEnabled(ctx, "h2", false, "for repairs")
	must(t, "disable", err)
	reasons, err := s.c.CheckMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h2", Policy: "post_copy_now", ParallelConnections: 4})
	must(t, "check", err)
	for _, want := range []string{
		"for repairs", "pool vols is not here", "boot.kernel", "post-copy and parallel connections",
	} {
		if !regexp.MustCompile(want).MatchString(strings.Join(reasons, "\n")) {
			t.Errorf("no reason says %q among %q", want, reasons)
		}
	}
	if i, err := s.c.ShowInstance(ctx, spec.UUID); err != nil || i.Host != "h1" || i.TaskState != instance.TaskNone {
		t.Errorf("the check changed the instance: %+v, %v", i, err)
	}
}
