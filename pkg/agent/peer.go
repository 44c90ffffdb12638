package agent

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
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
	m := rpc.Message{Method: method, RequestID: instance.NewUUID(), Version: api.Needs(method), Args: body}
	reply, err := p.persist(ctx, host, m)
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

// peerGrace is how long a peer may be out of reach, as both are while they look for
// another server of the bus. All that is asked of peers may be asked twice.
const peerGrace = 5 * time.Second

// persist asks until somebody answers or peerGrace is over; its last error says why
// nobody did.
func (p peer) persist(ctx context.Context, host string, m rpc.Message) (reply []byte, err error) {
	began := time.Now()
	for pause := p.a.cfg.RetryFirst; ; pause = min(2*pause, time.Second) {
		reply, err = p.a.bus.Call(ctx, host, m)
		if err == nil || !errors.Is(err, fault.Unavailable) || time.Since(began) > peerGrace || green.Sleep(ctx, pause) != nil {
			return reply, err
		}
	}
}
