package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

// cast asks for a migration of a guest from the cell's source, or from where it is.
func (c *cell) cast(ctx context.Context, spec instance.Spec, args api.MigrateArgs) error {
	n, err := c.where(ctx, spec.UUID)
	if err != nil {
		return err
	}
	if c.source, c.dest = n, other(n); args.Dest == "" {
		args.Dest = c.Host(c.dest).Name
	}
	task, err := c.c.LiveMigration(ctx, spec.UUID, args)
	if err != nil {
		return err
	}
	defer task.Close() //nolint:errcheck // only a reader
	c.moves = append(c.moves, task.Migration())
	return task.Accepted(ctx)
}

// hold brings the cell's migration into its phase and keeps it there.
func (c *cell) hold(ctx context.Context) error {
	switch c.phase {
	case "accept":
		return c.holdAccept(ctx)
	case "queue":
		return c.holdQueue(ctx)
	case "check":
		c.agent(c.dest).Freeze()
		return errors.Join(c.cast(ctx, c.spec, api.MigrateArgs{}), c.await(ctx, "check"))
	case "prepare":
		return errors.Join(c.tell(ctx, c.dest, "network-vif-unplugged"), c.cast(ctx, c.spec, api.MigrateArgs{}), c.await(ctx, "prepare"), c.awaitClaim(ctx, c.moves[0]))
	case "early":
		return c.moving(ctx, slowMiB, func(p instance.Progress) bool { return p.Memory.Processed > 0 })
	case "middle":
		return c.moving(ctx, slowMiB, func(p instance.Progress) bool { return p.Memory.Processed > 0 && p.Memory.Remaining < p.Memory.Total/2 })
	case "late":
		return c.moving(ctx, slowMiB, func(p instance.Progress) bool { return p.Memory.Processed > 0 && p.Memory.Remaining < lateBytes })
	}
	if err := c.moving(ctx, 3*slowMiB, func(instance.Progress) bool { return true }); err != nil {
		return err
	}
	c.agent(c.dest).Freeze()
	if err := c.await(ctx, "switch"); err != nil || c.phase == "switch" {
		return err
	}
	c.Host(c.source).FreezeLibvirt(true)
	c.agent(c.dest).Thaw()
	return c.await(ctx, "clean")
}

// holdAccept lets another task of the guest, which waits for its libvirtd, take its lane: the migration is in the journal
// and can't begin. The task asks for what is so already.
func (c *cell) holdAccept(ctx context.Context) error {
	c.Host(c.source).FreezeLibvirt(true)
	before, err := c.c.UnpauseInstance(ctx, c.spec.UUID)
	if err != nil {
		return err
	}
	defer before.Close() //nolint:errcheck // only a reader
	task, err := c.c.LiveMigration(ctx, c.spec.UUID, api.MigrateArgs{Dest: c.Host(c.dest).Name})
	if err != nil {
		return err
	}
	defer task.Close() //nolint:errcheck // only a reader
	c.moves, c.asked = append(c.moves, task.Migration()), task.RequestID()
	return errors.Join(before.Accepted(ctx), task.Accepted(ctx))
}

// holdQueue lets the waiting guest's migration, which can't go on, take the only slot. It moves from wherever it is;
// the cell's guest has to be there too.
func (c *cell) holdQueue(ctx context.Context) error {
	n, err := c.where(ctx, c.waiting.UUID)
	if err != nil {
		return err
	}
	if n != c.source { // bring it along
		if err := c.bring(ctx); err != nil {
			return err
		}
	}
	if err := errors.Join(c.tell(ctx, c.dest, "network-vif-unplugged"), c.cast(ctx, c.waiting, api.MigrateArgs{})); err != nil {
		return err
	}
	return errors.Join(c.awaitClaim(ctx, c.moves[0]), c.cast(ctx, c.spec, api.MigrateArgs{}), c.await(ctx, "queue"))
}

// bring moves the waiting guest to the cell's source.
func (c *cell) bring(ctx context.Context) error {
	source, dest := c.source, c.dest
	if err := c.cast(ctx, c.waiting, api.MigrateArgs{}); err != nil {
		return err
	}
	err := until(ctx, time.Minute, func() error {
		c.plugged(ctx)
		m, err := c.migration(ctx, c.source, c.moves[0])
		if err == nil && m.Status != instance.MigrationCompleted {
			err = fmt.Errorf("bringing the other guest along: %s", m.Status)
		}
		return err
	})
	c.source, c.dest, c.moves = source, dest, nil
	return err
}

