package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

func (a *app) instanceCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "instance", Aliases: []string{"instances", "vm"}, Short: "Virtual machines: create, look at, start, stop, reboot, delete",
		Long:    "Virtual machines. An INSTANCE is its UUID or its name.",
		Example: "  compute-agent instance list\n  compute-agent instance reboot web1 --hard",
	}
	c.AddCommand(a.instanceCreate(), a.instanceList(), a.instanceShow(), a.instanceWatch(), a.consoleLog())
	for _, v := range verbs {
		c.AddCommand(a.verbCommand(v))
	}
	c.AddCommand(a.instanceStop(), a.instanceReboot())
	return c
}

// verb is a command that takes an instance and nothing else.
type verb struct {
	use, done, short, long string
	do                     func(*controller.Client, context.Context, string) (*controller.Task, error)
}

var verbs = []verb{
	{"start", "started", "Start an instance that is off", "", (*controller.Client).StartInstance},
	{"pause", "paused", "Freeze the CPUs of an instance; its memory stays", "", (*controller.Client).PauseInstance},
	{"unpause", "runs again", "Let a paused instance go on", "", (*controller.Client).UnpauseInstance},
	{"suspend", "suspended", "Save the memory of an instance to disk and stop it", "", (*controller.Client).SuspendInstance},
	{"resume", "resumed", "Start a suspended instance where it was", "", (*controller.Client).ResumeInstance},
	{"delete", "deleted", "Stop an instance and remove everything of it", "Stop an instance and remove everything of it: its disks, its ports, its record. There is no way back.", (*controller.Client).TerminateInstance},
}

func (a *app) verbCommand(v verb) *cobra.Command {
	c := &cobra.Command{
		Use: v.use + " INSTANCE", Short: v.short, Long: v.long, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeInstances,
		Example: "  compute-agent instance " + v.use + " web1",
	}
	w := a.waitFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			t, err := v.do(s.Client, ctx, args[0])
			if err != nil {
				return err
			}
			return a.carryOut(ctx, t, w, args[0]+" "+v.done)
		})
	}
	return c
}

func (a *app) instanceStop() *cobra.Command {
	var now bool
	c := &cobra.Command{
		Use: "stop INSTANCE", Short: "Power an instance off", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeInstances,
		Long:    "Power an instance off: ask the guest, and take the power away when it has not gone off within shutdown_timeout.",
		Example: "  compute-agent instance stop web1\n  compute-agent instance stop web1 --now",
	}
	c.Flags().BoolVar(&now, "now", false, "take the power away without asking the guest")
	w := a.waitFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			t, err := s.StopInstance(ctx, args[0], !now)
			if err != nil {
				return err
			}
			return a.carryOut(ctx, t, w, args[0]+" stopped")
		})
	}
	return c
}

func (a *app) instanceReboot() *cobra.Command {
	var hard bool
	c := &cobra.Command{
		Use: "reboot INSTANCE", Short: "Reboot an instance", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeInstances,
		Long: "Reboot an instance. Soft, it asks the guest and waits up to wait_soft_reboot_seconds before it reboots hard.\n" +
			"Hard, it destroys the domain and starts it again, rebuilt from its record.",
		Example: "  compute-agent instance reboot web1\n  compute-agent instance reboot web1 --hard",
	}
	c.Flags().BoolVar(&hard, "hard", false, "don't ask the guest")
	w := a.waitFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		kind := map[bool]string{false: "SOFT", true: "HARD"}[hard]
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			t, err := s.RebootInstance(ctx, args[0], kind)
			if err != nil {
				return err
			}
			return a.carryOut(ctx, t, w, args[0]+" rebooted")
		})
	}
	return c
}

func (a *app) instanceList() *cobra.Command {
	var host string
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List instances", Args: cobra.NoArgs,
		Long:    "List the instances of all hosts as the hosts published them, or ask one host for its own.",
		Example: "  compute-agent instance list\n  compute-agent instance list --host node1 -o json",
	}
	c.Flags().StringVar(&host, "host", "", "ask this host")
	a.must(c.RegisterFlagCompletionFunc("host", a.completeHosts))
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			all, err := instances(ctx, s, host)
			if err != nil {
				return err
			}
			return a.show(all, func(w io.Writer) { instanceTable(w, all) })
		})
	}
	return c
}

