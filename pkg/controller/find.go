package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/internal/near"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// list reads the entries of a view that match and decodes each. An entry that
// can't be read is left out: one sick writer must not hide all the others.
func list[T any](ctx context.Context, c *Client, b rpc.Bucket, pattern ...string) ([]T, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	entries, err := patient(ctx, c, isSilent, func() ([]rpc.Entry, error) { return c.bus.List(ctx, b, pattern) })
	if err != nil {
		return nil, fault.Wrap(err, "list", strings.ToLower(string(b)))
	}
	all := make([]T, 0, len(entries))
	for _, e := range entries {
		var v T
		if decode(e.Value, &v) && writtenBy(e.Key, v) {
			all = append(all, v)
		}
	}
	return all, nil
}

// decode reports whether an entry could be read; what can't is passed over.
func decode(raw []byte, v any) bool { return json.Unmarshal(raw, v) == nil }

// writtenBy reports whether an entry speaks of the host under whose key it stands:
// a host's credential can write no other's, and what a server put there on
// another's request names no host.
func writtenBy(key []string, v any) bool {
	if len(key) == 0 {
		return false
	}
	switch v := v.(type) {
	case api.HostView:
		return v.Host == key[0]
	case instance.Instance:
		return v.Host == key[0]
	case instance.Migration:
		return v.Source == key[0]
	}
	return true
}

// Instances lists the instances of all hosts as the views show them, by name.
func (c *Client) Instances(ctx context.Context) ([]instance.Instance, error) {
	all, err := list[instance.Instance](ctx, c, rpc.Instances, "*", "*")
	if err != nil {
		return nil, err
	}
	all = newest(all, func(i instance.Instance) (string, uint64) { return i.UUID, i.Generation })
	slices.SortFunc(all, func(a, b instance.Instance) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.UUID, b.UUID))
	})
	return all, nil
}

// FindInstance finds an instance by UUID or name wherever it is. A name that two
// instances have is a conflict; one that none has is not_found with near names.
func (c *Client) FindInstance(ctx context.Context, ref string) (instance.Instance, error) {
	if instance.CheckUUID("instance", ref) == nil {
		found, err := list[instance.Instance](ctx, c, rpc.Instances, "*", ref)
		if err != nil {
			return instance.Instance{}, err
		}
		if len(found) > 0 {
			return newest(found, func(i instance.Instance) (string, uint64) { return i.UUID, i.Generation })[0], nil
		}
	}
	all, err := c.Instances(ctx)
	if err != nil {
		return instance.Instance{}, err
	}
	i, err := byName(ref, all)
	if err == nil {
		c.opts.Resolved(ref, i.UUID)
	}
	return i, err
}

func byName(ref string, all []instance.Instance) (instance.Instance, error) {
	var found []instance.Instance
	names := make([]string, 0, len(all))
	for _, i := range all {
		names = append(names, i.Name)
		if i.Name == ref && i.VMState != instance.VMDeleted {
			found = append(found, i)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return instance.Instance{}, ambiguous(ref, found)
	}
	hint := near.Hint(ref, names)
	if hint == "" {
		hint = "`compute-agent instance list` shows all"
	}
	return instance.Instance{}, fault.New(fault.NotFound, "", "instance "+ref, "no host has an instance of this name or UUID").WithHint("%s", hint)
}

func ambiguous(ref string, found []instance.Instance) error {
	ids := make([]string, 0, len(found))
	for _, i := range found {
		ids = append(ids, i.UUID+" on "+i.Host)
	}
	return fault.Newf(fault.Conflict, "", "instance "+ref, "%d instances have this name", len(found)).
		WithHint("name it by its UUID: %s", strings.Join(ids, ", ")).WithDetail("instances", ids)
}

// Migrations lists the migrations of all hosts as the views show them, oldest first.
func (c *Client) Migrations(ctx context.Context) ([]instance.Migration, error) {
	all, err := list[instance.Migration](ctx, c, rpc.Migrations, "*", "*")
	if err != nil {
		return nil, err
	}
	all = newest(all, func(m instance.Migration) (string, uint64) { return m.UUID, m.Generation })
	slices.SortFunc(all, func(a, b instance.Migration) int {
		return cmp.Or(a.StartedAt.Compare(b.StartedAt), strings.Compare(a.UUID, b.UUID))
	})
	return all, nil
}

// FindMigration finds a migration by its UUID, or the newest one of the instance
// that ref names, by UUID or name; one that is in progress before one that ended.
func (c *Client) FindMigration(ctx context.Context, ref string) (instance.Migration, error) {
	if instance.CheckUUID("migration", ref) == nil {
		found, err := list[instance.Migration](ctx, c, rpc.Migrations, "*", ref)
		if err != nil {
			return instance.Migration{}, err
		}
		if len(found) > 0 {
			return newest(found, func(m instance.Migration) (string, uint64) { return m.UUID, m.Generation })[0], nil
		}
	}
	return c.migrationOf(ctx, ref)
}

func (c *Client) migrationOf(ctx context.Context, ref string) (instance.Migration, error) {
	all, err := c.Migrations(ctx)
	if err != nil {
		return instance.Migration{}, err
	}
	id := ref
	if i, err := c.FindInstance(ctx, ref); err == nil {
		id = i.UUID
	}
	var best *instance.Migration
	for _, m := range all { // oldest first
		if m.Instance == id && (best == nil || best.Status.Ended() || !m.Status.Ended()) {
			best = &m
		}
	}
	if best == nil {
		return instance.Migration{}, fault.New(fault.NotFound, "", "migration "+ref, "there is no migration of this UUID, nor of an instance called so").
			WithHint("`compute-agent migration list` shows what there is")
	}
	return *best, nil
}

// newest keeps of several records of one thing the one with the highest generation.
func newest[T any](all []T, of func(T) (id string, generation uint64)) []T {
	at := make(map[string]int, len(all))
	kept := make([]T, 0, len(all))
	for _, v := range all {
		id, generation := of(v)
		i, seen := at[id]
		if !seen {
			at[id] = len(kept)
			kept = append(kept, v)
			continue
		}
		if _, other := of(kept[i]); generation > other {
			kept[i] = v
		}
	}
	return kept
}
