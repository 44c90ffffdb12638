package migration_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// errCrash is how an agent ends that is killed.
var errCrash = errors.New("the agent was killed")

// world is two hosts with their hypervisors, which live on when agents die.
type world struct {
	t     *testing.T
	fakes *fake.World
	sites map[string]*site
	ctx   context.Context //nolint:containedctx // the life of the world

	mu   sync.Mutex
	talk []string // the conversation
	cut  bool     // the agents don't reach one another
	hook func(point string) error

	silent bool // a caller does not hear that the other agent died: nobody answers
}

// site is one host: its hypervisor, its disk, its ports; and the agent that runs there
// at the moment.
type site struct {
	w    *world
	name string
	host *fake.Host
	cfg  migration.Config

	// The disk and the network outlive the agent. Guarded by world.mu.
	journal   map[string]migration.Record // by role and migration
	instances map[string]instance.Instance
	claims    map[string]string // instance → migration
	plugged   map[string]bool
	active    map[string]bool
	disabled  string
	unwired   []string // what is against wiring ports here
	reports   []instance.Migration

	agent *agent
}

// agent is one life of the process on a site.
type agent struct {
	*site
	ctx    context.Context //nolint:containedctx // the life of the process
	kill   context.CancelCauseFunc
	driver *fake.Driver
	source *migration.Source
	dest   *migration.Dest
	runs   sync.WaitGroup
}

type option func(*world)

