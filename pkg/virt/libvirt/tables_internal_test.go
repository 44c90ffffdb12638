package libvirt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
	"github.com/compute-agent/compute-agent/pkg/virt/virttest"
)

var _ virttest.Driver = (*Driver)(nil)

// The numbers are libvirt's own (virterror.h), written out so that a slip in the
// table or in go-libvirt's constants is seen.
func TestErrorKinds(t *testing.T) {
	want := map[uint32]fault.Kind{
		42: fault.NotFound, 49: fault.NotFound, 50: fault.NotFound, 80: fault.NotFound, 99: fault.NotFound,
		28: fault.Conflict, 55: fault.Conflict, 83: fault.Conflict, 84: fault.Conflict, 86: fault.Conflict, 87: fault.Conflict,
		97: fault.Conflict, 112: fault.Conflict, 113: fault.Conflict,
		68: fault.Timeout, 78: fault.Cancelled,
		8: fault.InvalidArgument, 27: fault.InvalidArgument, 35: fault.InvalidArgument, 67: fault.InvalidArgument,
		74: fault.InvalidArgument, 92: fault.InvalidArgument,
		81: fault.PreconditionFailed, 91: fault.PreconditionFailed,
		29: fault.Unauthorized, 45: fault.Unauthorized, 79: fault.Unauthorized, 88: fault.Unauthorized, 94: fault.Unauthorized,
		5: fault.Unavailable, 6: fault.Unavailable, 39: fault.Unavailable,
	}
	for code := range uint32(120) {
		if code == 0 {
			continue
		}
		kind, listed := want[code]
		if !listed {
			kind = fault.Internal
		}
		err := fromLibvirt(golibvirt.Error{Code: code, Message: "it said so"}, "op", "subject")
		if fault.KindOf(err) != kind {
			t.Errorf("number %d: kind %s, want %s", code, fault.KindOf(err), kind)
		}
		if fault.DetailsOf(err)["libvirt_code"] != code || !strings.Contains(err.Error(), "it said so") || !isCode(err, golibvirt.ErrorNumber(code)) {
			t.Errorf("number %d: %v with details %v, want number and text kept", code, err, fault.DetailsOf(err))
		}
	}
}

func TestTransportErrors(t *testing.T) {
	cases := []struct {
		err  error
		want fault.Kind
	}{
		{errBound, fault.Timeout},
		{errSlots, fault.Timeout},
		{context.DeadlineExceeded, fault.Timeout},
		{context.Canceled, fault.Cancelled},
		{errGone, fault.Unavailable},
		{golibvirt.ErrInterrupted, fault.Unavailable},
		{syscall.EINVAL, fault.Unavailable},
		{golibvirt.ErrUnsupported, fault.Internal},
		{fault.New(fault.Conflict, "", "", "x"), fault.Conflict},
	}
	for _, c := range cases {
		if got := fault.KindOf(fromLibvirt(fmt.Errorf("wrapped: %w", c.err), "op", "id")); got != c.want {
			t.Errorf("%v: kind %s, want %s", c.err, got, c.want)
		}
	}
	if fromLibvirt(nil, "op", "id") != nil {
		t.Error("no error became one")
	}
}

