package lab_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

/*
The kill matrix: one thing ends without a word while a migration is in one of its
phases, comes back after a moment (blackout), and then everything has to be in order
again by itself within matrixPatience. Its cells are a table: kinds of blows by phases.

No phase is held by a hook in the program; each is held from outside:

	accept   the source's libvirtd is frozen, and another task of the instance waits for it
	queue    the only outbound slot is taken by another migration
	check    the destination's agent is frozen (SIGSTOP) before it is asked
	prepare  the port waits for an external event
	early    8 MiB/s; the first bytes have gone
	middle   8 MiB/s; half of the memory has gone
	late     8 MiB/s; less than 8 MiB remain
	switch   the destination's agent is frozen before the guest arrives
	clean    the source's libvirtd is frozen before the destination's agent goes on
*/
const (
	blackout       = 2 * time.Second  // between the blow and the repair
	matrixPatience = 90 * time.Second // from the blow until everything is in order
	slowMiB        = 8
	lateBytes      = 8 << 20
)

// matrixOptions are the agents' configuration under the matrix: one slot, so that the queue can be held, and waits that are
// shorter than a cell's patience.
const matrixOptions = `[migration]
max_concurrent_live_migrations = 1
claim_timeout = "15s"
progress_interval = "100ms"
peer_timeout = "10s"
monitor_interval = "200ms"
`

// phases of the matrix, in order.
var phases = []string{"accept", "queue", "check", "prepare", "early", "middle", "late", "switch", "clean"}

// blow is one kind of trouble.
type blow struct {
	name   string
	phases []string // in which it is possible
	strike func(ctx context.Context, c *cell) error
}

// blows is all of them. The destination has a QEMU only once memory moves, the source only until the guest has left.
var blows = []blow{
	{"source agent", phases, func(_ context.Context, c *cell) error { c.agent(c.source).Kill(); return nil }},
	{"destination agent", phases, func(_ context.Context, c *cell) error { c.agent(c.dest).Kill(); return nil }},
	{"both agents", phases, func(_ context.Context, c *cell) error {
		c.agent(c.source).Kill()
		c.agent(c.dest).Kill()
		return nil
	}},
	{"source libvirtd", phases, func(ctx context.Context, c *cell) error { return c.Host(c.source).StopLibvirt(ctx, true) }},
	{"destination libvirtd", phases, func(ctx context.Context, c *cell) error { return c.Host(c.dest).StopLibvirt(ctx, true) }},
	{"source QEMU", phases[:7], func(ctx context.Context, c *cell) error { return c.Host(c.source).KillQEMU(ctx, c.spec.UUID) }},
	{"destination QEMU", phases[4:], func(ctx context.Context, c *cell) error { return c.Host(c.dest).KillQEMU(ctx, c.spec.UUID) }},
	{"NATS", phases, func(_ context.Context, c *cell) error { c.nats.Kill(); return nil }},
	{"source link", phases, func(ctx context.Context, c *cell) error { return c.Host(c.source).Isolate(ctx, true) }},
	{"destination link", phases, func(ctx context.Context, c *cell) error { return c.Host(c.dest).Isolate(ctx, true) }},
	{"source link for 40 s", phases[4:7], func(ctx context.Context, c *cell) error {
		c.blackout = 40 * time.Second
		return c.Host(c.source).Isolate(ctx, true)
	}},
	{"reply of finish lost", []string{"late"}, loseFinish},
}

// cell is one cell of the matrix at work.
type cell struct {
	*matrix
	blow         blow
	phase        string
	spec         instance.Spec // of the guest that moves
	address      netip.Addr
	source, dest int
	blackout     time.Duration
	moves        []string // migrations to watch, by UUID
	asked        string   // the request of a migration that may never begin
}

// loseFinish waits until the destination's libvirtd has let the guest run, and then breaks the connection on which it
// could not say so.
func loseFinish(ctx context.Context, c *cell) error {
	return c.loseReply(ctx, c.source, c.spec, "running")
}

// loseReply waits until the other host's libvirtd has a guest in a state, and then breaks the connection on which it
// could not say so to the source.
func (s *stage) loseReply(ctx context.Context, source int, spec instance.Spec, want string) error {
	if err := s.Host(other(source)).MuteLibvirt(ctx); err != nil {
		return err
	}
	err := until(ctx, 30*time.Second, func() error {
		state, err := s.Host(other(source)).Virsh(ctx, "domstate", "--reason", spec.UUID)
		if err == nil && !strings.HasPrefix(state, want) {
			err = fmt.Errorf("on the destination the guest is %s", state)
		}
		return err
	})
	return errors.Join(err, s.Host(source).ResetLibvirt(ctx))
}

// until polls until try gives nil.
func until(ctx context.Context, patience time.Duration, try func() error) error {
	give := time.NewTimer(patience)
	defer give.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-give.C:
			return fmt.Errorf("not so after %s: %w", patience, err)
		}
	}
}

