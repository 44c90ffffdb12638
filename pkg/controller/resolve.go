package controller

import (
	"context"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// ResolveMigration asks the source of a migration whose outcome is unknown for the
// facts of both hosts; as (api.ResolveCompleted or api.ResolveFailed) decides, empty
// only asks. ref is its UUID or its instance. The migration goes on beside the answer:
// WatchMigration tells its end.
func (c *Client) ResolveMigration(ctx context.Context, ref, as string) (api.ResolveResult, error) {
	var r api.ResolveResult
	m, err := c.FindMigration(ctx, ref)
	if err != nil {
		return r, fault.Wrap(err, api.ResolveMigration, "")
	}
	return r, c.Call(ctx, m.Source, api.ResolveMigration, api.ResolveArgs{Migration: m.UUID, As: as}, &r)
}