// All names that libvirt has for job statistics and that are read here; a misspelt
// one would be zero for ever.
func TestJobFieldNames(t *testing.T) {
	ull := func(name string, v uint64) golibvirt.TypedParam { return paramUllong(name, v) }
	params := []golibvirt.TypedParam{
		ull("time_elapsed", 2290), ull("downtime", 188), ull("setup_time", 7),
		ull("memory_total", 1000), ull("memory_processed", 600), ull("memory_remaining", 400),
		ull("disk_total", 10), ull("disk_processed", 4), ull("disk_remaining", 6),
		ull("memory_bps", 123), ull("memory_dirty_rate", 5), ull("memory_page_size", 8192), ull("memory_iteration", 3),
		ull("memory_postcopy_requests", 9), paramInt("auto_converge_throttle", 20), paramString("errmsg", "why"),
	}
	want := virt.Job{
		Type: virt.JobUnbounded, Elapsed: 2290 * time.Millisecond, Downtime: 188 * time.Millisecond, Setup: 7 * time.Millisecond,
		Memory: instance.Amount{Total: 1000, Processed: 600, Remaining: 400}, Disk: instance.Amount{Total: 10, Processed: 4, Remaining: 6},
		Bandwidth: 123, DirtyRate: 5 * 8192, Iteration: 3, Throttle: 20, PostCopyReq: 9, Error: "why",
	}
	if diff := cmp.Diff(want, jobOf(virt.JobUnbounded, params)); diff != "" {
		t.Errorf("jobOf (-want +got):\n%s", diff)
	}
	failed := jobOf(virt.JobCompleted, []golibvirt.TypedParam{{Field: "success", Value: golibvirt.TypedParamValue{D: 6, I: int32(0)}}})
	if failed.Type != virt.JobFailed {
		t.Errorf("a job without success is %s, want failed", failed.Type)
	}
}

func TestFieldsTakeAnyWidth(t *testing.T) {
	for _, v := range []any{int32(7), uint32(7), int64(7), uint64(7), float64(7)} {
		if got := (fields{"n": v}).number("n"); got != 7 {
			t.Errorf("%T reads as %d, want 7", v, got)
		}
	}
	for _, v := range []any{int32(-7), int64(-7), float64(-7), "7", nil} {
		if got := (fields{"n": v}).number("n"); got != 0 {
			t.Errorf("%T %v reads as %d, want 0", v, v, got)
		}
	}
}

func TestStates(t *testing.T) {
	cases := []struct {
		state, reason int32
		want          virt.State
		why           virt.Reason
	}{
		{0, 0, virt.NoState, ""},
		{1, 1, virt.Running, virt.ReasonBooted},
		{1, 2, virt.Running, virt.ReasonMigrated},
		{1, 5, virt.Running, virt.ReasonUnpaused},
		{1, 10, virt.Running, virt.ReasonPostCopy},
		{1, 11, virt.Running, virt.ReasonPostCopyFailed},
		{2, 0, virt.Running, ""},
		{3, 1, virt.Paused, virt.ReasonUser},
		{3, 2, virt.Paused, virt.ReasonMigrating},
		{3, 11, virt.Paused, virt.ReasonStarting},
		{3, 12, virt.Paused, virt.ReasonPostCopy},
		{3, 13, virt.Paused, virt.ReasonPostCopyFailed},
		{4, 1, virt.ShuttingDown, virt.ReasonUser},
		{5, 1, virt.Shutoff, virt.ReasonShutdown},
		{5, 2, virt.Shutoff, virt.ReasonDestroyed},
		{5, 4, virt.Shutoff, virt.ReasonMigrated},
		{5, 5, virt.Shutoff, virt.ReasonSaved},
		{5, 6, virt.Shutoff, virt.ReasonFailed},
		{6, 1, virt.Crashed, "panicked"},
		{7, 0, virt.PMSuspended, ""},
		{1, 99, virt.Running, ""},
		{1, -1, virt.Running, ""},
		{99, 0, virt.NoState, ""},
	}
	for _, c := range cases {
		if s, why := stateOf(c.state, c.reason); s != c.want || why != c.why {
			t.Errorf("state %d, reason %d = %s (%s), want %s (%s)", c.state, c.reason, s, why, c.want, c.why)
		}
	}
}