// matrix is a stage with two guests: one that moves freely, and one whose port waits for an external event.
type matrix struct {
	*stage
	free, waiting         instance.Spec
	freeAddr, waitingAddr netip.Addr
	told                  time.Time // when the waiting guest's port was last said to be wired
}

func newMatrix(t *testing.T) *matrix {
	t.Helper()
	m := &matrix{stage: newStage(t, matrixOptions)}
	m.free, m.freeAddr = m.guest(10)
	m.waiting, m.waitingAddr = m.guest(11)
	m.waiting.Ports[0].WaitForEvent = true
	ctx := t.Context()
	first, err := m.c.BuildAndRunInstance(ctx, "h1", m.free)
	if err != nil {
		t.Fatal(err)
	}
	second, err := m.c.BuildAndRunInstance(ctx, "h1", m.waiting)
	if err != nil {
		t.Fatal(err)
	}
	must(t, "the waiting guest's port", until(ctx, 30*time.Second, func() error {
		m.plugged(ctx)
		i, err := m.c.FindInstance(ctx, m.waiting.UUID)
		if err == nil && i.VMState != instance.VMActive {
			err = fmt.Errorf("it is %s", i.VMState)
		}
		return err
	}))
	m.do(t, first, nil)
	m.do(t, second, nil)
	for _, a := range []netip.Addr{m.freeAddr, m.waitingAddr} {
		must(t, "ping", lab.WaitPing(ctx, a, time.Minute))
	}
	return m
}

// plugged tells both hosts, once a second, that the waiting guest's port is wired. An agent that is away will not hear it.
func (m *matrix) plugged(ctx context.Context) {
	if time.Since(m.told) < time.Second {
		return
	}
	m.told = time.Now()
	for n := range m.Hosts() {
		_ = m.tell(ctx, n+1, "network-vif-plugged") // it is told again
	}
}

// tell tells a host of the waiting guest's port.
func (m *matrix) tell(ctx context.Context, host int, event string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	task, err := m.c.ExternalInstanceEvent(ctx, m.Host(host).Name, api.ExternalEvent{
		Name: event, Instance: m.waiting.UUID, Tag: m.waiting.Ports[0].ID, Status: "completed",
	})
	if err != nil {
		return err
	}
	defer task.Close() //nolint:errcheck // only a reader
	_, err = task.Wait(ctx)
	return err
}

// where gives the host on which libvirt runs a guest; an error unless it is exactly one.
func (m *matrix) where(ctx context.Context, uuid string) (int, error) {
	found, n := 0, 0
	for i, h := range m.Hosts() {
		list, err := h.Virsh(ctx, "list", "--uuid", "--state-running")
		if err != nil {
			return 0, err
		}
		if strings.Contains(list, uuid) {
			found, n = i+1, n+1
		}
	}
	if n != 1 {
		return 0, fmt.Errorf("the guest runs %d times", n)
	}
	return found, nil
}

// other is the host that is not n.
func other(n int) int { return 3 - n }

// run does one cell: hold the phase, strike, repair, wait until all is in order, and migrate once more. It returns how
// the migration ended and how long that took.
func (m *matrix) run(t *testing.T, b blow, phase string) (how string, took time.Duration) {
	t.Helper()
	ctx := t.Context()
	c := &cell{matrix: m, blow: b, phase: phase, spec: m.free, address: m.freeAddr, blackout: blackout}
	if phase == "prepare" {
		c.spec, c.address = m.waiting, m.waitingAddr
	}
	var err error
	if c.source, err = m.where(ctx, c.spec.UUID); err != nil {
		t.Fatal(err)
	}
	c.dest = other(c.source)
	must(t, "hold "+phase, c.hold(ctx))
	began, last := time.Now(), ""
	must(t, "strike", b.strike(ctx, c))
	wait(ctx, c.blackout)
	must(t, "repair", c.repair(ctx))
	err = until(ctx, matrixPatience-time.Since(began), func() error {
		if phase == "queue" || phase == "prepare" {
			m.plugged(ctx)
		}
		amiss := c.inOrder(ctx)
		if now := fmt.Sprint(amiss); now != last {
			t.Logf("after %s: %s", time.Since(began).Round(100*time.Millisecond), now)
			last = now
		}
		return amiss
	})
	took = time.Since(began)
	how = c.outcome(ctx)
	if err != nil {
		t.Fatalf("%s killed in %s: %s, and: %v", b.name, phase, how, err)
	}
	t.Logf("%s killed in %s: %s; in order after %s", b.name, phase, how, took.Round(100*time.Millisecond))
	c.again(t)
	return how, took
}

