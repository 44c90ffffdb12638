package sim_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/simulate"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// dice draws everything of one run from its seed.
type dice struct{ *rand.Rand }

func roll(seed uint64) dice { return dice{rand.New(rand.NewPCG(seed, 0x5eed))} }

// chance is true in so many percent of all cases.
func (d dice) chance(percent int) bool { return d.IntN(100) < percent }

// within is a time below limit.
func (d dice) within(limit time.Duration) time.Duration { return time.Duration(d.Int64N(int64(limit))) }

func pick[T any](d dice, of ...T) T { return of[d.IntN(len(of))] }

// weather is which kinds of trouble a run has. A calm run has none: there every
// lawful migration must succeed.
type weather struct {
	calm                           bool
	bus, machines, agents, cuts    bool
	power, steer, guests, postcopy bool
	disks, twins, drains, bounces  bool
}

// scenario is one run, drawn.
type scenario struct {
	seed   uint64
	dice   dice
	hosts  []string
	guests []instance.Spec
	home   []string // of each guest
	span   time.Duration
	w      weather
}

func draw(seed uint64) *scenario {
	d := roll(seed)
	s := &scenario{seed: seed, dice: d, hosts: simulate.Names("host", pick(d, 2, 2, 3)), span: 5*time.Second + d.within(40*time.Second)}
	s.w = weather{
		calm: d.chance(15), bus: d.chance(50), machines: d.chance(50), agents: d.chance(50), cuts: d.chance(40),
		power: d.chance(50), steer: d.chance(60), guests: d.chance(20), postcopy: d.chance(15),
		disks: d.chance(20), drains: d.chance(20), bounces: d.chance(40),
	}
	s.w.twins = d.chance(15) && !s.w.guests // of twins that die one after the other nothing is known
	if s.w.calm {
		s.w = weather{calm: true, drains: s.w.drains, bounces: s.w.bounces}
	}
	for range 2 + d.IntN(5) {
		s.guests = append(s.guests, guest(d))
		s.home = append(s.home, pick(d, s.hosts...))
	}
	return s
}

// guest draws an instance: most are idle, some write faster than the link carries.
func guest(d dice) instance.Spec {
	id := func() string { return fmt.Sprintf("%08x-0000-4000-8000-%012x", d.Uint32(), d.Uint64()>>16) }
	spec := instance.Spec{
		UUID: id(), VCPUs: 1, MemoryMiB: pick(d, 256, 512, 1024, 2048), Boot: instance.Boot{Kernel: "/boot/vmlinuz"},
		Metadata: map[string]string{},
		Ports: []instance.Port{{
			ID: id(), MAC: fmt.Sprintf("52:54:00:%02x:%02x:%02x", d.IntN(256), d.IntN(256), d.IntN(256)), Binding: instance.BindingTap,
		}},
	}
	if d.chance(30) {
		spec.Ports[0].Binding, spec.Ports[0].Bridge = instance.BindingBridge, "br-int0"
	}
	if d.chance(10) {
		spec.Metadata["fake.working_set_mib"], spec.Metadata["fake.dirty_mib"] = "200", pick(d, "400", "900", "1300")
	}
	if d.chance(15) {
		spec.Metadata["fake.acpi"] = string(fake.ACPIIgnores)
	}
	return spec
}

// agent draws how one host's agent is set up.
func (s *scenario) agent(d dice) func(string) agent.Config {
	base := agent.Config{}
	m := &base.Migration
	m.OutboundSlots, m.InboundSlots = pick(d, 1, 2, 3), pick(d, 1, 2, 3)
	m.Policy = pick(d, "", instance.PolicyNova, instance.PolicyAdaptive)
	m.OnStall = pick(d, migration.StallAbort, migration.StallPause, migration.StallPostCopy)
	m.PermitPostCopy, m.PermitAutoConv = d.chance(50), d.chance(30)
	m.CompletionTimeout = pick(d, 5*time.Second, 20*time.Second, 800*time.Second)
	m.ClaimTimeout = pick(d, 10*time.Second, 60*time.Second, 600*time.Second)
	m.RollbackTimeout = pick(d, 10*time.Second, 120*time.Second)
	m.BandwidthMiB, m.BudgetMiB, m.PostCopyBandwidthMiB = pick(d, uint64(0), 0, 100), pick(d, uint64(0), 0, 200), pick(d, uint64(0), 0, 50)
	base.Reboot.ShutdownTimeout = pick(d, 2*time.Second, 60*time.Second)
	return func(string) agent.Config { return base }
}