func TestLifecycleEvents(t *testing.T) {
	cases := []struct {
		kind, detail int32
		want         virt.EventKind
		why          virt.Reason
	}{
		{0, 0, virt.EventDefined, "added"},
		{1, 0, virt.EventUndefined, "removed"},
		{2, 0, virt.EventStarted, virt.ReasonBooted},
		{2, 1, virt.EventStarted, virt.ReasonMigrated},
		{3, 0, virt.EventSuspended, virt.ReasonUser},
		{3, 1, virt.EventSuspended, virt.ReasonMigrated},
		{3, 7, virt.EventSuspended, virt.ReasonPostCopy},
		{3, 8, virt.EventSuspended, virt.ReasonPostCopyFailed},
		{4, 0, virt.EventResumed, virt.ReasonUnpaused},
		{4, 1, virt.EventResumed, virt.ReasonMigrated},
		{4, 3, virt.EventResumed, virt.ReasonPostCopy},
		{5, 1, virt.EventStopped, virt.ReasonDestroyed},
		{5, 3, virt.EventStopped, virt.ReasonMigrated},
		{6, 1, virt.EventShutdown, "guest"},
		{7, 1, virt.EventPMSuspended, "disk"},
		{8, 0, virt.EventCrashed, "panicked"},
	}
	for _, c := range cases {
		if k, why, ok := lifecycle(c.kind, c.detail); !ok || k != c.want || why != c.why {
			t.Errorf("lifecycle(%d, %d) = %s (%s), %t, want %s (%s)", c.kind, c.detail, k, why, ok, c.want, c.why)
		}
	}
	for _, kind := range []int32{-1, 9, 1 << 30} {
		if _, _, ok := lifecycle(kind, 0); ok {
			t.Errorf("kind %d is known, want it left out", kind)
		}
	}
}

// Whatever bytes come, decoding neither panics nor invents an event of a kind that
// the procedure doesn't carry.
func TestDecodeAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		proc := rapid.SampledFrom([]uint32{procLifecycle, procReboot, procIteration, procJobCompleted, 1, 999}).Draw(t, "procedure")
		ev, ok := decodeEvent(proc, body)
		if ok && (proc == 1 || proc == 999) {
			t.Fatalf("procedure %d gave %+v", proc, ev)
		}
	})
}

// Every prefix of a good packet is refused.
func TestDecodeCutShort(t *testing.T) {
	id := uuid.New()
	body := xdr(1, "name", id, 7, 3,
		"memory_total", 4, uint64(5), "errmsg", 7, "text", "auto_converge_throttle", 1, int32(20))
	ev, ok := decodeEvent(procJobCompleted, body)
	if !ok || ev.Domain != id.String() || ev.Job.Memory.Total != 5 || ev.Job.Error != "text" || ev.Job.Throttle != 20 {
		t.Fatalf("decodeEvent = %+v, %t, want the job", ev, ok)
	}
	for n := range body {
		if ev, ok := decodeEvent(procJobCompleted, body[:n]); ok {
			t.Fatalf("%d of %d bytes decode to %+v", n, len(body), ev)
		}
	}
}

