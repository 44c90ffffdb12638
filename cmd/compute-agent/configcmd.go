package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "config", Short: "Check the agent's configuration, and show where each value comes from",
		Example: "  compute-agent config check --config ./compute-agent.toml\n  compute-agent config show",
	}
	c.AddCommand(a.configShow(), a.configCheck(), a.configExample())
	return c
}

// sources are the file and the environment, as run would read them.
func (a *app) sources() config.Sources {
	s := config.Sources{File: a.configFile, Environ: a.environ, Flags: map[string]config.Flag{}}
	if a.url != "" {
		s.Flags["rpc.url"] = config.Flag{Name: "rpc-url", Value: a.url}
	}
	return s
}

func (a *app) configShow() *cobra.Command {
	var changed bool
	c := &cobra.Command{
		Use: "show", Short: "Show each option, its value and where that comes from", Args: cobra.NoArgs,
		Example: "  compute-agent config show\n  compute-agent config show --changed\n  COMPUTE_AGENT_LOG_LEVEL=debug compute-agent config show -o json",
	}
	c.Flags().BoolVar(&changed, "changed", false, "only those that are not the default")
	c.RunE = func(*cobra.Command, []string) error {
		l, err := config.Load(a.sources())
		if err != nil {
			return err
		}
		some := make([]setting, 0, len(l.Settings()))
		for _, s := range l.Settings() {
			if !changed || s.Origin != "default" {
				some = append(some, setting{s.Key, s.Value, s.Origin, s.Default, s.Doc})
			}
		}
		return a.show(some, func(w io.Writer) {
			t := newTable(w, "OPTION", "VALUE", "FROM")
			for _, s := range some {
				t.row(s.Key, s.Value, s.Origin)
			}
			t.flush("Every option has its default.")
		})
	}
	return c
}

// setting is an option as programs read it.
type setting struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Origin  string `json:"origin"`
	Default string `json:"default"`
	Doc     string `json:"doc"`
}

func (a *app) configCheck() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Find every mistake in the configuration", Args: cobra.NoArgs,
		Long:    "Find every mistake in the file and the environment, with its line and column. With one the exit code is 2.",
		Example: "  compute-agent config check --config ./compute-agent.toml",
		RunE: func(*cobra.Command, []string) error {
			l, err := config.Load(a.sources())
			if err != nil {
				return err
			}
			file := l.File
			if file == "" {
				file = "no file, the defaults"
			}
			return a.show(map[string]string{"file": l.File}, func(w io.Writer) { _, _ = fmt.Fprintf(w, "The configuration is good (%s)\n", file) })
		},
	}
}

func (a *app) configExample() *cobra.Command {
	return &cobra.Command{
		Use: "example", Short: "Print a file with every option and its default", Args: cobra.NoArgs,
		Example: "  compute-agent config example > compute-agent.toml",
		RunE:    func(*cobra.Command, []string) error { return config.Example(a.out) },
	}
}
