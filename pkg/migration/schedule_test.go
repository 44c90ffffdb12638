package migration_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/migration"
)

var novaDefault = migration.ScheduleConfig{MaxDowntime: 500 * time.Millisecond, Steps: 10, DelayPerGB: 75 * time.Second}

// TestDowntimeSchedule compares with the table of nova.md 2.3: wait per step, and the ramp.
func TestDowntimeSchedule(t *testing.T) {
	ramp := []int{50, 95, 140, 185, 230, 275, 320, 365, 410, 455, 500}
	cases := []struct {
		c    migration.ScheduleConfig
		gb   float64
		wait int
		ms   []int
	}{
		{novaDefault, 2, 150, ramp},
		{novaDefault, 2.5, 187, ramp},
		{novaDefault, 4, 300, ramp},
		{novaDefault, 8, 600, ramp},
		{novaDefault, 16, 1200, ramp},
		{novaDefault, 32, 2400, ramp},
		{novaDefault, 64, 4800, ramp},
		{novaDefault, 128, 9600, ramp},
		{novaDefault, 256, 19200, ramp},
		{novaDefault, 1024, 76800, ramp},
		{
			migration.ScheduleConfig{MaxDowntime: 400 * time.Millisecond, Steps: 10, DelayPerGB: 30 * time.Second},
			3, 90,
			[]int{40, 76, 112, 148, 184, 220, 256, 292, 328, 364, 400},
		},
		{migration.ScheduleConfig{MaxDowntime: 100 * time.Millisecond, Steps: 3, DelayPerGB: 3 * time.Second}, 2, 6, []int{33, 55, 77, 100}},
	}
	for _, c := range cases {
		var want []migration.DowntimeStep
		for i, ms := range c.ms {
			want = append(want, migration.DowntimeStep{
				After: time.Duration(i*c.wait) * time.Second, Downtime: time.Duration(ms) * time.Millisecond,
			})
		}
		if diff := cmp.Diff(want, migration.DowntimeSchedule(c.c, c.gb)); diff != "" {
			t.Errorf("DowntimeSchedule(%+v, %v) (-want +got):\n%s", c.c, c.gb, diff)
		}
	}
	for steps, last := range map[int]int64{6: 999, 10: 1000} { // truncation loses a millisecond for some
		s := migration.DowntimeSchedule(migration.ScheduleConfig{MaxDowntime: time.Second, Steps: steps, DelayPerGB: time.Minute}, 2)
		if got := s[len(s)-1].Downtime; got.Milliseconds() != last {
			t.Errorf("1000 ms in %d steps ends at %v, want %d ms", steps, got, last)
		}
	}
	s := migration.DowntimeSchedule(migration.ScheduleConfig{MaxDowntime: 500 * time.Millisecond, Steps: 6, DelayPerGB: time.Minute}, 2)
	if got := s[6].Downtime; got != 499*time.Millisecond {
		t.Errorf("500 ms in 6 steps ends at %v, want 499 ms", got)
	}
	if got := migration.DowntimeSchedule(migration.ScheduleConfig{MaxDowntime: time.Second}, 2); got != nil {
		t.Errorf("a schedule without steps = %v", got)
	}
}

func TestDowntimeAt(t *testing.T) {
	steps := migration.DowntimeSchedule(novaDefault, 2)
	cases := []struct {
		elapsed time.Duration
		want    time.Duration
		ok      bool
	}{
		{0, 0, false}, // strictly below: nothing at the first poll
		{500 * time.Millisecond, 50 * time.Millisecond, true},
		{150 * time.Second, 50 * time.Millisecond, true},
		{150*time.Second + 1, 95 * time.Millisecond, true},
		{700 * time.Second, 230 * time.Millisecond, true},
		{1500 * time.Second, 455 * time.Millisecond, true},
		{1501 * time.Second, 500 * time.Millisecond, true},
		{100 * time.Hour, 500 * time.Millisecond, true},
	}
	for _, c := range cases {
		if got, ok := migration.DowntimeAt(steps, c.elapsed); got != c.want || ok != c.ok {
			t.Errorf("DowntimeAt(%v) = %v, %t, want %v, %t", c.elapsed, got, ok, c.want, c.ok)
		}
	}
	if _, ok := migration.DowntimeAt(nil, time.Hour); ok {
		t.Error("an empty schedule gave a downtime")
	}
}

func TestDataGB(t *testing.T) {
	const gib = 1 << 30
	cases := []struct {
		memory int
		disks  []int64
		want   float64
	}{
		{128, nil, 2},
		{2048, nil, 2},
		{2560, nil, 2.5},
		{8192, []int64{10 * gib}, 18},
		{8192, []int64{0}, 10}, // what stat says of a block device
		{8192, []int64{-1, gib}, 10},
		{1024, []int64{3 * gib, 5*gib + gib/2}, 10.5},
	}
	for _, c := range cases {
		if got := migration.DataGB(c.memory, c.disks); got != c.want {
			t.Errorf("DataGB(%d, %v) = %v, want %v", c.memory, c.disks, got, c.want)
		}
	}
}

func TestCompletionTimeout(t *testing.T) {
	for gb, want := range map[float64]int{2: 1600, 2.5: 2000, 4: 3200, 16: 12800, 256: 204800, 1024: 819200, 2.001: 1600} {
		if got := migration.CompletionTimeout(800*time.Second, gb); got != time.Duration(want)*time.Second {
			t.Errorf("CompletionTimeout(800 s, %v) = %v, want %d s", gb, got, want)
		}
	}
	if got := migration.CompletionTimeout(0, 8); got != 0 {
		t.Errorf("CompletionTimeout(0, 8) = %v, want none", got)
	}
}

func TestProgress(t *testing.T) {
	cases := []struct {
		remaining, total uint64
		want             int
	}{
		{0, 0, 0},
		{5, 0, 0},
		{0, 100, 100},
		{100, 100, 0},
		{50, 100, 50},
		{5, 1000, 100},  // 0.5 → 0
		{15, 1000, 98},  // 1.5 → 2
		{25, 1000, 98},  // 2.5 → 2
		{35, 1000, 96},  // 3.5 → 4
		{150, 100, -50}, // more than the total
		{1, 3, 67},
		{2, 3, 33},
	}
	for _, c := range cases {
		if got := migration.Progress(c.remaining, c.total); got != c.want {
			t.Errorf("Progress(%d, %d) = %d, want %d", c.remaining, c.total, got, c.want)
		}
	}
}

func TestResolveJobType(t *testing.T) {
	gone := fault.Wrap(fault.New(fault.NotFound, "lookup", "x", "no such domain"), "job", "x")
	cases := []struct {
		active bool
		err    error
		want   migration.JobType
	}{
		{true, nil, migration.JobFailed},
		{false, nil, migration.JobCompleted},
		{true, gone, migration.JobCompleted},
		{false, gone, migration.JobCompleted},
		{false, errors.New("broken pipe"), migration.JobFailed},
		{true, fault.New(fault.Unavailable, "", "", "away"), migration.JobFailed},
	}
	for _, c := range cases {
		if got := migration.ResolveJobType(c.active, c.err); got != c.want {
			t.Errorf("ResolveJobType(%t, %v) = %s, want %s", c.active, c.err, got, c.want)
		}
	}
}