// play runs a scenario from its first build to the audit.
func (s *scenario) play(t testing.TB, ctx context.Context, set setup) tally {
	d := s.dice
	set.hosts, set.node = s.hosts, s.agent(d)
	set.machine = fake.Config{Finish: pick(d, 20*time.Millisecond, 1600*time.Millisecond), Setup: pick(d, 5*time.Millisecond, 100*time.Millisecond)}
	ctx, cancel := context.WithCancel(ctx)
	r := newRig(t, ctx, set)
	defer func() {
		cancel()
		r.jobs.Wait()
	}()
	for i, g := range s.guests {
		r.cast(s.home[i], g.UUID, api.BuildAndRunInstance, api.BuildArgs{Spec: g})
	}
	r.settle()
	if !s.w.calm {
		s.trouble(r)
	}
	s.asks(r)
	eyes, shut := context.WithCancel(r.ctx)
	if !s.w.twins {
		r.jobs.Go(func() { r.watch(eyes) })
	}
	pass(s.span)
	r.plan.Wait()
	r.whole()
	shut()
	r.settle()
	pass(15 * time.Second) // an agent tries again what failed at its start within 5 s
	s.probe(r)
	pass(2 * time.Second) // the views' beat
	return r.check()
}

// later does something at a time of the run that is drawn.
func (s *scenario) later(r *rig, do func(d dice)) {
	at, d := s.dice.within(s.span), roll(s.dice.Uint64())
	r.plan.Go(func() {
		pass(at)
		do(d)
	})
}

// asks draws what the controller wants.
func (s *scenario) asks(r *rig) {
	for range 6 + s.dice.IntN(10) {
		s.later(r, func(d dice) { _, _, _ = s.migrate(r, d) })
	}
	if s.w.steer {
		for range 1 + s.dice.IntN(5) {
			s.later(r, func(d dice) { s.steer(r, d) })
		}
	}
	if s.w.power {
		for range 1 + s.dice.IntN(5) {
			s.later(r, func(d dice) { s.switchPower(r, d) })
		}
	}
	if s.w.bounces {
		s.later(r, func(d dice) { s.bounce(r, d) })
	}
	if s.w.drains {
		s.later(r, func(d dice) { s.drain(r, d) })
	}
}

// where gives a guest and the host that the view has it on; now and then a wrong one.
func (s *scenario) where(r *rig, d dice) (id, host string) {
	id = pick(d, s.guests...).UUID
	if i, known := r.seen()[id]; known && !d.chance(4) {
		return id, i.Host
	}
	return id, pick(d, s.hosts...)
}

// elsewhere is another host, now and then the same.
func (s *scenario) elsewhere(d dice, host string) string {
	dest := pick(d, s.hosts...)
	for dest == host && !d.chance(2) {
		dest = pick(d, s.hosts...)
	}
	return dest
}

func (s *scenario) migrate(r *rig, d dice) (id, host, dest string) {
	id, host = s.where(r, d)
	dest = s.elsewhere(d, host)
	args := api.MigrateArgs{Instance: id, Dest: dest, Priority: pick(d, "", api.PriorityUser, api.PriorityDrain)}
	if d.chance(30) {
		args.Policy = pick(d, instance.PolicyNova, instance.PolicyAdaptive, instance.PolicyPauseNow, instance.PolicyPostCopyNow)
	}
	if d.chance(30) {
		args.Migration = instance.NewUUID()
	}
	if d.chance(20) {
		args.BandwidthMiB = pick(d, uint64(50), 500)
	}
	r.cast(host, id, api.LiveMigration, args)
	return id, host, dest
}