func TestMigrateFlagsAndParameters(t *testing.T) {
	base := golibvirt.MigrateLive | golibvirt.MigratePeer2peer | golibvirt.MigratePersistDest | golibvirt.MigrateUndefineSource
	disks := []domxml.DiskInfo{
		{Target: "vda", Backed: true, Source: "/in/ID/disk0.qcow2"},
		{Target: "vdb", Source: "/own.raw"},
		{Target: "vdc", Backed: true, Source: "/in/IDs/own.qcow2"},
	}
	cases := []struct {
		name   string
		r      virt.MigrateRequest
		flags  golibvirt.DomainMigrateFlags
		params []golibvirt.TypedParam
	}{
		{"plain", virt.MigrateRequest{}, base, []golibvirt.TypedParam{paramUllong("bandwidth", 0)}},
		{
			"all that goes together",
			virt.MigrateRequest{BandwidthMiB: 8, PostCopy: true, AutoConverge: true, Inbound: virt.Inbound{MigrateURI: "tcp://10.0.0.2"}},
			base | golibvirt.MigratePostcopy | golibvirt.MigrateAutoConverge,
			[]golibvirt.TypedParam{paramUllong("bandwidth", 8), paramString("migrate_uri", "tcp://10.0.0.2")},
		},
		{
			"parallel",
			virt.MigrateRequest{Parallel: 4},
			base | golibvirt.MigrateParallel,
			[]golibvirt.TypedParam{paramUllong("bandwidth", 0), paramInt("parallel.connections", 4)},
		},
		{
			"xbzrle, post-copy too",
			virt.MigrateRequest{Compression: "xbzrle", PostCopy: true},
			base | golibvirt.MigratePostcopy | golibvirt.MigrateCompressed,
			[]golibvirt.TypedParam{paramUllong("bandwidth", 0), paramString("compression", "xbzrle")},
		},
		{
			"zstd on parallel connections",
			virt.MigrateRequest{Compression: "zstd", Parallel: 4},
			base | golibvirt.MigrateParallel | golibvirt.MigrateCompressed,
			[]golibvirt.TypedParam{paramUllong("bandwidth", 0), paramInt("parallel.connections", 4), paramString("compression", "zstd")},
		},
		{
			"overlays only",
			virt.MigrateRequest{Disks: []string{"vda"}},
			base | golibvirt.MigrateNonSharedInc,
			[]golibvirt.TypedParam{paramUllong("bandwidth", 0), paramString("migrate_disks", "vda")},
		},
		{
			"a disk without a base among them",
			virt.MigrateRequest{Disks: []string{"vda", "vdb"}},
			base | golibvirt.MigrateNonSharedInc,
			[]golibvirt.TypedParam{paramUllong("bandwidth", 0), paramString("migrate_disks", "vda"), paramString("migrate_disks", "vdb")},
		},
		{
			"a base that only the source knows",
			virt.MigrateRequest{Disks: []string{"vda", "vdc"}},
			base | golibvirt.MigrateNonSharedDisk,
			[]golibvirt.TypedParam{paramUllong("bandwidth", 0), paramString("migrate_disks", "vda"), paramString("migrate_disks", "vdc")},
		},
		{
			"no base at all",
			virt.MigrateRequest{Disks: []string{"vdb"}},
			base | golibvirt.MigrateNonSharedDisk,
			[]golibvirt.TypedParam{paramUllong("bandwidth", 0), paramString("migrate_disks", "vdb")},
		},
	}
	for _, c := range cases {
		flags, err := migrateFlags(c.r, disks, "/in/ID")
		if err != nil || flags != c.flags {
			t.Errorf("%s: flags %d, %v, want %d", c.name, flags, err, c.flags)
		}
		if diff := cmp.Diff(c.params, migrateParams(c.r)); diff != "" {
			t.Errorf("%s: parameters (-want +got):\n%s", c.name, diff)
		}
	}
	if _, err := migrateFlags(virt.MigrateRequest{Disks: []string{"vdz"}}, disks, "/in/ID"); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("an unknown disk: %v, want invalid_argument", err)
	}
}

func TestMigrateRefusals(t *testing.T) {
	good := virt.MigrateRequest{Instance: "i", Migration: "m", Generation: 2, Inbound: virt.Inbound{URI: "qemu+tcp://h2/system"}}
	if err := checkMigrate(good); err != nil {
		t.Errorf("a good request: %v", err)
	}
	bad := map[string]func(*virt.MigrateRequest){
		"no URI":                 func(r *virt.MigrateRequest) { r.Inbound.URI = "" },
		"no migration":           func(r *virt.MigrateRequest) { r.Migration = "" },
		"no generation":          func(r *virt.MigrateRequest) { r.Generation = 0 },
		"post-copy and parallel": func(r *virt.MigrateRequest) { r.PostCopy, r.Parallel = true, 2 },
		"negative parallel":      func(r *virt.MigrateRequest) { r.Parallel = -1 },
		"mt and parallel":        func(r *virt.MigrateRequest) { r.Compression, r.Parallel = "mt", 2 },
		"zstd on one stream":     func(r *virt.MigrateRequest) { r.Compression = "zstd" },
		"unknown compression":    func(r *virt.MigrateRequest) { r.Compression = "lz4" },
		"endless bandwidth":      func(r *virt.MigrateRequest) { r.BandwidthMiB = 1 << 60 },
	}
	for name, change := range bad {
		r := good
		change(&r)
		if err := checkMigrate(r); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v, want invalid_argument", name, err)
		}
	}
}

