package config

import (
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/reboot"
	"github.com/compute-agent/compute-agent/pkg/vif"
)

// vifRetryGrowth is how far the sleep between two tries of a port may grow.
const vifRetryGrowth = 10

// ForAgent gives the options of the agent and of the rooms below it. The machine's
// identity is not configured: the caller adds it.
func (c Config) ForAgent() agent.Config {
	return agent.Config{
		Host: c.Agent.Host, StateDir: c.Agent.StateDir, Driver: c.Agent.Driver,
		ReportInterval: c.Agent.ReportInterval, ReconcileInterval: c.Agent.ReconcileEvery,
		StopTimeout: c.Agent.StopTimeout, CastDefaultExpiry: c.Agent.CastExpiry,
		MaxAcceptedTasks: c.Agent.MaxAcceptedTasks, AckWait: c.RPC.AckWait,
		Migration: c.forMigration(), Reboot: c.forReboot(),
	}
}

func (c Config) forMigration() migration.Config {
	m := c.Migration
	out := migration.Config{
		OutboundSlots: m.Outbound, InboundSlots: m.Inbound, Policy: m.Policy, OnStall: migration.OnStall(m.OnStall),
		VIFTimeout: c.VIF.PluggingTimeout, VIFNotFatal: !c.VIF.PluggingFatal,
		ClaimTimeout: m.ClaimTimeout, PeerTimeout: m.PeerTimeout, MonitorInterval: m.MonitorInterval,
		PermitPostCopy: m.PermitPostCopy, PermitAutoConv: m.PermitAutoConv,
		BandwidthMiB: uint64(max(m.Bandwidth, 0)), Parallel: m.Parallel,
		BudgetMiB: uint64(max(m.Budget, 0)), PostCopyBandwidthMiB: uint64(max(m.PostCopyBandwidth, 0)),
		NativeTLS:         c.Agent.Driver == "libvirt" && c.Libvirt.NativeTLS,
		Downtime:          migration.ScheduleConfig{MaxDowntime: m.Downtime, Steps: m.DowntimeSteps, DelayPerGB: m.DowntimeDelay},
		CompletionTimeout: m.CompletionTimeout,
	}
	if m.CompletionTimeout == 0 { // the file's word for "without end"
		out.CompletionTimeout = -1
	}
	return out
}

func (c Config) forReboot() reboot.Config {
	return reboot.Config{
		WaitSoftReboot: orNow(c.Reboot.WaitSoft), ShutdownTimeout: orNow(c.Reboot.ShutdownTimeout),
		ShutdownRetryInterval: c.Reboot.RetryInterval, HardRebootTimeout: c.Reboot.HardTimeout,
	}
}

// orNow writes "do not wait" in a way that is not taken for "the default".
func orNow(d time.Duration) time.Duration {
	if d == 0 {
		return time.Nanosecond
	}
	return d
}

// ForVIF gives the options of the network interfaces.
func (c Config) ForVIF() vif.Config {
	v := c.VIF
	out := vif.Config{
		MaxRetry: v.MaxRetry, RetryFirst: v.RetryInterval, RetryLimit: vifRetryGrowth * v.RetryInterval,
		PluggingTimeout: v.PluggingTimeout, PluggingNotFatal: !v.PluggingFatal, Workers: v.Workers,
	}
	if v.MaxRetry == 0 {
		out.MaxRetry = -1
	}
	if v.PluggingTimeout == 0 {
		out.PluggingTimeout = -1
	}
	return out
}

// Servers splits the URL list; embedded reports whether the server is to run inside
// this process.
func (r RPC) Servers() (urls []string, embedded bool) {
	if r.URL == "embedded" {
		return []string{"nats://" + r.Listen}, true
	}
	for u := range strings.SplitSeq(r.URL, ",") {
		if u = strings.TrimSpace(u); u != "" {
			urls = append(urls, u)
		}
	}
	return urls, false
}