// bounce migrates a guest and sends it back the moment it is seen to have arrived.
func (s *scenario) bounce(r *rig, d dice) {
	id, host, dest := s.migrate(r, d)
	for range 2 + d.IntN(3) {
		for range 200 {
			if i, known := r.seen()[id]; known && i.Host == dest {
				break
			}
			pass(50 * time.Millisecond)
		}
		host, dest = dest, host
		r.cast(host, id, api.LiveMigration, api.MigrateArgs{Instance: id, Dest: dest})
	}
}

// drain empties a host: it takes nothing more, and all that it has is sent away.
func (s *scenario) drain(r *rig, d dice) {
	host := pick(d, s.hosts...)
	_ = r.enable(host, false) // where nobody answers it stays open
	seen := r.seen()
	for _, g := range s.guests {
		if seen[g.UUID].Host == host {
			r.cast(host, g.UUID, api.LiveMigration, api.MigrateArgs{Instance: g.UUID, Dest: s.elsewhere(d, host), Priority: api.PriorityDrain})
		}
	}
	pass(d.within(20 * time.Second))
	_ = r.enable(host, true) // whole opens it in any case
}

func (s *scenario) steer(r *rig, d dice) {
	id, host := s.where(r, d)
	if d.chance(70) { // soon after a migration began
		s.migrate(r, d)
		pass(d.within(3 * time.Second))
	}
	method := pick(d, api.LiveMigrationAbort, api.LiveMigrationAbort, api.LiveMigrationForceComplete, api.LiveMigrationSetBandwidth, api.LiveMigrationRecover)
	if method == api.LiveMigrationSetBandwidth {
		r.cast(host, id, method, api.BandwidthArgs{Instance: id, BandwidthMiB: pick(d, uint64(0), 20, 400)})
		return
	}
	r.cast(host, id, method, api.MigrationRefArgs{Instance: id})
}

func (s *scenario) switchPower(r *rig, d dice) {
	id, host := s.where(r, d)
	one := api.InstanceArgs{Instance: id}
	clean := d.chance(50)
	switch d.IntN(12) {
	case 0, 1:
		r.cast(host, id, api.StopInstance, api.StopArgs{Instance: id, CleanShutdown: &clean})
		pass(d.within(3 * time.Second))
		r.cast(host, id, api.StartInstance, one)
	case 2, 3:
		r.cast(host, id, api.RebootInstance, api.RebootArgs{Instance: id, RebootType: api.RebootSoft})
	case 4, 5:
		r.cast(host, id, api.RebootInstance, api.RebootArgs{Instance: id, RebootType: api.RebootHard})
	case 6, 7:
		r.cast(host, id, api.PauseInstance, one)
		pass(d.within(3 * time.Second))
		r.cast(host, id, api.UnpauseInstance, one)
	case 8:
		r.cast(host, id, api.PauseInstance, one)
	case 9:
		r.cast(host, id, api.StopInstance, api.StopArgs{Instance: id, CleanShutdown: &clean})
	case 10:
		r.cast(host, id, api.SuspendInstance, one)
		pass(d.within(3 * time.Second))
		r.cast(host, id, api.ResumeInstance, one)
	default:
		r.cast(host, id, api.TerminateInstance, one)
	}
}