// moving starts a migration of so many MiB/s and waits for a progress.
func (c *cell) moving(ctx context.Context, mib uint64, there func(instance.Progress) bool) error {
	if err := c.cast(ctx, c.spec, api.MigrateArgs{BandwidthMiB: mib}); err != nil {
		return err
	}
	return until(ctx, time.Minute, func() error {
		m, err := c.migration(ctx, c.source, c.moves[0])
		if err == nil && (m.Phase != "perform" || !there(m.Progress)) {
			err = fmt.Errorf("it is in phase %s, %d bytes remain", m.Phase, m.Progress.Memory.Remaining)
		}
		return err
	})
}

// await waits until the cell's last migration is in a phase of its source.
func (c *cell) await(ctx context.Context, phase string) error {
	return until(ctx, 30*time.Second, func() error {
		m, err := c.migration(ctx, c.source, c.moves[len(c.moves)-1])
		if err == nil && m.Phase != phase {
			err = fmt.Errorf("it is in phase %s, not %s", m.Phase, phase)
		}
		return err
	})
}

// awaitClaim waits until the destination has plugged a migration's port and waits for it.
func (c *cell) awaitClaim(ctx context.Context, id string) error {
	return until(ctx, 30*time.Second, func() error {
		m, err := c.migration(ctx, c.dest, id)
		if err == nil && m.Phase != "ready" {
			err = fmt.Errorf("the destination is in phase %s", m.Phase)
		}
		return err
	})
}

// migration asks a host for a migration.
func (c *cell) migration(ctx context.Context, host int, id string) (instance.Migration, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	all, err := c.c.ListMigrations(ctx, c.Host(host).Name)
	if err != nil {
		return instance.Migration{}, err
	}
	for _, m := range all {
		if m.UUID == id {
			return m, nil
		}
	}
	return instance.Migration{}, fault.New(fault.NotFound, "", id, c.Host(host).Name+" does not know this migration")
}

// inOrder gives everything that is not as it has to be in the end.
func (c *cell) inOrder(ctx context.Context) error {
	var errs []error
	for _, id := range c.moves {
		errs = append(errs, c.ended(ctx, id))
	}
	claimed := map[int]int{}
	for _, spec := range []instance.Spec{c.free, c.waiting} {
		n, err := c.owned(ctx, spec)
		claimed[n]++
		errs = append(errs, err)
	}
	for i, h := range c.Hosts() {
		errs = append(errs, c.idle(ctx, h, claimed[i+1]))
	}
	return errors.Join(errs...)
}

// ended: the migration has an end, at both hosts. One that was refused before anything was made is nowhere; then its
// request has ended.
func (c *cell) ended(ctx context.Context, id string) error {
	m, err := c.migration(ctx, c.source, id)
	switch {
	case fault.KindOf(err) == fault.NotFound && c.asked != "":
		return c.answered(ctx)
	case err != nil:
		return err
	case !m.Status.Ended() || m.Status == instance.MigrationError:
		return fmt.Errorf("the migration is %s in phase %s (%w)", m.Status, m.Phase, errorOf(m.Fault))
	}
	d, err := c.migration(ctx, c.dest, id)
	if err == nil && !d.Status.Ended() {
		return fmt.Errorf("on the destination the migration is %s in phase %s", d.Status, d.Phase)
	}
	if fault.KindOf(err) == fault.NotFound {
		return nil
	}
	return err
}

// answered: the request of a migration that did not begin has ended.
func (c *cell) answered(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	task, err := c.c.Task(ctx, c.Host(c.source).Name, c.asked)
	if err != nil {
		return err
	}
	defer task.Close() //nolint:errcheck // only a reader
	if _, err = task.Wait(ctx); ctx.Err() != nil {
		return fmt.Errorf("its request has not ended: %w", err)
	}
	return nil
}

func errorOf(f *fault.Error) error {
	if f == nil {
		return errors.New("no fault")
	}
	return f
}

