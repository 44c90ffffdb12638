package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

// moveLimit bounds one migration of the lab's guest.
const moveLimit = 2 * time.Minute

// stage is a lab with an agent on each host, a bus, a controller and one guest.
type stage struct {
	*lab.Lab
	agents  []*lab.Agent
	events  []*eventLog
	c       *controller.Client
	spec    instance.Spec
	address netip.Addr
	exec    time.Duration // what virsh needs to start and to connect
}

// moved is what one migration was measured at, in ms.
type moved struct{ job, perform, outage, downtime, whole, elapsed, iterations float64 }

// benchLab moves the same guest to and fro: by the agents twice, by virsh twice, and
// so on. For virsh the agents are stopped: the guest is theirs.
func benchLab(ctx context.Context, e *env) (r report, err error) {
	if err := lab.Available(); err != nil {
		return report{}, err
	}
	l, err := lab.Start(ctx, lab.Config{LockWait: 10 * time.Minute})
	if err != nil {
		return report{}, err
	}
	defer func() { err = errors.Join(err, l.Close(context.WithoutCancel(ctx))) }()
	s, closeStage, err := newStage(ctx, e, l)
	if err != nil {
		return report{}, err
	}
	defer closeStage()
	ready, size := samples{ms(s.agents[0].Ready), ms(s.agents[1].Ready)}, samples{}
	var by [2][]moved // the agents, virsh
	for round := range max(1, e.pairs/2) {
		for i := range 2 {
			who := (round + i) % 2
			got, err := s.twice(ctx, who == 1)
			if err != nil {
				return report{}, fmt.Errorf("round %d: %w", round, err)
			}
			by[who] = append(by[who], got...)
		}
		m, err := memoryOf(s.agents[0].PID())
		if err != nil {
			return report{}, err
		}
		size, ready = append(size, m.rss), append(ready, ms(s.agents[0].Ready), ms(s.agents[1].Ready))
	}
	return labReport(by, s.exec, ready, size), nil
}