// trouble draws what goes wrong.
func (s *scenario) trouble(r *rig) {
	if s.w.bus {
		r.bus.SetFaults(storm(s.dice))
	}
	times := func(on bool, most int, do func(*rig, dice)) {
		for range s.dice.IntN(most) + 1 {
			if on {
				s.later(r, func(d dice) { do(r, d) })
			}
		}
	}
	restart := func(kill bool) func(*rig, dice) {
		return func(r *rig, d dice) { s.site(r, d).restart(kill, d.within(10*time.Second)) }
	}
	times(s.w.cuts, 2, s.cut)
	times(s.w.cuts, 1, func(r *rig, d dice) { r.bus.Restart(func() { pass(d.within(5 * time.Second)) }) })
	times(s.w.agents, 3, restart(true))
	times(s.w.agents, 1, restart(false))
	times(s.w.agents, 3, s.dieInAWrite)
	times(s.w.machines, 6, s.machineFault)
	times(s.w.machines, 1, s.hypervisorAway)
	times(s.w.machines && s.w.agents, 1, s.daemonsDown)
	times(s.w.agents && s.w.cuts, 1, s.allAgentsDown)
	times(s.w.disks, 2, s.fullDisk)
	times(s.w.guests, 3, s.killGuest)
	times(s.w.twins, 1, s.twin)
}

// site draws a host.
func (s *scenario) site(r *rig, d dice) *site { return r.sites[pick(d, s.hosts...)] }

// cut takes one host off the bus for a while.
func (s *scenario) cut(r *rig, d dice) {
	name := pick(d, s.hosts...)
	r.bus.Partition(name)
	pass(d.within(10 * time.Second))
	r.bus.Heal(name)
}

// dieInAWrite kills an agent at one of its next transactions.
func (s *scenario) dieInAWrite(r *rig, d dice) {
	si := s.site(r, d)
	si.dieAfter(1 + d.IntN(30))
	select {
	case <-si.died:
		si.restart(true, d.within(10*time.Second))
	case <-time.After(s.span):
	case <-r.ctx.Done():
	}
}

func (s *scenario) hypervisorAway(r *rig, d dice) {
	m := s.site(r, d).Machine
	m.Disconnect()
	pass(d.within(15 * time.Second))
	m.Reconnect()
}

// daemonsDown takes a host's hypervisor and its agent down together.
func (s *scenario) daemonsDown(r *rig, d dice) {
	si := s.site(r, d)
	si.Machine.Disconnect()
	si.restart(true, d.within(5*time.Second))
	pass(d.within(5 * time.Second))
	si.Machine.Reconnect()
}

// allAgentsDown kills all agents at once.
func (s *scenario) allAgentsDown(r *rig, d dice) {
	for _, name := range s.hosts {
		r.sites[name].Kill()
	}
	for _, name := range s.hosts {
		r.sites[name].restart(true, d.within(3*time.Second))
	}
}

// fullDisk lets a host's disk take nothing for a while.
func (s *scenario) fullDisk(r *rig, d dice) {
	si := s.site(r, d)
	si.disk(true)
	pass(d.within(10 * time.Second))
	si.disk(false)
}

// killGuest ends the QEMU of a guest, mostly while it migrates, on either side; the run
// remembers that it did. In post-copy that splits the guest's memory.
func (s *scenario) killGuest(r *rig, d dice) {
	id := pick(d, s.guests...).UUID
	if d.chance(70) {
		id, _, _ = s.migrate(r, d)
		pass(d.within(3 * time.Second))
	}
	names := slices.Clone(s.hosts)
	d.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	split := false
	for _, name := range names {
		split = split || r.sites[name].Machine.Split(id)
	}
	r.mu.Lock()
	r.killed[id] = true
	r.broken[id] = r.broken[id] || split
	r.mu.Unlock()
	for _, name := range names {
		if r.sites[name].Machine.KillQEMU(id) == nil {
			return
		}
	}
}

// twin loses the reply of the finishing step to one host, as often as it comes, and has
// that do what libvirt 9.0 does then: the source lets its guest go on, although it runs on
// the destination already.
func (s *scenario) twin(r *rig, d dice) {
	name := pick(d, s.hosts...)
	m := r.sites[name].Machine
	remove := m.Faults().Add(fake.Fault{
		Method: fake.PointFinish, After: true, Err: fault.New(fault.Unavailable, fake.PointFinish, "", "drawn: the answer was lost"),
	})
	m.Twins(true)
	pass(20 * time.Second)
	m.Twins(false)
	remove()
}

