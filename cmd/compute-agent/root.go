package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/compute-agent/compute-agent/internal/near"
	"github.com/compute-agent/compute-agent/internal/version"
	"github.com/compute-agent/compute-agent/pkg/fault"
)

const rootHelp = `compute-agent runs virtual machines on this host, on request of a controller that
speaks to it over NATS; and it is that controller's command line.

On a hypervisor host:

    compute-agent run

Anywhere that NATS can be reached:

    compute-agent host list
    compute-agent instance create --host node1 --name web1 --vcpus 2 --memory 2048 --disk image=/srv/debian.qcow2
    compute-agent migration start web1 --to node2

To try it on one machine, without a hypervisor:

    compute-agent run --driver fake --rpc-url embedded --host node --hosts 2`

// The groups under which the commands are listed.
const (
	groupUse  = "use"
	groupRaw  = "raw"
	groupHost = "host"
)

// tree makes all commands.
func (a *app) tree() *cobra.Command {
	root := &cobra.Command{
		Use: "compute-agent", Short: "Runs virtual machines on request", Long: rootHelp,
		Version: version.String(), SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.checkOutput() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetVersionTemplate("compute-agent {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	// A command that has commands does nothing itself.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	a.globalFlags(root)
	root.AddGroup(
		&cobra.Group{ID: groupUse, Title: "Hosts, instances and migrations:"},
		&cobra.Group{ID: groupRaw, Title: "The wire:"},
		&cobra.Group{ID: groupHost, Title: "The daemon and its surroundings:"},
	)
	add(root, groupUse, a.hostCommand(), a.instanceCommand(), a.migrationCommand())
	add(root, groupRaw, a.callCommand(), a.castCommand(), a.eventsCommand())
	add(root, groupHost, a.runCommand(), a.configCommand(), a.natsSetupCommand(), a.natsPermissionsCommand(), a.versionCommand())
	root.AddCommand(&cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: exitCodesHelp})
	root.SetHelpCommandGroupID(groupHost)
	root.SetCompletionCommandGroupID(groupHost)
	a.strict(root)
	return root
}

func add(parent *cobra.Command, group string, children ...*cobra.Command) {
	for _, c := range children {
		c.GroupID = group
		parent.AddCommand(c)
	}
}

func (a *app) globalFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVarP(&a.output, "output", "o", outputTable, "table, json or yaml")
	f.StringVar(&a.url, "rpc-url", "", "NATS servers (default nats://127.0.0.1:4222; environment COMPUTE_AGENT_RPC_URL)")
	f.DurationVar(&a.timeout, "timeout", 0, "give up after so long (default 30s for answers, 60s until a cast is accepted, 24h for its end)")
	f.StringVar(&a.configFile, "config", a.env("COMPUTE_AGENT_CONFIG", ""), "configuration file (default /etc/compute-agent/compute-agent.toml if it exists)")
	a.must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputTable, outputJSON, outputYAML}, cobra.ShellCompDirectiveNoFileComp)))
}

func (a *app) checkOutput() error {
	if !slices.Contains([]string{outputTable, outputJSON, outputYAML}, a.output) {
		wrong := a.output
		a.output = outputTable
		return usage("--output %q: use table, json or yaml", wrong)
	}
	if a.timeout < 0 {
		return usage("--timeout %s is negative", a.timeout)
	}
	return nil
}

// must panics on a defect of the tree itself, which every test would find.
func (a *app) must(err error) {
	if err != nil {
		panic(err)
	}
}

// strict words the error of a wrong count of arguments, makes a group of commands
// say which it has when it is called with none or a wrong one, and notes that a
// command began: what goes wrong before that is the command line's fault.
func (a *app) strict(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if check(cmd, args) != nil {
				return fmt.Errorf("%s was given %s; write: %s", cmd.CommandPath(), arguments(len(args)), strings.TrimSuffix(cmd.UseLine(), " [flags]"))
			}
			return nil
		}
	}
	if c.HasSubCommands() && c.RunE == nil {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		}
	}
	if run := c.RunE; run != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			a.began = true
			return run(cmd, args)
		}
	}
	for _, child := range c.Commands() {
		a.strict(child)
	}
}

func arguments(n int) string {
	switch n {
	case 0:
		return "no argument"
	case 1:
		return "1 argument"
	default:
		return fmt.Sprintf("%d arguments", n)
	}
}

func unknownCommand(cmd *cobra.Command, name string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return hinted(near.Hint(name, names), "%s has no command %q", cmd.CommandPath(), name)
}

// flagError finds the flag that was meant.
func flagError(cmd *cobra.Command, err error) error {
	name, unknown := strings.CutPrefix(err.Error(), "unknown flag: --")
	if !unknown {
		return err
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	return hinted(near.Hint("--"+name, names), "%s has no flag --%s", cmd.CommandPath(), name)
}

func hinted(hint, format string, args ...any) error {
	e := fault.Newf(fault.InvalidArgument, "", "", format, args...)
	e.Hint = hint
	return e
}