// wait waits.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// repair brings everything back that may be away.
func (c *cell) repair(ctx context.Context) error {
	errs := []error{c.nats.Start(ctx)}
	for i, h := range c.Hosts() {
		h.FreezeLibvirt(false)
		errs = append(errs, h.Isolate(ctx, false), h.Unfilter(ctx), h.StartLibvirt(ctx, 30*time.Second))
		c.agents[i].Thaw()
		errs = append(errs, c.agents[i].Start(ctx))
	}
	return errors.Join(errs...)
}

// again shows that nothing is in the way of another migration; where the blow ended the guest it is started first.
func (c *cell) again(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	i, err := c.c.ShowInstance(ctx, c.spec.UUID)
	must(t, "show", err)
	if i.PowerState != instance.PowerRunning {
		task, err := c.c.StartInstance(ctx, c.spec.UUID)
		if c.phase == "prepare" {
			must(t, "the port", until(ctx, 20*time.Second, func() error {
				c.plugged(ctx)
				_, err := c.where(ctx, c.spec.UUID)
				return err
			}))
		}
		c.do(t, task, err)
		must(t, "ping", lab.WaitPing(ctx, c.address, 30*time.Second))
	}
	c.moves = nil
	must(t, "a new migration", c.cast(ctx, c.spec, api.MigrateArgs{}))
	must(t, "a new migration", until(ctx, time.Minute, func() error {
		if c.phase == "prepare" {
			c.plugged(ctx)
		}
		return c.inOrder(ctx)
	}))
	if how := c.outcome(ctx); how != string(instance.MigrationCompleted) {
		t.Fatalf("a new migration: %s", how)
	}
}

// cellsToday is one cell for each kind of blow; the phases rotate with the day.
func cellsToday(day int) (cells [][2]string) {
	for i, b := range blows {
		cells = append(cells, [2]string{b.name, b.phases[(day+i)%len(b.phases)]})
	}
	return cells
}

// wanted gives the cells of this run. COMPUTE_AGENT_LAB_MATRIX: "all", the number of a day, a regular expression of
// "blow in phase", or unset: today's.
func wanted(t *testing.T) [][2]string {
	t.Helper()
	cells, err := cellsOf(cmp.Or(os.Getenv("COMPUTE_AGENT_LAB_MATRIX"), strconv.Itoa(time.Now().YearDay())))
	must(t, "COMPUTE_AGENT_LAB_MATRIX", err)
	return cells
}

// cellsOf gives the cells that a wish means.
func cellsOf(wish string) (cells [][2]string, err error) {
	if day, err := strconv.Atoi(wish); err == nil && day >= 0 {
		return cellsToday(day), nil
	}
	match, err := regexp.Compile(map[bool]string{true: "", false: wish}[wish == "all"])
	if err != nil {
		return nil, err
	}
	for _, p := range phases {
		for _, b := range blows {
			if slices.Contains(b.phases, p) && match.MatchString(b.name+" in "+p) {
				cells = append(cells, [2]string{b.name, p})
			}
		}
	}
	if len(cells) == 0 {
		return nil, fmt.Errorf("no cell matches %q", wish)
	}
	return cells, nil
}

// Every kind of blow in some phase (all of them with COMPUTE_AGENT_LAB_MATRIX=all). docs/reliability.md has the table.
func TestKillMatrix(t *testing.T) {
	wantLab(t)
	cells := wanted(t)
	rows := readTable(t)
	rows.write(t)
	for len(cells) > 0 {
		cells = someCells(t, cells, rows)
	}
}

// someCells does cells on one stage until one fails, and gives those that are left: after a failure nothing is sure,
// so the next ones get a new stage.
func someCells(t *testing.T, cells [][2]string, rows table) (left [][2]string) {
	t.Helper()
	t.Run("stage", func(t *testing.T) {
		m := newMatrix(t)
		for left = cells; len(left) > 0 && !t.Failed(); {
			name, phase := left[0][0], left[0][1]
			left = left[1:]
			t.Run(strings.ReplaceAll(name+" in "+phase, " ", "_"), func(t *testing.T) {
				b := blows[slices.IndexFunc(blows, func(b blow) bool { return b.name == name })]
				rows.set(name, phase, "**violated**")
				how, took := m.run(t, b, phase)
				rows.set(name, phase, fmt.Sprintf("%s %.1f s", how, took.Seconds()))
			})
			rows.write(t)
		}
	})
	return left
}

// outcome is how the migrations of the cell ended, as their source says.
func (c *cell) outcome(ctx context.Context) string {
	var words []string
	for _, id := range c.moves {
		m, err := c.migration(ctx, c.source, id)
		switch {
		case errors.Is(err, fault.NotFound):
			words = append(words, "not begun")
		case err != nil:
			words = append(words, err.Error())
		default:
			words = append(words, string(m.Status))
		}
	}
	return strings.Join(words, ", ")
}
