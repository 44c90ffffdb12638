package config

import (
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/inventory"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/reboot"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/vif"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// ForAgent gives the options of the agent and of the rooms below it. The machine's
// identity is not configured: the caller adds it.
func (c Config) ForAgent() agent.Config {
	return agent.Config{
		Host: c.Agent.Host, StateDir: c.Agent.StateDir, Driver: c.Agent.Driver,
		ReportInterval: c.Agent.ReportInterval, ReconcileInterval: c.Agent.ReconcileEvery,
		StopTimeout: c.Agent.StopTimeout, CastDefaultExpiry: c.Agent.CastExpiry,
		MaxAcceptedTasks: c.Agent.MaxAcceptedTasks, AckWait: c.RPC.AckWait,
		TaskRetention: c.Agent.TaskRetention, TasksKept: c.Agent.TasksKept, MigrationsKept: c.Agent.MigrationsKept,
		StartWait: c.Agent.InventoryWait, BusWait: c.RPC.StartWait, LookTimeout: c.Agent.LookTimeout, CleanupTimeout: c.Agent.CleanupTimeout,
		PublishTimeout: c.Agent.PublishTimeout, ViewInterval: c.Agent.ViewInterval, JournalTimeout: c.Agent.JournalTimeout,
		ReviewInterval: c.Agent.ReviewInterval, ArrivalWait: c.Agent.ArrivalTimeout,
		RetryFirst: c.Agent.RetryFirst, RetryLimit: c.Agent.RetryLimit, RepairWorkers: c.Agent.RepairWorkers,
		Inventory: inventory.Config{
			ReservedHostMemoryMiB: orNone(c.Agent.ReservedMemory), ReservedHostCPUs: c.Agent.ReservedCPUs,
			CPUAllocationRatio: c.Agent.CPURatio, RAMAllocationRatio: c.Agent.RAMRatio,
		},
		Migration: c.forMigration(), Reboot: c.forReboot(),
	}
}

// ForState gives the options of the journal.
func (c Config) ForState() state.Options {
	a := c.Agent
	return state.Options{
		LockTimeout: a.JournalLockTimeout, MaxBatch: a.JournalBatch,
		CompactAbove: int64(orNone(a.JournalCompactMiB)) << 20, CompactTimeout: a.JournalCompactTimeout,
	}
}

// orNone writes "none" in a way that is not taken for "the default".
func orNone(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

func (c Config) forMigration() migration.Config {
	m := c.Migration
	out := migration.Config{
		OutboundSlots: m.Outbound, InboundSlots: m.Inbound, Policy: m.Policy, OnStall: migration.OnStall(m.OnStall),
		VIFTimeout: c.VIF.PluggingTimeout, VIFNotFatal: !c.VIF.PluggingFatal,
		ClaimTimeout: m.ClaimTimeout, PeerTimeout: m.PeerTimeout, MonitorInterval: m.MonitorInterval,
		ProgressInterval: m.ProgressInterval, ProgressRate: m.ProgressRate,
		PermitPostCopy: m.PermitPostCopy, PermitAutoConv: m.PermitAutoConv,
		BandwidthMiB: uint64(max(m.Bandwidth, 0)), Parallel: m.Parallel, Compression: compression(m.Compression),
		BudgetMiB: uint64(max(m.Budget, 0)), PostCopyBandwidthMiB: uint64(max(m.PostCopyBandwidth, 0)),
		NativeTLS:         c.Agent.Driver == "libvirt" && c.Libvirt.NativeTLS,
		Downtime:          migration.ScheduleConfig{MaxDowntime: m.Downtime, Steps: m.DowntimeSteps, DelayPerGB: m.DowntimeDelay},
		CompletionTimeout: m.CompletionTimeout,
		CheckTimeout:      m.CheckTimeout, BusyTimeout: m.BusyTimeout, PrepareTimeout: m.PrepareTimeout, SettleTimeout: m.SettleTimeout, RecoverTimeout: m.RecoverTimeout,
		PostTimeout: m.PostTimeout, RollbackTimeout: m.RollbackTimeout, CleanTimeout: m.CleanTimeout,
		HypervisorWait: m.HypervisorTimeout, WorkerGrace: m.WorkerGrace, ForceWait: m.ForceTimeout,
		RetryFirst: m.RetryFirst, RetryLimit: m.RetryLimit,
		Adaptive: migration.AdaptiveConfig{
			DowntimeFirst: m.AdaptiveFirst, DowntimeStep: m.AdaptiveStep, DowntimeLimit: m.AdaptiveLimit,
			StartIteration: uint64(max(m.AdaptiveIteration, 0)), Cooldown: m.AdaptiveCooldown,
			StallAfter: m.AdaptiveStall, StallMargin: m.AdaptiveMargin,
		},
	}
	if m.CompletionTimeout == 0 { // the file's word for "without end"
		out.CompletionTimeout = -1
	}
	return out
}

// compression is the migration package's word for a compression.
func compression(word string) string {
	if word == instance.CompressNone {
		return ""
	}
	return word
}

func (c Config) forReboot() reboot.Config {
	r := c.Reboot
	out := reboot.Config{
		WaitSoftReboot: orNow(r.WaitSoft), ShutdownTimeout: orNow(r.ShutdownTimeout),
		ShutdownRetryInterval: r.RetryInterval, HardRebootTimeout: r.HardTimeout,
		MethodTimeout: r.MethodTimeout, StartTimeout: r.StartTimeout, DestroyTimeout: r.DestroyTimeout, CallTimeout: r.CallTimeout,
		Interval: r.Interval, MaxRetry: orNone(r.MaxRetry), RetryFirst: r.RetryFirst,
	}
	for word := range strings.FieldsSeq(r.Methods) {
		out.Methods = append(out.Methods, virt.ShutdownMethod(word))
	}
	return out
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
		MaxRetry: orNone(v.MaxRetry), RetryFirst: v.RetryInterval, RetryLimit: v.RetryLimit,
		TryTimeout: v.TryTimeout, UndoTimeout: v.UndoTimeout, Interval: v.Interval,
		PluggingTimeout: v.PluggingTimeout, PluggingNotFatal: !v.PluggingFatal, Workers: v.Workers,
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