// machineFault makes calls to one hypervisor fail, hang, be slow, or lose their answer.
func (s *scenario) machineFault(r *rig, d dice) {
	methods := []string{
		"Lookup", "Check", "Define", "Undefine", "Start", "Destroy", "Pause", "Unpause", "Job", "CompletedJob", "AbortJob", "Migrate",
		"PrepareIncoming", "CancelIncoming", "SetMaxDowntime", "SetBandwidth", "StartPostCopy", "ResumePostCopy", "List", "Host",
		fake.PointBegin, fake.PointPreCopy, fake.PointFinish,
	}
	if s.w.postcopy {
		methods = append(methods, fake.PointPostCopy)
	}
	f := fake.Fault{Method: pick(d, methods...), Times: 1 + d.IntN(3)}
	if f.Method == fake.PointPostCopy {
		r.mu.Lock()
		for _, g := range s.guests {
			r.broken[g.UUID] = true
		}
		r.mu.Unlock()
	}
	switch d.IntN(4) {
	case 0:
		f.Err = errors.New("drawn: it failed")
	case 1:
		f.Err, f.After = fault.New(fault.Unavailable, f.Method, "", "drawn: the answer was lost"), true
	case 2:
		f.Delay = d.within(8 * time.Second)
	default:
		f.Hang = true
	}
	remove := r.sites[pick(d, s.hosts...)].Machine.Faults().Add(f)
	pass(d.within(20 * time.Second))
	remove()
}

// storm judges the bus's messages: each leg of each connection has its own row of
// draws, so that the order of goroutines changes little.
func storm(d dice) func(rpc.Passage) rpc.Fate {
	drop, twice, late := d.IntN(8), d.IntN(8), d.IntN(15)
	seed := d.Uint64()
	rows := map[string]dice{}
	return func(p rpc.Passage) rpc.Fate { // called under the bus's lock
		key := fmt.Sprint(p.Conn, p.Leg)
		row, known := rows[key]
		if !known {
			h := seed
			for _, c := range []byte(key) {
				h = h*1099511628211 ^ uint64(c)
			}
			row = roll(h)
			rows[key] = row
		}
		f := rpc.Fate{Drop: row.chance(drop), Duplicate: row.chance(twice)}
		if row.chance(late) {
			f.Delay = row.within(2 * time.Second)
		}
		return f
	}
}

// probe asks for one more migration of every guest that runs, now that all is whole:
// each must succeed, so no slot, claim or lane is left taken.
func (s *scenario) probe(r *rig) {
	var ids []string
	for _, g := range s.guests {
		i, known := r.seen()[g.UUID]
		if !known || i.VMState != instance.VMActive || g.Metadata["fake.dirty_mib"] != "" || r.frozen(g.UUID) {
			continue
		}
		next := s.hosts[0]
		for n, name := range s.hosts {
			if name == i.Host {
				next = s.hosts[(n+1)%len(s.hosts)]
			}
		}
		ids = append(ids, r.cast(i.Host, g.UUID, api.LiveMigration, api.MigrateArgs{Instance: g.UUID, Dest: next, CompletionTimeoutSeconds: 3600}))
	}
	for _, id := range ids {
		if e := r.await(id); e.State != api.TaskSucceeded {
			r.t.Errorf("with all whole again, migration of %s from %s: %s, %v", e.Instance, e.Host, e.State, e.Error)
		}
	}
}

// frozen reports whether a migration of the guest has an unknown outcome.
func (r *rig) frozen(id string) bool {
	for _, name := range r.names {
		for _, m := range r.migrations(name) {
			if m.Instance == id && m.Status == instance.MigrationError {
				return true
			}
		}
	}
	return false
}
