package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/pkg/controller"
)

func (a *app) hostCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "host", Aliases: []string{"hosts"}, Short: "Hypervisor hosts: what they have and whether they report",
		Example: "  compute-agent host list\n  compute-agent host drain node1 --to node2,node3",
	}
	c.AddCommand(a.hostList(), a.hostShow(), a.hostEnable(), a.hostDisable(), a.hostDrain())
	return c
}

func (a *app) hostList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List all hosts, also those that are down",
		Long: "List all hosts as they reported last. A host that has not reported for 60 s is down.",
		Args: cobra.NoArgs, Example: "  compute-agent host list\n  compute-agent host list -o json | jq '.[] | select(.down).host'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
				hosts, err := s.Hosts(ctx)
				if err != nil {
					return err
				}
				return a.show(hosts, func(w io.Writer) { hostTable(w, hosts) })
			})
		},
	}
}

func hostTable(w io.Writer, hosts []controller.Host) {
	t := newTable(w, "HOST", "STATE", "DRIVER", "VCPUS", "MEMORY", "INSTANCES", "MIGRATIONS", "REPORTED", "AGENT")
	for _, h := range hosts {
		r := h.Resources
		t.row(h.Host, hostState(h), h.Driver, fmt.Sprintf("%d of %d", r.VCPUsUsed, r.VCPUs), usedOf(r.MemoryMiBUsed, r.MemoryMiB),
			fmt.Sprint(r.Instances), moving(h), short(h.Age)+" ago", release(h.Agent))
	}
	t.flush("No host has reported yet. Start one: compute-agent run")
}

// hostState is the one word that matters most of a host.
func hostState(h controller.Host) string {
	switch {
	case h.Down:
		return "down"
	case h.Hypervisor == "away":
		return "up, hypervisor away"
	case !h.Enabled:
		return "up, disabled"
	default:
		return "up"
	}
}

// release is the version without the build's details.
func release(agent string) string {
	version, _, _ := strings.Cut(agent, " ")
	return version
}

func moving(h controller.Host) string {
	if h.MigrationsIn == 0 && h.MigrationsOut == 0 {
		return ""
	}
	return fmt.Sprintf("%d out, %d in", h.MigrationsOut, h.MigrationsIn)
}

func (a *app) hostShow() *cobra.Command {
	return &cobra.Command{
		Use: "show HOST", Short: "Show one host", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeHosts,
		Long:    "Show one host: asked now if it is up, else as it reported last.",
		Example: "  compute-agent host show node1",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
				h, err := s.FindHost(ctx, args[0])
				if err != nil {
					return err
				}
				if fresh, err := s.GetHostInfo(ctx, args[0]); err == nil {
					h = fresh
				}
				return a.show(h, func(w io.Writer) { hostFacts(w, h) })
			})
		},
	}
}

func hostFacts(w io.Writer, h controller.Host) {
	r := h.Resources
	pairs := []string{
		"Host", h.Host, "State", hostState(h), "Disabled because", h.DisabledReason, "Reported", short(h.Age) + " ago",
		"Driver", h.Driver, "Hypervisor", strings.TrimSpace(h.Hypervisor + " " + h.HypervisorType + " " + h.HypervisorVersion),
		"CPU", h.CPUModel, "VCPUs", fmt.Sprintf("%d of %d claimed", r.VCPUsUsed, r.VCPUs), "Memory", usedOf(r.MemoryMiBUsed, r.MemoryMiB) + " claimed",
		"Disk", fmt.Sprintf("%d of %d GiB free", r.DiskFreeGiB, r.DiskGiB), "Instances", fmt.Sprint(r.Instances), "Foreign domains", foreign(r.Foreign),
		"Migrations", moving(h), "Agent", h.Agent + ", wire " + h.APIVersion, "Started", stamp(h.StartedAt), "Machine id", h.MachineID,
	}
	for _, p := range h.Problems {
		pairs = append(pairs, "Problem", p)
	}
	facts(w, pairs...)
}

func foreign(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d, never touched", n)
}

func (a *app) hostEnable() *cobra.Command {
	return &cobra.Command{
		Use: "enable HOST", Short: "Let a host take new instances and incoming migrations again", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHosts, Example: "  compute-agent host enable node1",
		RunE: func(cmd *cobra.Command, args []string) error { return a.setHost(cmd, args[0], true, "") },
	}
}

func (a *app) hostDisable() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "disable HOST", Short: "Refuse new instances and incoming migrations on a host", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHosts, Example: "  compute-agent host disable node1 --reason \"new disks on Friday\"",
		Long: "Refuse new instances and incoming migrations on a host. What runs there goes on, and everything else works.",
		RunE: func(cmd *cobra.Command, args []string) error { return a.setHost(cmd, args[0], false, reason) },
	}
	c.Flags().StringVar(&reason, "reason", "", "what whoever is refused will read")
	return c
}

func (a *app) setHost(cmd *cobra.Command, host string, enabled bool, reason string) error {
	return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
		h, err := s.SetHostEnabled(ctx, host, enabled, reason)
		if err != nil {
			return err
		}
		return a.show(h, func(w io.Writer) {
			if h.Enabled {
				_, _ = fmt.Fprintf(w, "%s takes instances and migrations again\n", h.Host)
				return
			}
			_, _ = fmt.Fprintf(w, "%s takes no new instances and no incoming migrations\n", h.Host)
		})
	})
}
