package controller

import (
	"context"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// LiveMigration moves the instance that ref names to args.Dest; args.Instance is
// filled here. A migration without a UUID gets one, see [Task.Migration]. The
// destination is looked up too, so that a slip of the finger is found at once.
func (c *Client) LiveMigration(ctx context.Context, ref string, args api.MigrateArgs) (*Task, error) {
	host, args, err := c.move(ctx, ref, args)
	if err != nil {
		return nil, fault.Wrap(err, api.LiveMigration, "")
	}
	if args.Migration == "" {
		args.Migration = instance.NewUUID()
	}
	t, err := c.Cast(ctx, host, api.LiveMigration, args)
	if err != nil {
		return nil, err
	}
	t.migration = args.Migration
	return t, nil
}

// CheckMigration gives every reason of both hosts against the migration; none: it
// may start. Nothing is changed.
func (c *Client) CheckMigration(ctx context.Context, ref string, args api.MigrateArgs) ([]string, error) {
	host, args, err := c.move(ctx, ref, args)
	if err != nil {
		return nil, fault.Wrap(err, api.CheckMigrateSource, "")
	}
	var r api.CheckResult
	err = c.Call(ctx, host, api.CheckMigrateSource, args, &r)
	return r.Reasons, err
}

// move finds the source of a migration and looks its destination up.
func (c *Client) move(ctx context.Context, ref string, args api.MigrateArgs) (string, api.MigrateArgs, error) {
	i, err := c.FindInstance(ctx, ref)
	if err != nil {
		return "", args, err
	}
	args.Instance = i.UUID
	if err := args.Check(); err != nil {
		return "", args, err
	}
	if !c.opts.Force {
		if _, err := c.UpHost(ctx, args.Dest); err != nil {
			return "", args, err
		}
	}
	return i.Host, args, nil
}

// AbortMigration ends a migration that has not switched over yet; ref is its UUID
// or its instance. The guest stays where it is.
func (c *Client) AbortMigration(ctx context.Context, ref string) (*Task, error) {
	return c.steer(ctx, api.LiveMigrationAbort, ref)
}

// ForceCompleteMigration makes a running migration end now; ref as in AbortMigration.
func (c *Client) ForceCompleteMigration(ctx context.Context, ref string) (*Task, error) {
	return c.steer(ctx, api.LiveMigrationForceComplete, ref)
}

// RecoverMigration takes up a post-copy whose connection broke, at once; ref as in
// AbortMigration. The agent does so by itself too, after pauses.
func (c *Client) RecoverMigration(ctx context.Context, ref string) (*Task, error) {
	m, err := c.FindMigration(ctx, ref) // its source: the instance is the destination's already
	if err != nil {
		return nil, fault.Wrap(err, api.LiveMigrationRecover, "")
	}
	return c.castFor(ctx, m, api.LiveMigrationRecover, api.MigrationRefArgs{Instance: m.Instance, Migration: m.UUID})
}

// LimitMigration changes the bandwidth, in MiB/s, of a migration that is under way; 0
// lifts the limit; ref as in AbortMigration.
func (c *Client) LimitMigration(ctx context.Context, ref string, mib uint64) (*Task, error) {
	m, err := c.inProgress(ctx, ref)
	if err != nil {
		return nil, fault.Wrap(err, api.LiveMigrationSetBandwidth, "")
	}
	return c.castFor(ctx, m, api.LiveMigrationSetBandwidth, api.BandwidthArgs{Instance: m.Instance, Migration: m.UUID, BandwidthMiB: mib})
}

func (c *Client) steer(ctx context.Context, method, ref string) (*Task, error) {
	m, err := c.inProgress(ctx, ref)
	if err != nil {
		return nil, fault.Wrap(err, method, "")
	}
	return c.castFor(ctx, m, method, api.MigrationRefArgs{Instance: m.Instance, Migration: m.UUID})
}

// castFor asks a migration's source for something about it.
func (c *Client) castFor(ctx context.Context, m instance.Migration, method string, args any) (*Task, error) {
	t, err := c.Cast(ctx, m.Source, method, args)
	if err != nil {
		return nil, err
	}
	t.migration = m.UUID
	return t, nil
}

// inProgress finds the migration that ref means. Of an instance without one in the
// view only the host is sure: a migration that was asked for a moment ago may not be
// published yet, so the agent is to say what it has in progress.
func (c *Client) inProgress(ctx context.Context, ref string) (instance.Migration, error) {
	m, err := c.FindMigration(ctx, ref)
	if err == nil && (m.UUID == ref || !m.Status.Ended()) {
		return m, nil
	}
	if err != nil && !errors.Is(err, fault.NotFound) {
		return m, err
	}
	i, missing := c.FindInstance(ctx, ref)
	if missing != nil {
		return m, missing
	}
	return instance.Migration{Instance: i.UUID, Source: i.Host}, nil
}

// lastTaskQuiet is how long the stream may be silent before its last task events are
// all taken as read.
const lastTaskQuiet = 500 * time.Millisecond

// PendingMigration finds a live_migration of the instance that ref names which its
// host has accepted and not ended, also before the migration is in any view. The
// task is the caller's to close. not_found: there is none.
func (c *Client) PendingMigration(ctx context.Context, ref string) (*Task, error) {
	i, err := c.FindInstance(ctx, ref)
	if err != nil {
		return nil, err
	}
	e, err := c.lastMigrateTask(ctx, i)
	if err != nil {
		return nil, err
	}
	t, err := c.Task(ctx, i.Host, e.RequestID)
	if err != nil {
		return nil, err
	}
	t.migration = e.Migration
	return t, nil
}

// lastMigrateTask reads the last event of each task of the instance's host.
func (c *Client) lastMigrateTask(ctx context.Context, i instance.Instance) (last api.TaskEvent, err error) {
	events, err := c.bus.Events(ctx, rpc.EventFilter{Host: i.Host, Kind: api.EventTask, From: rpc.FromLast})
	if err != nil {
		return last, fault.Wrap(err, "read events", "")
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	for {
		wait, cancel := context.WithTimeout(ctx, lastTaskQuiet)
		raw, readErr := events.Next(wait)
		quiet := wait.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case quiet && last.RequestID != "":
			return last, nil
		case quiet:
			return last, fault.New(fault.NotFound, "", "instance "+i.UUID, "no migration of it is accepted and not ended")
		case readErr != nil:
			return last, fault.Wrap(readErr, "read events", "")
		}
		var e api.TaskEvent
		if decode(raw.Body, &e) && e.Method == api.LiveMigration && e.Instance == i.UUID {
			if last = e; e.State.Ended() {
				last = api.TaskEvent{}
			}
		}
	}
}

// ShowMigration asks the source of a migration for it; ref as in FindMigration.
func (c *Client) ShowMigration(ctx context.Context, ref string) (instance.Migration, error) {
	m, err := c.FindMigration(ctx, ref)
	if err != nil {
		return m, err
	}
	var r api.MigrationResult
	err = c.Call(ctx, m.Source, api.ShowMigration, api.ShowMigrationArgs{Migration: m.UUID}, &r)
	return r.Migration, err
}

// ListMigrations asks host for the migrations it conducts or receives.
func (c *Client) ListMigrations(ctx context.Context, host string) ([]instance.Migration, error) {
	var r api.MigrationsResult
	err := c.Call(ctx, host, api.ListMigrations, api.NoArgs{}, &r)
	return r.Migrations, err
}

// errStop ends a watch from inside.
var errStop = errors.New("seen enough")

// WatchMigration calls fn with each state of a migration that its source publishes,
// the present one first, until it has ended (nil), fn gives an error (that one) or
// ctx ends. A migration that does not exist yet is waited for.
func (c *Client) WatchMigration(ctx context.Context, uuid string, fn func(instance.Migration) error) error {
	err := c.watch(ctx, rpc.Migrations, []string{"*", uuid}, func(e rpc.Entry) error {
		var m instance.Migration
		if e.Deleted || !decode(e.Value, &m) || !writtenBy(e.Key, m) {
			return nil
		}
		if err := fn(m); err != nil {
			return err
		}
		if m.Status.Ended() {
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// watch begins a watch, patiently; once it runs it mends itself.
func (c *Client) watch(ctx context.Context, b rpc.Bucket, pattern []string, fn func(rpc.Entry) error) error {
	began := false
	_, err := patient(ctx, c, func(err error) bool { return !began && isSilent(err) }, func() (struct{}, error) {
		return struct{}{}, c.bus.Watch(ctx, b, pattern, func(e rpc.Entry) error { began = true; return fn(e) })
	})
	return err
}

// WatchInstances calls fn with each record that a host publishes in the view, those
// that are there first, until fn gives an error (that one) or ctx ends (its cause).
// gone: the host has no such instance any more, and only UUID and Host are set.
// host and uuid may be "*".
func (c *Client) WatchInstances(ctx context.Context, host, uuid string, fn func(i instance.Instance, gone bool) error) error {
	return c.watch(ctx, rpc.Instances, []string{host, uuid}, func(e rpc.Entry) error {
		if e.Deleted && len(e.Key) == 2 {
			return fn(instance.Instance{Host: e.Key[0], UUID: e.Key[1]}, true)
		}
		var i instance.Instance
		if !decode(e.Value, &i) || !writtenBy(e.Key, i) {
			return nil
		}
		return fn(i, false)
	})
}

// WatchEvents calls fn with each event that the filter selects, until fn gives an
// error (that one) or ctx ends (its cause). When the bus goes away meanwhile it waits
// and goes on with the event after the last one.
func (c *Client) WatchEvents(ctx context.Context, f rpc.EventFilter, fn func(rpc.Event) error) error {
	events, err := c.readEvents(ctx, f)
	if err != nil {
		return fault.Wrap(err, "read events", "")
	}
	for {
		e, err := events.Next(ctx)
		switch {
		case err == nil:
			f.Sequence = e.Sequence + 1
			if err := fn(e); err != nil {
				return errors.Join(err, events.Close())
			}
		case ctx.Err() != nil:
			return errors.Join(context.Cause(ctx), events.Close())
		case !fault.Retryable(err):
			return errors.Join(fault.Wrap(err, "read events", ""), events.Close())
		default:
			if events, err = c.openAgain(ctx, f, events); err != nil {
				return err
			}
		}
	}
}

func (c *Client) readEvents(ctx context.Context, f rpc.EventFilter) (rpc.EventReader, error) {
	return patient(ctx, c, isSilent, func() (rpc.EventReader, error) { return c.bus.Events(ctx, f) })
}

// openAgain replaces a reader that the bus ended, however long that takes.
func (c *Client) openAgain(ctx context.Context, f rpc.EventFilter, old rpc.EventReader) (rpc.EventReader, error) {
	_ = old.Close() // it is broken already
	for {
		if err := pause(ctx, c.opts.ResendInterval); err != nil {
			return nil, err
		}
		events, err := c.bus.Events(ctx, f)
		if err == nil || !fault.Retryable(err) {
			return events, err
		}
	}
}
