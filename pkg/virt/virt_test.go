package virt_test

import (
	"testing"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

func TestPower(t *testing.T) {
	cases := []struct {
		d    virt.Domain
		want instance.PowerState
	}{
		{virt.Domain{ID: 1, State: virt.Running}, instance.PowerRunning},
		{virt.Domain{ID: 1, State: virt.Paused}, instance.PowerPaused},
		{virt.Domain{ID: 1, State: virt.ShuttingDown}, instance.PowerShutdown},
		{virt.Domain{ID: -1, State: virt.Shutoff}, instance.PowerShutdown},
		{virt.Domain{ID: -1, State: virt.Shutoff, Saved: true}, instance.PowerSuspended},
		{virt.Domain{ID: 3, State: virt.Running, Saved: true}, instance.PowerRunning},
		{virt.Domain{ID: -1, State: virt.Crashed}, instance.PowerCrashed},
		{virt.Domain{ID: 1, State: virt.PMSuspended}, instance.PowerSuspended},
		{virt.Domain{ID: -1, State: virt.NoState}, instance.PowerPending},
	}
	for _, c := range cases {
		if got := c.d.Power(); got != c.want {
			t.Errorf("%+v: Power() = %s, want %s", c.d, got, c.want)
		}
	}
}

func TestJobTypeNames(t *testing.T) {
	want := []string{"none", "bounded", "unbounded", "completed", "failed", "cancelled", "unknown"}
	for i, w := range want {
		if got := virt.JobType(i).String(); got != w {
			t.Errorf("JobType(%d) = %q, want %q", i, got, w)
		}
	}
}