// owned: one host has the guest, in its libvirt, with its tap, its files, its record and in the view; no other has
// anything of it. It runs, or, where the blow ended it, that is said.
func (c *cell) owned(ctx context.Context, spec instance.Spec) (owner int, err error) {
	views, err := c.c.Instances(ctx)
	if err != nil {
		return 0, err
	}
	var errs []error
	records := 0
	for i, h := range c.Hosts() {
		list, err := c.c.ListInstances(ctx, h.Name)
		if err != nil {
			return 0, err
		}
		for _, inst := range list {
			if inst.UUID == spec.UUID {
				owner = i + 1
				records++
				errs = append(errs, c.stands(ctx, h, inst))
			}
		}
	}
	if records != 1 {
		errs = append(errs, fmt.Errorf("%d hosts have a record of %s", records, spec.Name))
	}
	shown := slices.DeleteFunc(views, func(i instance.Instance) bool { return i.UUID != spec.UUID })
	if owner > 0 && (len(shown) != 1 || shown[0].Host != c.Host(owner).Name) {
		errs = append(errs, fmt.Errorf("the view shows %s on the wrong host", spec.Name))
	}
	for i, h := range c.Hosts() {
		if i+1 != owner {
			errs = append(errs, nothing(ctx, h, spec))
		}
	}
	return owner, errors.Join(errs...)
}

// stands: the record says what libvirt says, no task holds it, and its port is plugged.
func (c *cell) stands(ctx context.Context, h *lab.Host, inst instance.Instance) error {
	state, err := h.Virsh(ctx, "domstate", inst.UUID)
	if err != nil {
		return err
	}
	if inst.TaskState != instance.TaskNone {
		return fmt.Errorf("%s is held by the task state %s", inst.Name, inst.TaskState)
	}
	if state == "running" && inst.VMState == instance.VMActive {
		links, err := h.Links(ctx)
		if err == nil && !slices.Contains(links, inst.Spec.Ports[0].Device()) {
			err = fmt.Errorf("%s runs on %s without its tap", inst.Name, h.Name)
		}
		if err != nil {
			return err
		}
		address := c.freeAddr
		if inst.UUID == c.waiting.UUID {
			address = c.waitingAddr
		}
		return lab.WaitPing(ctx, address, time.Second)
	}
	killed := strings.HasSuffix(c.blow.name, "QEMU") && inst.UUID == c.spec.UUID
	if killed && state == "shut off" && (inst.VMState == instance.VMStopped || inst.VMState == instance.VMError) {
		return nil
	}
	return fmt.Errorf("%s on %s is %s, its record says %s", inst.Name, h.Name, state, inst.VMState)
}

// nothing: a host that does not own the guest has neither domain nor QEMU nor tap nor files of it.
func nothing(ctx context.Context, h *lab.Host, spec instance.Spec) error {
	var errs []error
	domains, err := h.Virsh(ctx, "list", "--all", "--uuid")
	if err == nil && strings.Contains(domains, spec.UUID) {
		err = fmt.Errorf("%s has a domain of %s left", h.Name, spec.Name)
	}
	errs = append(errs, err)
	links, err := h.Links(ctx)
	if err == nil && slices.Contains(links, spec.Ports[0].Device()) {
		err = fmt.Errorf("%s has a tap of %s left", h.Name, spec.Name)
	}
	errs = append(errs, err)
	pid, err := h.QEMU(ctx, spec.UUID)
	if err == nil && pid != 0 {
		err = fmt.Errorf("%s has a QEMU of %s left: process %d", h.Name, spec.Name, pid)
	}
	errs = append(errs, err)
	files, err := os.ReadDir(h.Outside("/var/lib/libvirt/instances/" + spec.UUID))
	if err == nil && len(files) > 0 {
		errs = append(errs, fmt.Errorf("%s has files of %s left: %v", h.Name, spec.Name, files))
	}
	return errors.Join(errs...)
}

// idle: no slot is taken, and as much is claimed as there are guests of one CPU.
func (c *cell) idle(ctx context.Context, h *lab.Host, guests int) error {
	v, err := c.c.GetHostInfo(ctx, h.Name)
	switch {
	case err != nil:
		return err
	case v.Hypervisor != "connected":
		return fmt.Errorf("the hypervisor of %s is %s", h.Name, v.Hypervisor)
	case v.MigrationsIn != 0 || v.MigrationsOut != 0:
		return fmt.Errorf("%s has %d migrations going and %d coming", h.Name, v.MigrationsOut, v.MigrationsIn)
	case v.Resources.VCPUsUsed != guests:
		return fmt.Errorf("%d CPUs of %s are claimed for %d guests", v.Resources.VCPUsUsed, h.Name, guests)
	case len(v.Problems) > 0:
		return fmt.Errorf("%s has problems: %q", h.Name, v.Problems)
	}
	return nil
}
