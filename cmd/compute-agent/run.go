package main

import (
	"context"

	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/pkg/fault"
)

// runAgent runs the agent that c describes until ctx ends, which is a clean stop.
func runAgent(_ context.Context, c config.Config) error {
	return fault.Newf(fault.Unavailable, "run", c.Agent.Driver, "this build has no agent in it")
}
