package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/internal/version"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Say which build this is and which wire it speaks", Args: cobra.NoArgs,
		Example: "  compute-agent version -o json",
		RunE: func(*cobra.Command, []string) error {
			full := struct {
				version.Build
				API string `json:"api_version"`
			}{version.Info(), api.Version}
			return a.show(full, func(w io.Writer) { _, _ = fmt.Fprintf(w, "compute-agent %s, wire %s\n", version.String(), api.Version) })
		},
	}
}
