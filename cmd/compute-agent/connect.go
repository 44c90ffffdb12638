package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// dial connects as a controller.
func dial(ctx context.Context, c config.RPC) (rpc.Transport, error) {
	urls, _ := c.Servers()
	cfg := busConfig(c, urls)
	cfg.Name, cfg.AutoSetup = "compute-agent controller", false
	return rpc.Dial(ctx, cfg)
}

func (a *app) natsSetupCommand() *cobra.Command {
	return &cobra.Command{
		Use: "nats-setup [HOST …]", Short: "Make the streams, buckets and consumers in an existing NATS", ValidArgsFunction: a.completeHosts,
		Long: "Make the streams, the buckets and a consumer for each HOST in an existing NATS, or bring them to what the\n" +
			"configuration says (rpc.replicas, rpc.batches, rpc.casts_max_age, rpc.events_max_age). What is right stays untouched.\n" +
			"It needs a controller's credential. An agent with an embedded server does it by itself.",
		Example: "  compute-agent nats-setup node1 node2\n  COMPUTE_AGENT_RPC_REPLICAS=3 compute-agent nats-setup --rpc-url nats://n1:4222,nats://n2:4222 node1",
		RunE: func(cmd *cobra.Command, hosts []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, s *session) error {
				if err := rpc.Setup(ctx, s.bus, hosts...); err != nil {
					return err
				}
				return a.show(map[string]any{"hosts": hosts}, func(w io.Writer) {
					_, _ = fmt.Fprintln(w, "Streams and buckets are in place")
					for _, h := range hosts {
						_, _ = fmt.Fprintf(w, "Consumer of %s is in place\n", h)
					}
				})
			})
		},
	}
}