func newWorld(t *testing.T, opts ...option) *world {
	t.Helper()
	log, err := logkit.New(logkit.Options{Out: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	ctx := logkit.Into(t.Context(), log)
	w := &world{t: t, fakes: fake.NewWorld(ctx), sites: map[string]*site{}, ctx: ctx}
	for _, name := range []string{"a", "b"} {
		host, err := fake.NewHost(w.fakes, fake.Config{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		w.sites[name] = &site{
			w: w, name: name, host: host, cfg: migration.Config{Host: name},
			journal: map[string]migration.Record{}, instances: map[string]instance.Instance{}, claims: map[string]string{},
			plugged: map[string]bool{}, active: map[string]bool{},
		}
	}
	for _, o := range opts {
		o(w)
	}
	for _, s := range w.sites {
		s.start()
	}
	return w
}

// close stops both agents in good order.
func (w *world) close() {
	for _, s := range w.sites {
		s.stop(migration.ErrStopping)
	}
}

// start begins a life of the agent: what is in the journal is taken up.
func (s *site) start() {
	ctx, kill := context.WithCancelCause(s.w.ctx)
	a := &agent{site: s, ctx: ctx, kill: kill, driver: s.host.Open()}
	s.w.mu.Lock()
	s.reports = nil
	records := make([]migration.Record, 0, len(s.journal))
	for _, r := range s.journal {
		records = append(records, r)
	}
	s.w.mu.Unlock()
	ports := doors{a}
	a.dest = migration.NewDest(s.cfg, migration.DestPorts{Hypervisor: a.driver, Peer: ports, Plugger: wires{ports}, Journal: ports, Owner: ports})
	if err := a.dest.Start(ctx); err != nil {
		s.w.t.Error(err)
	}
	a.source = migration.NewSource(s.cfg, migration.SourcePorts{
		Hypervisor: a.driver, Peer: ports, Plugger: wires{ports}, Journal: ports, Owner: ports, Reporter: ports,
	})
	for _, r := range records {
		if r.Role == migration.RoleDest {
			if err := a.dest.Resume(ctx, r); err != nil {
				s.w.t.Error(err)
			}
		} else if !r.Ended() {
			a.spawn(func() { _, _ = a.source.Run(ctx, &r) })
		}
	}
	s.w.mu.Lock()
	s.agent = a
	s.w.mu.Unlock()
}

func (a *agent) spawn(f func()) {
	a.runs.Go(f)
}

// stop ends the agent; what it was doing stays as it is.
func (s *site) stop(cause error) {
	s.w.mu.Lock()
	a := s.agent
	s.agent = nil
	s.w.mu.Unlock()
	if a == nil {
		return
	}
	a.kill(cause)
	_ = a.driver.Close()
	a.runs.Wait()
	a.source.Close()
}

// crash kills the agent without waiting for what it does: nothing of it reaches the
// disk any more.
func (s *site) crash() {
	s.w.mu.Lock()
	a := s.agent
	s.agent = nil
	s.w.mu.Unlock()
	if a != nil {
		a.kill(errCrash)
		_ = a.driver.Close()
	}
}

func (s *site) living() *agent {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.agent
}

// say adds a line to the conversation.
func (w *world) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.talk = append(w.talk, fmt.Sprintf(format, args...))
}

// at runs the test's hook for a point such as "a save perform" or "a ⇒ b post".
func (w *world) at(point string) error {
	w.mu.Lock()
	hook := w.hook
	w.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(point)
}

func (w *world) setHook(h func(string) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hook = h
}

func spec(change ...func(*instance.Spec)) instance.Spec {
	s := instance.Spec{
		UUID: "11111111-1111-4111-8111-111111111111", Name: "guest", VCPUs: 1, MemoryMiB: 1024,
		Boot:  instance.Boot{Kernel: "/boot/vmlinuz"},
		Ports: []instance.Port{{ID: "22222222-2222-4222-8222-222222222222", MAC: "52:54:00:00:00:01", Binding: instance.BindingTap}},
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

// guest starts a guest on a site, wired and recorded.
func (w *world) guest(on string, change ...func(*instance.Spec)) instance.Instance {
	w.t.Helper()
	s, a := spec(change...), w.sites[on].living()
	def := virt.Definition{Spec: s, Generation: 1}
	if err := errors.Join(a.driver.Define(a.ctx, def), a.driver.Start(a.ctx, s.UUID)); err != nil {
		w.t.Fatal(err)
	}
	inst := instance.Instance{UUID: s.UUID, Name: s.Name, Host: on, Generation: 1, VMState: instance.VMActive, Spec: s}
	w.mu.Lock()
	a.instances[s.UUID] = inst
	for _, p := range s.Ports {
		a.plugged[p.ID], a.active[p.ID] = true, true
	}
	w.mu.Unlock()
	return inst
}

const migrationID = "33333333-3333-4333-8333-333333333333"

// moved gives a guest, as its source knew it, that has moved from a to b.
func (w *world) moved() instance.Instance {
	w.t.Helper()
	inst := w.guest("a")
	if m, err := w.migrate(inst, api.MigrateArgs{}).wait(w.t); err != nil {
		w.t.Fatalf("it ended as %s: %v", m.Status, err)
	}
	return inst
}

// migration is one Run in the background.
type inFlight struct {
	id   string
	done chan struct{}
	m    instance.Migration
	err  error
}

func (w *world) migrate(inst instance.Instance, args api.MigrateArgs) *inFlight {
	w.t.Helper()
	args.Instance, args.Dest = inst.UUID, or(args.Dest, "b")
	args.Migration = or(args.Migration, migrationID)
	a := w.sites[inst.Host].living()
	rec := migration.NewRecord(inst, args, inst.Host, "request")
	f := &inFlight{id: rec.Migration.UUID, done: make(chan struct{})}
	if err := a.source.Accept(a.ctx, rec); err != nil {
		f.m, f.err = rec.Migration, err
		close(f.done)
		return f
	}
	a.spawn(func() {
		defer close(f.done)
		m, err := a.source.Run(a.ctx, &rec)
		f.m, f.err = *m, err
	})
	return f
}

func or(v, d string) string {
	if v == "" {
		return d
	}
	return v
}

// wait gives the end of a Run, within virtual days.
func (f *inFlight) wait(t *testing.T) (instance.Migration, error) {
	t.Helper()
	select {
	case <-f.done:
		return f.m, f.err
	case <-time.After(72 * time.Hour):
		t.Fatal("the migration does not end")
		return instance.Migration{}, nil
	}
}

// last is the newest state of a migration that its source has reported or journaled.
func (s *site) last(id string) instance.Migration {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.journal["source "+id].Migration
}

// ended waits, however often agents are restarted, until the journal of the source
// says that the migration is over.
func (w *world) ended(source, id string) instance.Migration {
	w.t.Helper()
	for range 100_000 {
		if m := w.sites[source].last(id); m.Status.Ended() {
			return m
		}
		<-time.After(time.Second)
	}
	w.t.Fatalf("migration %s has not ended: %+v", id, w.sites[source].last(id))
	return instance.Migration{}
}

// phaseOf waits until the source has reported a phase.
func (w *world) reach(source string, p migration.Phase) {
	w.t.Helper()
	for range 100_000 {
		w.mu.Lock()
		reports := w.sites[source].reports
		w.mu.Unlock()
		if slices.ContainsFunc(reports, func(m instance.Migration) bool { return m.Phase == string(p) }) {
			<-time.After(time.Microsecond) // what follows at once has been done
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	w.t.Fatalf("phase %s is not reached", p)
}

// check asserts what must be true after every migration, however it went: the guest
// lives on one host, is recorded there and nowhere else, its ports are plugged exactly
// there, and no claim, slot or record is left open.
func (w *world) check(inst instance.Instance, on string) {
	w.t.Helper()
	<-time.After(time.Second)
	synctest.Wait()
	for _, f := range w.fakes.Audit() {
		w.t.Errorf("the guest must live on one host: %+v", f)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, s := range w.sites {
		here := name == on
		if got, known := s.instances[inst.UUID]; known != here || here && got.Host != name {
			w.t.Errorf("%s: record of the instance: %t (%+v), want %t", name, known, got, here)
		}
		for _, p := range inst.Spec.Ports {
			if s.plugged[p.ID] != here || s.active[p.ID] != here {
				w.t.Errorf("%s: port plugged %t, active %t, want %t", name, s.plugged[p.ID], s.active[p.ID], here)
			}
		}
		if len(s.claims) > 0 {
			w.t.Errorf("%s: claims are left: %v", name, s.claims)
		}
		for key, r := range s.journal {
			if !r.Ended() {
				w.t.Errorf("%s: record %s is left in phase %s (undoing: %t)", name, key, r.Phase, r.Undoing)
			}
		}
		if s.agent != nil && s.agent.source.Active()+s.agent.dest.Active() > 0 {
			w.t.Errorf("%s: %d leaving and %d arriving are still counted", name, s.agent.source.Active(), s.agent.dest.Active())
		}
		dom, err := s.host.Open().Lookup(w.ctx, inst.UUID)
		if lives := err == nil && dom.Active(); lives != here {
			w.t.Errorf("%s: the guest lives here: %t, want %t (%+v, %v)", name, lives, here, dom, err)
		}
		if here && dom.State == virt.Paused && inst.VMState != instance.VMPaused {
			w.t.Errorf("%s: the guest stands still: %+v", name, dom)
		}
	}
}

// doors is the agent's side of the ports, with a working network between the sites.
type doors struct{ a *agent }

// dead refuses what a killed agent still tries.
func (d doors) dead() error {
	if errors.Is(context.Cause(d.a.ctx), errCrash) {
		return errCrash
	}
	return nil
}

func (d doors) Load(role migration.Role, id string) (migration.Record, bool) {
	d.a.w.mu.Lock()
	defer d.a.w.mu.Unlock()
	r, known := d.a.journal[string(role)+" "+id]
	return r, known
}

func (d doors) Save(_ context.Context, rec *migration.Record, line []instance.Moment) error {
	r := *rec
	r.Timeline = line
	w, p := d.a.w, string(r.Phase)
	if r.Undoing {
		p = "undo " + p
	}
	if r.Phase == migration.PhaseEnd {
		p += " " + string(r.Migration.Status)
	}
	if err := w.at(d.a.name + " save " + p); err != nil {
		return err
	}
	if err := d.dead(); err != nil {
		return err
	}
	w.say("%s journal: %s", d.a.name, p)
	w.mu.Lock()
	defer w.mu.Unlock()
	d.a.journal[string(r.Role)+" "+r.Migration.UUID] = r
	return nil
}

func (d doors) Report(m instance.Migration) {
	d.a.w.mu.Lock()
	defer d.a.w.mu.Unlock()
	d.a.reports = append(d.a.reports, m)
}

// reach carries one call to another site's agent.
func carry[T any](ctx context.Context, d doors, host, method string, call func(context.Context, *agent) (T, error)) (T, error) {
	var zero T
	w := d.a.w
	if err := d.dead(); err != nil {
		return zero, err
	}
	point := fmt.Sprintf("%s ⇒ %s %s", d.a.name, host, method)
	if err := w.at(point); err != nil {
		return zero, err
	}
	w.mu.Lock()
	s := w.sites[host]
	cut := w.cut
	w.mu.Unlock()
	away := fault.New(fault.Unavailable, method, host, "no agent answers")
	if s == nil || cut {
		return zero, away
	}
	other := s.living()
	if other == nil {
		return zero, away
	}
	caller := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(other.ctx, func() { cancel(context.Cause(other.ctx)) })() //nolint:contextcheck // its parent's life is another
	v, err := call(ctx, other)
	if w.silent && other.ctx.Err() != nil {
		<-caller.Done()
		return zero, context.Cause(caller)
	}
	verdict := "ok"
	if err != nil {
		verdict = string(fault.KindOf(err))
	}
	w.say("%s: %s", point, verdict)
	if other.ctx.Err() != nil {
		return zero, away
	}
	if lost := w.at(point + " reply"); lost != nil {
		return zero, lost
	}
	return v, err
}

func (d doors) Check(ctx context.Context, host string, args api.PeerMigrateArgs) (api.CheckResult, error) {
	return carry(ctx, d, host, "check", func(ctx context.Context, o *agent) (api.CheckResult, error) { return o.dest.Check(ctx, args) })
}

func (d doors) Prepare(ctx context.Context, host string, args api.PeerMigrateArgs) (api.PreparedResult, error) {
	return carry(ctx, d, host, "prepare", func(ctx context.Context, o *agent) (api.PreparedResult, error) { return o.dest.Prepare(ctx, args) })
}

func (d doors) Post(ctx context.Context, host string, args api.PeerRefArgs) (api.OwnedResult, error) {
	return carry(ctx, d, host, "post", func(ctx context.Context, o *agent) (api.OwnedResult, error) { return o.dest.Post(ctx, args) })
}

func (d doors) Rollback(ctx context.Context, host string, args api.PeerRefArgs) error {
	_, err := carry(ctx, d, host, "rollback", func(ctx context.Context, o *agent) (struct{}, error) { return struct{}{}, o.dest.Rollback(ctx, args) })
	return err
}

func (d doors) Show(ctx context.Context, host, id string) (instance.Migration, error) {
	return carry(ctx, d, host, "show", func(_ context.Context, o *agent) (instance.Migration, error) {
		o.w.mu.Lock()
		defer o.w.mu.Unlock()
		for _, role := range []string{"source ", "dest "} {
			if r, known := o.journal[role+id]; known {
				return r.Migration, nil
			}
		}
		return instance.Migration{}, fault.New(fault.NotFound, "show_migration", id, "no such migration here")
	})
}

// wires are the doors to a site's network.
type wires struct{ doors }

func (d wires) Check(context.Context, string, []instance.Port) ([]string, error) {
	err := d.a.w.at(d.a.name + " check ports")
	d.a.w.mu.Lock()
	defer d.a.w.mu.Unlock()
	return d.a.unwired, err
}

// port does one thing with ports; the hook may fail or hold it.
func (d doors) port(ctx context.Context, verb string, ports []instance.Port, do func(id string)) error {
	if err := d.a.w.at(d.a.name + " " + verb); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := d.dead(); err != nil {
		return err
	}
	d.a.w.say("%s ports: %s", d.a.name, verb)
	d.a.w.mu.Lock()
	defer d.a.w.mu.Unlock()
	for _, p := range ports {
		do(p.ID)
	}
	return nil
}

func (d doors) Plug(ctx context.Context, _ string, ports []instance.Port) error {
	return d.port(ctx, "plug", ports, func(id string) { d.a.plugged[id] = true })
}

func (d doors) Ready(ctx context.Context, _ string, ports []instance.Port) error {
	return d.port(ctx, "ready", ports, func(string) {})
}

func (d doors) Activate(ctx context.Context, _ string, ports []instance.Port) error {
	return d.port(ctx, "activate", ports, func(id string) { d.a.active[id] = true })
}

func (d doors) Unplug(ctx context.Context, _ string, ports []instance.Port) error {
	return d.port(ctx, "unplug", ports, func(id string) {
		delete(d.a.plugged, id)
		delete(d.a.active, id)
	})
}

func (d doors) CanClaim(_ context.Context, args api.PeerMigrateArgs) []string {
	d.a.w.mu.Lock()
	defer d.a.w.mu.Unlock()
	var reasons []string
	if d.a.disabled != "" {
		reasons = append(reasons, "the host is disabled: "+d.a.disabled)
	}
	if _, known := d.a.instances[args.Instance.UUID]; known {
		reasons = append(reasons, "the instance is recorded on the destination already")
	}
	if m, known := d.a.claims[args.Instance.UUID]; known && m != args.Migration {
		reasons = append(reasons, "migration "+m+" has claimed the instance's place already")
	}
	return reasons
}

// record does one transaction on the agent's records.
func (d doors) record(verb string, do func() error) error {
	if err := d.a.w.at(d.a.name + " " + verb); err != nil {
		return err
	}
	if err := d.dead(); err != nil {
		return err
	}
	d.a.w.say("%s records: %s", d.a.name, verb)
	d.a.w.mu.Lock()
	defer d.a.w.mu.Unlock()
	return do()
}

func (d doors) Claim(ctx context.Context, r migration.Record) error {
	reasons := d.CanClaim(ctx, api.PeerMigrateArgs{Migration: r.Migration.UUID, Instance: r.Instance})
	return d.record("claim", func() error {
		if len(reasons) > 0 {
			return fault.New(fault.PreconditionFailed, "claim", r.Instance.UUID, strings.Join(reasons, "; "))
		}
		d.a.claims[r.Instance.UUID] = r.Migration.UUID
		return nil
	})
}

func (d doors) Unclaim(_ context.Context, r migration.Record) error {
	return d.record("unclaim", func() error {
		if d.a.claims[r.Migration.Instance] == r.Migration.UUID {
			delete(d.a.claims, r.Migration.Instance)
		}
		return nil
	})
}

func (d doors) Own(_ context.Context, r migration.Record) error {
	return d.record("own", func() error {
		inst := r.Instance
		inst.Host, inst.Generation = d.a.name, r.Migration.Generation
		d.a.instances[inst.UUID] = inst
		delete(d.a.claims, inst.UUID)
		d.a.journal[string(r.Role)+" "+r.Migration.UUID] = r
		return nil
	})
}

func (d doors) Disown(_ context.Context, r migration.Record) error {
	return d.record("disown", func() error {
		if d.a.instances[r.Migration.Instance].Generation < r.Migration.Generation {
			delete(d.a.instances, r.Migration.Instance)
		}
		return nil
	})
}
