package lab_test

import (
	"cmp"
	"errors"
	"fmt"
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

// scenario is one of the rare ones.
type scenario struct {
	name string
	run  func(t *testing.T)
}

// rare are the scenarios of which an ordinary run does one, another one each day.
var rare = []scenario{
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
	{"paused guest's reply is lost", pausedGuestsReplyIsLost},
}

// TestRare does the scenario of the day. COMPUTE_AGENT_LAB_RARE: "all", the number of a day, or a regular expression of names.
func TestRare(t *testing.T) {
	wantLab(t)
	some, err := rareOf(cmp.Or(os.Getenv("COMPUTE_AGENT_LAB_RARE"), strconv.Itoa(time.Now().YearDay())))
	must(t, "COMPUTE_AGENT_LAB_RARE", err)
	for _, r := range some {
		t.Run(r.name, r.run)
	}
}

// rareOf gives the scenarios that a wish means.
func rareOf(wish string) (some []scenario, err error) {
	if day, err := strconv.Atoi(wish); err == nil && day >= 0 {
		return rare[day%len(rare):][:1], nil
	}
	match, err := regexp.Compile(map[bool]string{true: "", false: wish}[wish == "all"])
	if err != nil {
		return nil, err
	}
	for _, r := range rare {
		if match.MatchString(r.name) {
			some = append(some, r)
		}
	}
	if len(some) == 0 {
		return nil, fmt.Errorf("no scenario matches %q", wish)
	}
	return some, nil
}

// A wish that nothing matches is an error: a run of nothing shows nothing.
func TestWishes(t *testing.T) {
	for _, wish := range []string{"volumes go", "-1", "("} {
		if some, err := rareOf(wish); err == nil {
			t.Errorf("the scenarios of %q are %v", wish, some)
		}
		if cells, err := cellsOf(wish); err == nil {
			t.Errorf("the cells of %q are %v", wish, cells)
		}
	}
	kinds, all := map[string]bool{}, 0
	for _, b := range blows {
		kinds[b.name], all = true, all+len(b.phases)
	}
	for wish, want := range map[string][2]int{"all": {len(rare), all}, "0": {1, len(kinds)}, "365": {1, len(kinds)}} {
		some, err := rareOf(wish)
		if err != nil || len(some) != want[0] {
			t.Errorf("%q means %d scenarios, %v, want %d", wish, len(some), err, want[0])
		}
		cells, err := cellsOf(wish)
		if err != nil || len(cells) != want[1] {
			t.Errorf("%q means %d cells, %v, want %d", wish, len(cells), err, want[1])
		}
	}
	if some, err := rareOf("volumes|TLS"); err != nil || len(some) != 2 {
		t.Errorf("volumes|TLS means %d scenarios, %v", len(some), err)
	}
	if cells, err := cellsOf("^NATS in check$"); err != nil || len(cells) != 1 {
		t.Errorf("one cell by its name: %v, %v", cells, err)
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
}

// byPolicy moves a guest and looks at how it ended. The mode is compared for busy guests alone: an idle one may be over
// before its policy acts, and ends well in either mode.
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