func newStage(ctx context.Context, e *env, l *lab.Lab) (*stage, func(), error) {
	s := &stage{Lab: l}
	bus, err := l.NATS(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	for _, h := range l.Hosts() {
		a, err := l.Agent(ctx, h, e.binary, bus.URL)
		if err != nil {
			return nil, nil, err
		}
		s.agents = append(s.agents, a)
	}
	t, err := rpc.Dial(ctx, rpc.Config{URLs: []string{bus.URL}})
	if err != nil {
		return nil, nil, err
	}
	s.c = controller.New(t, controller.Options{})
	closeAll := func() {
		for _, w := range s.events {
			w.stop()
		}
		_ = t.Close()
	}
	for _, h := range l.Hosts() {
		w, err := listenTo(ctx, e, h)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		s.events = append(s.events, w)
	}
	if err := s.boot(ctx); err != nil {
		closeAll()
		return nil, nil, err
	}
	return s, closeAll, s.virshFloor(ctx)
}

// boot builds the guest on the first host and waits until it answers ping.
func (s *stage) boot(ctx context.Context) error {
	if err := s.await(ctx); err != nil {
		return err
	}
	g, prefix := s.Guest(), s.GuestAddress(10)
	s.address = prefix.Addr()
	s.spec = instance.Spec{
		UUID: instance.NewUUID(), Name: "guest10", VCPUs: 1, MemoryMiB: 128, CPU: instance.CPU{Mode: "custom", Model: "qemu64"},
		Boot:  instance.Boot{Kernel: g.Kernel, Initrd: g.Initrd, Cmdline: g.Cmdline(prefix)},
		Ports: []instance.Port{{ID: uuid.NewString(), MAC: lab.MAC(s.address), Binding: instance.BindingBridge, Bridge: s.Host(1).Bridge}},
	}
	task, err := s.c.BuildAndRunInstance(ctx, s.Host(1).Name, s.spec)
	if err != nil {
		return err
	}
	defer func() { _ = task.Close() }()
	if _, err := task.Wait(ctx); err != nil {
		return err
	}
	return lab.WaitPing(ctx, s.address, time.Minute)
}

// await waits until both agents have reported their hypervisor since now.
func (s *stage) await(ctx context.Context) error {
	for deadline := time.Now().Add(20 * time.Second); ; {
		missing := ""
		for i, a := range s.agents {
			v, err := s.c.GetHostInfo(ctx, a.Host.Name)
			if err != nil || v.Hypervisor != "connected" || v.Resources.VCPUs == 0 {
				missing = fmt.Sprintf("agent %d: %v, %s", i+1, err, v.Hypervisor)
			}
		}
		if missing == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New(missing)
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

// virshFloor measures what a virsh costs that does nothing.
func (s *stage) virshFloor(ctx context.Context) error {
	var took samples
	for range 7 {
		began := time.Now()
		if _, err := s.Host(1).Virsh(ctx, "domstate", s.spec.UUID); err != nil {
			return err
		}
		took = append(took, ms(time.Since(began)))
	}
	s.exec = time.Duration(took.median() * float64(time.Millisecond))
	return nil
}

// twice moves the guest to the second host and back.
func (s *stage) twice(ctx context.Context, virsh bool) ([]moved, error) {
	move := s.byAgent
	if virsh {
		for _, a := range s.agents {
			a.Stop()
		}
		move = s.byVirsh
	}
	var out []moved
	for _, to := range []int{1, 0} {
		m, err := s.pinged(ctx, to, move)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
		sleep(ctx, time.Second)
	}
	if !virsh {
		return out, nil
	}
	for _, a := range s.agents {
		if err := a.Start(ctx); err != nil {
			return nil, err
		}
	}
	return out, s.await(ctx)
}

// span is one migration on the clock.
type span struct{ begin, perform, end time.Time }

// pinged runs one migration while the guest is pinged every 5 ms, and reads the
// hypervisors' events afterwards.
func (s *stage) pinged(ctx context.Context, to int, move func(context.Context, int) (span, error)) (moved, error) {
	ctx, cancel := context.WithTimeout(ctx, moveLimit)
	defer cancel()
	pctx, stop := context.WithCancel(ctx)
	defer stop()
	type result struct {
		report lab.PingReport
		err    error
	}
	pings := make(chan result, 1)
	go func() {
		r, err := (&lab.Pinger{Target: s.address}).Run(pctx)
		pings <- result{r, err}
	}()
	sleep(ctx, 200*time.Millisecond)
	t, err := move(ctx, to)
	if err != nil {
		return moved{}, err
	}
	if err := lab.WaitPing(ctx, s.address, 10*time.Second); err != nil {
		return moved{}, s.silent(ctx, to, err)
	}
	sleep(ctx, 300*time.Millisecond)
	stop()
	got := <-pings
	if got.err != nil {
		return moved{}, got.err
	}
	over, err := s.events[1-to].find(ctx, "job-completed", t.begin)
	if err != nil {
		return moved{}, err
	}
	arrived, err := s.events[to].find(ctx, "Started Migrated", t.begin)
	if err != nil {
		return moved{}, err
	}
	m := moved{
		job: ms(over.Sub(arrived)), perform: ms(over.Sub(t.perform)), whole: ms(t.end.Sub(t.begin)),
		outage: ms(got.report.LongestGap(t.begin, time.Time{}).Length()),
	}
	err = s.statistics(ctx, to, &m)
	return m, err
}

// silent says what both hypervisors know of a guest that does not answer.
func (s *stage) silent(ctx context.Context, to int, err error) error {
	mover := "the agents"
	if s.agents[to].PID() == 0 {
		mover = "virsh"
	}
	err = fmt.Errorf("moved to %s by %s: %w", s.Host(to+1).Name, mover, err)
	for i := range s.agents {
		for _, ask := range [][]string{{"domstate", "--reason", s.spec.UUID}, {"domjobinfo", "--completed", s.spec.UUID}, {"qemu-monitor-command", "--hmp", s.spec.UUID, "info registers"}} {
			out, _ := s.Host(i+1).Virsh(ctx, ask...)
			err = fmt.Errorf("%w\n%s, %s: %s", err, s.Host(i+1).Name, ask[0], out)
		}
		out, _ := s.Host(i+1).Command(ctx, "bridge", "fdb").CombinedOutput()
		err = fmt.Errorf("%w\n%s, bridge fdb: %s", err, s.Host(i+1).Name, out)
	}
	return err
}

// statistics asks the destination's libvirt what was measured there.
func (s *stage) statistics(ctx context.Context, to int, m *moved) error {
	out, err := s.Host(to+1).Virsh(ctx, "domjobinfo", "--completed", s.spec.UUID)
	m.downtime, m.elapsed, m.iterations = float64(field(out, "Total downtime:")), float64(field(out, "Time elapsed:")), float64(field(out, "Iteration:"))
	return err
}

// byAgent casts live_migration. The start of perform is in the source's log.
func (s *stage) byAgent(ctx context.Context, to int) (span, error) {
	t := span{begin: time.Now()}
	task, err := s.c.LiveMigration(ctx, s.spec.UUID, api.MigrateArgs{Dest: s.Host(to + 1).Name})
	if err != nil {
		return t, err
	}
	defer func() { _ = task.Close() }()
	if _, err := task.Wait(ctx); err != nil {
		return t, err
	}
	t.end = time.Now()
	t.perform, err = logged(s.agents[1-to].Log(), "phase=perform", t.begin)
	return t, err
}

// byVirsh does what the agents' flags do, with a tap made beforehand.
func (s *stage) byVirsh(ctx context.Context, to int) (span, error) {
	from, dest, tap := s.Host(2-to), s.Host(to+1), s.spec.Ports[0].Device()
	if err := dest.AddTap(ctx, tap); err != nil {
		return span{}, err
	}
	dir := filepath.Join("/var/lib/libvirt/instances", s.spec.UUID)
	if out, err := dest.Command(ctx, "mkdir", "-p", dir).CombinedOutput(); err != nil {
		return span{}, fmt.Errorf("mkdir: %w: %s", err, out)
	}
	t := span{begin: time.Now()}
	t.perform = t.begin.Add(s.exec)
	if _, err := from.Virsh(ctx, "migrate", "--live", "--p2p", "--persistent", "--undefinesource", s.spec.UUID, dest.URI()); err != nil {
		return t, err
	}
	t.end = time.Now()
	return t, from.DeleteTap(ctx, tap)
}

func labReport(by [2][]moved, exec time.Duration, ready, size samples) report {
	r := report{head: []string{"idle guest of 128 MiB, TCG, median [lowest–highest], ms", "agents", "virsh migrate --live --p2p", "ratio"}}
	pick := func(who int, of func(moved) float64) samples {
		var s samples
		for _, m := range by[who] {
			s = append(s, of(m))
		}
		return s
	}
	add := func(name string, of func(moved) float64) (agents, virsh samples) {
		agents, virsh = pick(0, of), pick(1, of)
		r.row(name, agents.spread("%.0f"), virsh.spread("%.0f"), fmt.Sprintf("%.2f", agents.median()/virsh.median()))
		return agents, virsh
	}
	pa, pv := add("start of perform → job-completed", func(m moved) float64 { return m.perform })
	add("of it, domain on the destination → job-completed", func(m moved) float64 { return m.job })
	oa, ov := add("outage: longest gap of replies at 5 ms", func(m moved) float64 { return m.outage })
	da, _ := add("QEMU's own downtime", func(m moved) float64 { return m.downtime })
	add("libvirt's own time of the job", func(m moved) float64 { return m.elapsed })
	add("iterations", func(m moved) float64 { return m.iterations })
	wa, wv := add("cast → succeeded; virsh: exec → exit", func(m moved) float64 { return m.whole })
	r.row("agent on the libvirt driver: exec → READY", ready.spread("%.0f"))
	r.row("agent after its migrations: RSS, MiB", size.spread("%.1f"))
	more := oa.less(ov)
	low, high := more.interval()
	r.want(pa.median() <= 1.05*pv.median(), "start of perform → job-completed at most 1.05 × virsh", "%.2f", pa.median()/pv.median())
	r.want(low <= 0, "outage no worse than virsh's: the 95 % interval of the difference, pair by pair, reaches 0", "%.0f ms more [%.0f to %.0f]", more.median(), low, high)
	r.want(oa.median() <= da.median()+30, "outage at most QEMU's downtime + 30 ms", "%.0f ms against %.0f ms", oa.median(), da.median())
	r.want(wa.median()-wv.median() <= 300, "cast → succeeded at most 300 ms more than virsh", "%.0f ms more", wa.median()-wv.median())
	r.note("%d migrations by the agents, %d by virsh, of the same guest, in turns of two (there and back). virsh's start of perform is its exec plus %s, what a virsh takes that only asks for the state.",
		len(by[0]), len(by[1]), exec.Round(time.Millisecond))
	return r
}

// since midnight of now's day.
func clockOf(text string, after time.Time) (time.Time, error) {
	at, err := time.ParseInLocation("15:04:05.000", text, time.Local)
	if err != nil {
		return at, err
	}
	y, m, d := after.Date()
	at = at.AddDate(y, int(m)-1, d-1)
	if at.Before(after.Add(-time.Hour)) { // past midnight
		at = at.AddDate(0, 0, 1)
	}
	return at, nil
}

// logged finds the moment of the first line with that text in an agent's log.
func logged(file, text string, after time.Time) (time.Time, error) {
	lines, err := linesOf(file)
	if err != nil {
		return time.Time{}, err
	}
	for _, line := range lines {
		clock, rest, _ := strings.Cut(line, " ")
		if !strings.Contains(rest, text) {
			continue
		}
		if at, err := clockOf(clock, after); err == nil && at.After(after) {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s has no %q since %s", file, text, after.Format(time.TimeOnly))
}