func instances(ctx context.Context, s *session, host string) ([]instance.Instance, error) {
	if host == "" {
		return s.Instances(ctx)
	}
	all, err := s.ListInstances(ctx, host)
	if all == nil {
		all = []instance.Instance{}
	}
	return all, err
}

func instanceTable(w io.Writer, all []instance.Instance) {
	t := newTable(w, "UUID", "NAME", "HOST", "STATE", "TASK", "POWER", "VCPUS", "MEMORY")
	for _, i := range all {
		t.row(i.UUID, i.Name, i.Host, string(i.VMState), string(i.TaskState), string(i.PowerState), fmt.Sprint(i.Spec.VCPUs), mib(i.Spec.MemoryMiB))
	}
	t.flush("No instances.")
}

func (a *app) instanceShow() *cobra.Command {
	return &cobra.Command{
		Use: "show INSTANCE", Short: "Show one instance", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeInstances,
		Long:    "Show one instance as its host has it now; if the host does not answer, as it was published last.",
		Example: "  compute-agent instance show web1\n  compute-agent instance show web1 -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
				i, err := s.ShowInstance(ctx, args[0])
				if errors.Is(err, fault.Unavailable) {
					if i, err = s.FindInstance(ctx, args[0]); err == nil {
						_, _ = fmt.Fprintf(a.err, "Note: %s does not answer; this is as of %s\n", i.Host, ago(i.UpdatedAt, time.Now()))
					}
				}
				if err != nil {
					return err
				}
				return a.show(i, func(w io.Writer) { instanceFacts(w, i) })
			})
		},
	}
}

func instanceFacts(w io.Writer, i instance.Instance) {
	s := i.Spec
	pairs := []string{
		"Instance", i.Name, "UUID", i.UUID, "Host", i.Host, "State", string(i.VMState), "Task", string(i.TaskState), "Power", string(i.PowerState),
		"Fault", text(i.Fault), "VCPUs", fmt.Sprint(s.VCPUs), "Memory", mib(s.MemoryMiB), "CPU", strings.TrimSpace(s.CPU.Mode + " " + s.CPU.Model),
		"Machine", s.Machine, "Firmware", s.Firmware, "Kernel", strings.TrimSpace(s.Boot.Kernel + " " + s.Boot.Cmdline),
	}
	for _, d := range s.Disks {
		pairs = append(pairs, "Disk", diskText(d))
	}
	for _, p := range i.Ports {
		pairs = append(pairs, "Port", portText(p))
	}
	for _, key := range slices.Sorted(maps.Keys(s.Metadata)) {
		pairs = append(pairs, "Metadata", key+" = "+s.Metadata[key])
	}
	facts(w, append(pairs, "Generation", fmt.Sprint(i.Generation), "Created", stamp(i.CreatedAt), "Updated", stamp(i.UpdatedAt))...)
}

func diskText(d instance.Disk) string {
	words := []string{d.Source.File + d.Source.Image + d.Source.Volume, d.Format, d.Bus}
	if d.SizeGiB > 0 {
		words = append(words, fmt.Sprintf("%d GiB", d.SizeGiB))
	}
	if d.Shared {
		words = append(words, "shared")
	}
	if d.ReadOnly {
		words = append(words, "read-only")
	}
	return strings.Join(slices.DeleteFunc(words, func(s string) bool { return s == "" }), ", ")
}

func portText(p instance.PortStatus) string {
	s := p.MAC + ", " + strings.TrimSpace(string(p.Binding)+" "+p.Bridge) + ", " + string(p.State)
	if p.Device != "" {
		s += " as " + p.Device
	}
	s += ", id " + p.ID
	if p.Fault != nil {
		s += " (" + text(p.Fault) + ")"
	}
	return s
}

func (a *app) consoleLog() *cobra.Command {
	var bytes int
	c := &cobra.Command{
		Use: "console-log INSTANCE", Short: "Print the end of an instance's console", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeInstances,
		Example: "  compute-agent instance console-log web1\n  compute-agent instance console-log web1 --bytes 1000",
	}
	c.Flags().IntVar(&bytes, "bytes", 0, "how much of it (default: the last 64 KiB)")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
			out, err := s.GetConsoleOutput(ctx, args[0], bytes)
			if err != nil {
				return err
			}
			return a.show(map[string]string{"output": out}, func(w io.Writer) {
				_, _ = io.WriteString(w, out)
				if out != "" && !strings.HasSuffix(out, "\n") {
					_, _ = io.WriteString(w, "\n")
				}
			})
		})
	}
	return c
}