func TestIsSelf(t *testing.T) {
	cases := []struct {
		host string
		want bool
	}{
		{"h1.example", true},
		{"H1.Example.", true},
		{"h1", true},
		{"localhost", true},
		{"", true},
		{"127.0.0.1", true},
		{"127.8.8.8", true},
		{"::1", true},
		{"0.0.0.0", true},
		{"10.0.0.1", true},
		{"h2.example", false},
		{"h11", false},
		{"10.0.0.2", false},
	}
	for _, c := range cases {
		if got := isSelf(c.host, "h1.example", "10.0.0.1"); got != c.want {
			t.Errorf("isSelf(%q) = %t, want %t", c.host, got, c.want)
		}
	}
}

func TestDestinationURI(t *testing.T) {
	cases := []struct{ template, host, want string }{
		{"qemu+tls://%s/system", "h2", "qemu+tls://h2/system"},
		{"qemu+tcp://%s/system", "fd00::2", "qemu+tcp://[fd00::2]/system"},
		{"qemu+tcp://%s/system", "[fd00::2]", "qemu+tcp://[fd00::2]/system"},
		{"qemu+tcp://%s:16510/system?keepalive=1", "h2", "qemu+tcp://h2:16510/system?keepalive=1"},
		{"qemu+tcp://h/system", "h2", ""},
		{"qemu+tcp://%s/%s", "h2", ""},
		{"%s", "h2", ""},
		{"qemu+tcp://%d%s/system", "h2", ""},
	}
	for _, c := range cases {
		got, err := destinationURI(c.template, c.host)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("destinationURI(%q, %q) = %q, %v, want %q", c.template, c.host, got, err, c.want)
		}
	}
}

func TestVersion(t *testing.T) {
	if got := version(9_000_000); got != "9.0.0" {
		t.Errorf("version = %s, want 9.0.0", got)
	}
	if got := version(11_007_042); got != "11.7.42" {
		t.Errorf("version = %s, want 11.7.42", got)
	}
}

func TestConfigIsChecked(t *testing.T) {
	bad := map[string]Config{
		"virt_type":          {VirtType: "xen"},
		"instances_path":     {InstancesPath: "here"},
		"live_migration_uri": {LiveMigrationURI: "qemu+tcp://h/system"},
	}
	for option, c := range bad {
		_, err := Open(t.Context(), c)
		var e *fault.Error
		if !errors.As(err, &e) || e.Kind != fault.InvalidArgument || e.Subject != option {
			t.Errorf("%s: %v, want it refused by name", option, err)
		}
	}
}

func TestStatsFieldNames(t *testing.T) {
	f := fields{
		"cpu.time": uint64(11), "balloon.current": uint64(12), "balloon.rss": uint64(13),
		"block.count": uint32(1), "block.0.name": "vda", "block.0.rd.bytes": uint64(1), "block.0.rd.reqs": uint64(2),
		"block.0.wr.bytes": uint64(3), "block.0.wr.reqs": uint64(4), "block.0.errors": uint64(5),
		"net.count": uint32(1), "net.0.name": "tap1", "net.0.rx.bytes": uint64(6), "net.0.rx.pkts": uint64(7),
		"net.0.tx.bytes": uint64(8), "net.0.tx.pkts": uint64(9), "net.0.rx.errs": uint64(1), "net.0.tx.errs": uint64(1),
	}
	want := virt.Stats{
		CPUTimeNS: 11, MemoryKiB: 12, RSSKiB: 13,
		Disks: map[string]virt.IO{"vda": {ReadBytes: 1, Reads: 2, WriteBytes: 3, Writes: 4, Errors: 5}},
		Nics:  map[string]virt.IO{"tap1": {ReadBytes: 6, Reads: 7, WriteBytes: 8, Writes: 9, Errors: 2}},
		Extra: map[string]int64{"balloon.current": 12, "balloon.rss": 13},
	}
	if diff := cmp.Diff(want, statsOf(f)); diff != "" {
		t.Errorf("statsOf (-want +got):\n%s", diff)
	}
}
