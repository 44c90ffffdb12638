package main

import (
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/internal/logkit"
)

const runHelp = `Run the agent of this host until SIGTERM or Ctrl-C.

Its configuration is read from one TOML file, the environment and these flags; the later wins.
"compute-agent config show" prints what that makes. Flags are here for what is changed by hand;
every other option is in the file (docs/configuration.md).

A stop takes no new requests, leaves guests and migrations to the hypervisor and is over in seconds;
the next start goes on where this one was. A second signal ends the process at once.`

// runFlags are the options that have a flag.
var runFlags = []struct{ flag, key, usage string }{
	{"driver", "agent.driver", "fake or libvirt"},
	{"host", "agent.host", "name of this host on the bus (default: the system's)"},
	{"state-dir", "agent.state_dir", "where the journal is kept"},
	{"hosts", "fake.hosts", "with the fake driver: simulate so many hosts in this process"},
	{"log-level", "log.level", "debug, info, warning or error"},
	{"log-format", "log.format", "auto, text, json or journald"},
}

func (a *app) runCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "run", Short: "Run the agent of this host", Long: runHelp, Args: cobra.NoArgs,
		Example: "  compute-agent run\n  compute-agent run --driver fake --rpc-url embedded --host node --hosts 2 --state-dir ./state",
	}
	c.Flags().SortFlags = false
	for _, f := range runFlags {
		c.Flags().String(f.flag, "", f.usage)
	}
	a.must(c.RegisterFlagCompletionFunc("driver", cobra.FixedCompletions([]string{"fake", "libvirt"}, cobra.ShellCompDirectiveNoFileComp)))
	a.must(c.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warning", "error"}, cobra.ShellCompDirectiveNoFileComp)))
	a.must(c.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions([]string{"auto", "text", "json", "journald"}, cobra.ShellCompDirectiveNoFileComp)))
	a.must(c.MarkFlagDirname("state-dir"))
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		sources, err := a.runSources(cmd.Flags())
		if err != nil {
			return err
		}
		loaded, err := config.Load(sources)
		if err != nil {
			return err
		}
		log, err := logkit.New(logkit.Options{Out: a.err, Level: loaded.Log.Level, Format: logkit.Format(loaded.Log.Format)})
		if err != nil {
			return err
		}
		return a.agent(logkit.Into(cmd.Context(), log), loaded.Config)
	}
	return c
}

// runSources are the sources of config with the flags that were given.
func (a *app) runSources(flags *pflag.FlagSet) (config.Sources, error) {
	s := a.sources()
	for _, f := range runFlags {
		given := flags.Lookup(f.flag)
		if !given.Changed {
			continue
		}
		value := given.Value.String()
		if f.flag == "state-dir" {
			abs, err := filepath.Abs(value)
			if err != nil {
				return s, usage("--state-dir %s: %w", strconv.Quote(value), err)
			}
			value = abs
		}
		s.Flags[f.key] = config.Flag{Name: f.flag, Value: value}
	}
	return s, nil
}
