package agent

import (
	"context"
	"encoding/json"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// peer asks the agent of another host, over the bus. It implements [migration.Peer].
type peer struct{ a *Agent }

// Check implements [migration.Peer].
func (p peer) Check(ctx context.Context, host string, args api.PeerMigrateArgs) (r api.CheckResult, err error) {
	err = p.ask(ctx, host, api.CheckMigrateDestination, args, &r)
	return r, err
}

// Prepare implements [migration.Peer].
func (p peer) Prepare(ctx context.Context, host string, args api.PeerMigrateArgs) (r api.PreparedResult, err error) {
	err = p.ask(ctx, host, api.PreLiveMigration, args, &r)
	return r, err
}

// Post implements [migration.Peer].
func (p peer) Post(ctx context.Context, host string, args api.PeerRefArgs) (r api.OwnedResult, err error) {
	err = p.ask(ctx, host, api.PostLiveMigration, args, &r)
	return r, err
}

// Rollback implements [migration.Peer].
func (p peer) Rollback(ctx context.Context, host string, args api.PeerRefArgs) error {
	return p.ask(ctx, host, api.RollbackLiveMigration, args, nil)
}

// Show implements [migration.Peer].
func (p peer) Show(ctx context.Context, host, id string) (instance.Migration, error) {
	var r api.MigrationResult
	err := p.ask(ctx, host, api.ShowMigration, api.ShowMigrationArgs{Migration: id}, &r)
	return r.Migration, err
}

func (p peer) ask(ctx context.Context, host, method string, args, result any) error {
	body, err := rpc.JSON(args)
	if err != nil {
		return err
	}
	reply, err := p.a.bus.Call(ctx, host, rpc.Message{
		Method: method, RequestID: instance.NewUUID(), Version: api.Version, Args: body,
	})
	if err != nil {
		return fault.Wrap(err, method, host)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply, result); err != nil {
		return fault.New(fault.Internal, method, host, "the answer can't be read").Because(err)
	}
	return nil
}
