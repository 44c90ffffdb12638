package fake_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// pair is two hosts of one world, with a running guest on the first.
type pair struct {
	world        *fake.World
	a, b         *fake.Host
	source, dest *fake.Driver
	spec         instance.Spec
	log          *diary
}

// diary writes down the events of both hosts with their time.
type diary struct {
	mu    sync.Mutex
	began time.Time
	lines []string
}

func (d *diary) of(host string) func(virt.Event) {
	return func(e virt.Event) {
		d.mu.Lock()
		defer d.mu.Unlock()
		line := fmt.Sprintf("%4d %s %s", e.At.Sub(d.began).Milliseconds(), host, e.Kind)
		if e.Reason != "" {
			line += "(" + string(e.Reason) + ")"
		}
		if e.Iteration > 0 {
			line += fmt.Sprintf(" %d", e.Iteration)
		}
		d.lines = append(d.lines, line)
	}
}

// restart forgets what was and gives what is written from now on.
func (d *diary) restart() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.began, d.lines = time.Now(), nil
}

func (d *diary) all() []string {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.lines)
}

// busy is a guest that writes 32 MiB/s to 64 MiB.
func busy() fake.Guest {
	g := fake.DefaultGuest()
	g.WorkingSetMiB, g.DirtyMiB = 64, 32
	return g
}

func newPair(t *testing.T, g fake.Guest) *pair {
	t.Helper()
	w := fake.NewWorld(life(t))
	c := fake.Config{Guest: g, BandwidthMiB: 64}
	p := &pair{world: w, spec: newSpec(), log: &diary{began: time.Now()}}
	c.Name = "a"
	p.a = newHost(t, w, c)
	c.Name = "b"
	p.b = newHost(t, w, c)
	p.source, p.dest = open(t, p.a), open(t, p.b)
	mustStart(t, p.source, p.spec)
	t.Cleanup(p.source.Subscribe(p.log.of("source")))
	t.Cleanup(p.dest.Subscribe(p.log.of("dest")))
	sleep(t, time.Second)
	p.log.restart()
	return p
}

// sleep lets virtual time pass.
func sleep(t *testing.T, d time.Duration) {
	t.Helper()
	if err := green.Sleep(t.Context(), d); err != nil {
		t.Fatalf("Sleep: %v", err)
	}
}

func (p *pair) migrate(t *testing.T, edit ...func(*virt.MigrateRequest)) *green.Thread[struct{}] {
	t.Helper()
	r := prepare(t, p.dest, p.spec, 2)
	for _, e := range edit {
		e(&r)
	}
	return green.Spawn(t.Context(), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, p.source.Migrate(ctx, r)
	})
}

func state(t *testing.T, d *fake.Driver, id string) string {
	t.Helper()
	dom, err := d.Lookup(t.Context(), id)
	if errors.Is(err, fault.NotFound) {
		return "gone"
	}
	if err != nil {
		t.Fatalf("Lookup: %v", err)
	}
	return fmt.Sprintf("%s(%s)", dom.State, dom.Reason)
}

// wantStates compares where the guest is.
func (p *pair) wantStates(t *testing.T, source, dest string) {
	t.Helper()
	if s, d := state(t, p.source, p.spec.UUID), state(t, p.dest, p.spec.UUID); s != source || d != dest {
		t.Errorf("source %s, destination %s, want %s and %s", s, d, source, dest)
	}
}

func (p *pair) wantWhole(t *testing.T) {
	t.Helper()
	if f := p.world.Audit(); len(f) != 0 {
		t.Errorf("the audit found %+v, want every guest on exactly one host", f)
	}
}

func TestEventsOfAMigrationInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, busy())
		if _, err := p.migrate(t).Wait(t.Context()); err != nil {
			t.Fatalf("Migrate: %v", err)
		}
		want := []string{ // 64.1 MiB, 32.1, 16.0, and 16 MiB of those again fit into 300 ms
			"   5 dest started(migrated)",
			"   5 source migration-iteration 1",
			"1007 source migration-iteration 2",
			"1508 source suspended(migrated)",
			"1763 dest defined",
			"1763 dest resumed(migrated)",
			"1783 source stopped(migrated)",
			"1783 source undefined",
			"1783 source job-completed",
		}
		if diff := cmp.Diff(want, sorted(p.log.all())); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		p.wantStates(t, "gone", "running(migrated)")
		p.wantWhole(t)
	})
}

// sorted puts the two hosts' lines in order of time, the destination first where
// they are equal; a host's own order stays.
func sorted(lines []string) []string {
	const place = len("1234 d") // time and host
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(a[:place], b[:place]) })
	return lines
}

func TestEventsOfPostCopyInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, busy())
		call := p.migrate(t, func(r *virt.MigrateRequest) { r.PostCopy, r.BandwidthMiB = true, 16 })
		sleep(t, time.Second)
		if err := p.source.StartPostCopy(t.Context(), p.spec.UUID); err != nil {
			t.Fatalf("StartPostCopy: %v", err)
		}
		sleep(t, 500*time.Millisecond)
		p.wantStates(t, "paused(postcopy)", "running(postcopy)")
		p.wantWhole(t)
		if j, err := p.source.Job(t.Context(), p.spec.UUID); err != nil || j.PostCopyReq == 0 || j.Memory.Remaining == 0 {
			t.Errorf("Job in post-copy = %+v, %v, want requests and something remaining", j, err)
		}
		if err := p.source.AbortJob(t.Context(), p.spec.UUID); !errors.Is(err, fault.Conflict) {
			t.Errorf("AbortJob in post-copy: %v, want conflict", err)
		}
		if err := p.dest.CancelIncoming(t.Context(), p.spec.UUID, "whatever"); !errors.Is(err, fault.Conflict) {
			t.Errorf("CancelIncoming in post-copy: %v, want conflict", err)
		}
		if _, err := call.Wait(t.Context()); err != nil {
			t.Fatalf("Migrate: %v", err)
		}
		want := []string{
			"   5 dest started(migrated)",
			"   5 source migration-iteration 1",
			"1000 source suspended(postcopy)",
			"1005 dest resumed(postcopy)",
			"2255 dest defined",
			"2255 dest resumed(migrated)",
			"2275 source stopped(migrated)",
			"2275 source undefined",
			"2275 source job-completed",
		}
		if diff := cmp.Diff(want, sorted(p.log.all())); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		j, err := p.dest.CompletedJob(t.Context(), p.spec.UUID)
		if err != nil || j.Downtime != 5*time.Millisecond || j.PostCopyReq == 0 {
			t.Errorf("CompletedJob = %+v, %v, want a downtime of the switch-over alone", j, err)
		}
	})
}

func TestEventsOfAPausedGuestInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, busy())
		if err := p.source.Pause(t.Context(), p.spec.UUID); err != nil {
			t.Fatalf("Pause: %v", err)
		}
		synctest.Wait()
		p.log.restart()
		if _, err := p.migrate(t).Wait(t.Context()); err != nil {
			t.Fatalf("Migrate: %v", err)
		}
		want := []string{
			"   5 dest started(migrated)",
			"   5 source migration-iteration 1",
			"1012 dest defined",
			"1012 dest suspended(user)",
			"1032 source stopped(migrated)",
			"1032 source undefined",
			"1032 source job-completed",
		}
		if diff := cmp.Diff(want, sorted(p.log.all())); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		p.wantStates(t, "gone", "paused(user)")
		p.wantWhole(t)
	})
}

func TestMigrationThatFails(t *testing.T) {
	broken := errors.New("operation failed: job 'migration out' failed: Unable to write to socket")
	cases := []struct {
		name         string
		fault        fake.Fault
		source, dest string
		kind         fault.Kind
		whole        bool
	}{
		{"at the call", fake.Fault{Method: "Migrate", Err: broken}, "running(booted)", "gone", fault.Internal, true},
		{"at the beginning", fake.Fault{Method: fake.PointBegin, Err: broken}, "running(booted)", "gone", fault.Internal, true},
		{"in the middle", fake.Fault{Method: fake.PointPreCopy, Err: broken}, "running(booted)", "gone", fault.Internal, true},
		{"slowly", fake.Fault{Method: fake.PointPreCopy, Err: broken, Delay: time.Hour}, "running(booted)", "gone", fault.Internal, true},
		{"at the switch-over", fake.Fault{Method: fake.PointFinish, Err: broken}, "running(migration_canceled)", "gone", fault.Internal, true},
		{
			"with its last reply lost",
			fake.Fault{Method: fake.PointFinish, Err: fault.Unavailable, After: true},
			"paused(migrating)", "running(migrated)", fault.Unavailable, true,
		},
		{
			"in post-copy",
			fake.Fault{Method: fake.PointPostCopy, Err: broken},
			"paused(postcopy_failed)", "paused(postcopy_failed)", fault.Internal, true,
		},
		{
			"only in its answer",
			fake.Fault{Method: "Migrate", Err: broken, After: true},
			"gone", "running(migrated)", fault.Internal, true,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, busy())
				c.fault.Instance = p.spec.UUID
				p.a.Faults().Add(c.fault)
				call := p.migrate(t, func(r *virt.MigrateRequest) { r.PostCopy = true })
				if c.fault.Method == fake.PointPostCopy {
					sleep(t, 500*time.Millisecond)
					if err := p.source.StartPostCopy(t.Context(), p.spec.UUID); err != nil {
						t.Fatalf("StartPostCopy: %v", err)
					}
				}
				_, err := call.Wait(t.Context())
				if fault.KindOf(err) != c.kind {
					t.Errorf("Migrate: kind %q (%v), want %s", fault.KindOf(err), err, c.kind)
				}
				p.wantStates(t, c.source, c.dest)
				if found := p.world.Audit(); (len(found) == 0) != c.whole {
					t.Errorf("the audit found %+v", found)
				}
			})
		})
	}
}

func TestSplitBrainIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, busy())
		p.a.Faults().Add(fake.Fault{Method: fake.PointFinish, Err: fault.Unavailable, After: true})
		if _, err := p.migrate(t).Wait(t.Context()); !errors.Is(err, fault.Unavailable) {
			t.Fatalf("Migrate: %v, want unavailable", err)
		}
		p.wantWhole(t)
		if err := p.source.Unpause(t.Context(), p.spec.UUID); err != nil { // what a careless agent does
			t.Fatalf("Unpause: %v", err)
		}
		want := []fake.Finding{{Instance: p.spec.UUID, Running: []string{"a", "b"}, Defined: []string{"a", "b"}}}
		if diff := cmp.Diff(want, p.world.Audit()); diff != "" {
			t.Errorf("Audit (-want +got):\n%s", diff)
		}
		if err := errors.Join(p.source.Destroy(t.Context(), p.spec.UUID), p.source.Undefine(t.Context(), p.spec.UUID, true)); err != nil {
			t.Fatalf("remove on the source: %v", err)
		}
		p.wantWhole(t)
	})
}

func TestTroubleOnTheWay(t *testing.T) {
	id := func(p *pair) string { return p.spec.UUID }
	cases := []struct {
		name         string
		do           func(ctx context.Context, p *pair) error
		kind         fault.Kind
		source, dest string
	}{
		{"the guest dies", func(_ context.Context, p *pair) error { return p.a.Crash(id(p)) }, fault.Internal, "shutoff(crashed)", "gone"},
		{"the guest goes off", func(_ context.Context, p *pair) error { return p.a.GuestShutdown(id(p)) }, fault.Internal, "shutoff(shutdown)", "gone"},
		{"the source is destroyed", func(ctx context.Context, p *pair) error { return p.source.Destroy(ctx, id(p)) }, fault.Internal, "shutoff(destroyed)", "gone"},
		{"the destination is destroyed", func(ctx context.Context, p *pair) error { return p.dest.Destroy(ctx, id(p)) }, fault.Internal, "running(booted)", "gone"},
		{"the source's hypervisor is away", func(_ context.Context, p *pair) error { p.a.Disconnect(); return nil }, fault.Unavailable, "gone", "running(migrated)"},
		{"the driver is closed", func(_ context.Context, p *pair) error { return p.source.Close() }, fault.Unavailable, "gone", "running(migrated)"},
		{"nothing", func(context.Context, *pair) error { return nil }, "", "gone", "running(migrated)"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, busy())
				call := p.migrate(t)
				sleep(t, 500*time.Millisecond)
				if err := c.do(t.Context(), p); err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				if _, err := call.Wait(t.Context()); fault.KindOf(err) != c.kind {
					t.Errorf("Migrate: kind %q (%v), want %q", fault.KindOf(err), err, c.kind)
				}
				sleep(t, time.Minute)
				p.a.Reconnect()
				p.source = open(t, p.a)
				p.wantStates(t, c.source, c.dest)
			})
		})
	}
}

func TestAbortAtEveryMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var aborted, tooLate int
		for after := time.Duration(0); after < 2*time.Second; after += 7 * time.Millisecond {
			p := newPair(t, busy())
			call := p.migrate(t)
			sleep(t, after)
			err := p.source.AbortJob(t.Context(), p.spec.UUID)
			_, moved := call.Wait(t.Context())
			sleep(t, time.Second)
			if err == nil {
				aborted++
				p.wantStates(t, "running(booted)", "gone")
			} else {
				tooLate++
				p.wantStates(t, "gone", "running(migrated)")
			}
			if (err == nil) != errors.Is(moved, fault.Cancelled) {
				t.Errorf("after %v: AbortJob: %v, Migrate: %v", after, err, moved)
			}
			p.wantWhole(t)
		}
		if aborted < 100 || tooLate < 10 {
			t.Errorf("%d aborted and %d came too late, want both", aborted, tooLate)
		}
	})
}

func TestAGuestThatNeverConverges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := busy()
		g.DirtyMiB = 1000
		p := newPair(t, g)
		call := p.migrate(t)
		sleep(t, time.Minute)
		before, err := p.source.Job(t.Context(), p.spec.UUID)
		if err != nil || before.Iteration < 50 || before.DirtyRate == 0 || before.Memory.Processed < before.Memory.Total*10 {
			t.Errorf("after a minute: %+v, %v, want many iterations and more processed than there is", before, err)
		}
		if err := p.source.SetMaxDowntime(t.Context(), p.spec.UUID, 1100*time.Millisecond); err != nil {
			t.Fatalf("SetMaxDowntime: %v", err)
		}
		if _, err := call.Wait(t.Context()); err != nil {
			t.Fatalf("Migrate: %v", err)
		}
		j, err := p.dest.CompletedJob(t.Context(), p.spec.UUID)
		if err != nil || j.Downtime < 900*time.Millisecond || j.Downtime > 1105*time.Millisecond {
			t.Errorf("CompletedJob = %+v, %v, want the working set's downtime", j, err)
		}
	})
}

func TestAutoConverge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := busy()
		g.DirtyMiB = 200
		p := newPair(t, g)
		if _, err := p.migrate(t, func(r *virt.MigrateRequest) { r.AutoConverge = true }).Wait(t.Context()); err != nil {
			t.Fatalf("Migrate: %v", err)
		}
		j, err := p.dest.CompletedJob(t.Context(), p.spec.UUID)
		if err != nil || j.Throttle < 20 || j.Downtime > 305*time.Millisecond {
			t.Errorf("CompletedJob = %+v, %v, want a throttled guest and the permitted downtime", j, err)
		}
	})
}

// A switch to post-copy that comes while the end of an iteration is held up goes its own
// way: the guest is not stopped a second time, for which it would look paused.
func TestPostCopyWhileAnIterationIsHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, fake.DefaultGuest())
		p.a.Faults().Add(fake.Fault{Method: fake.PointPreCopy, Delay: 10 * time.Second, Times: 1})
		call := p.migrate(t, func(r *virt.MigrateRequest) { r.PostCopy = true })
		sleep(t, 9*time.Second) // the first iteration is over and its end is held up
		if err := p.source.StartPostCopy(t.Context(), p.spec.UUID); err != nil {
			t.Fatalf("StartPostCopy: %v", err)
		}
		if _, err := call.Wait(t.Context()); err != nil {
			t.Errorf("Migrate: %v", err)
		}
		p.wantStates(t, "gone", "running(migrated)")
	})
}

// A stream that breaks in post-copy leaves no place that is kept for the guest.
func TestBrokenPostCopyKeepsNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, busy())
		p.a.Faults().Add(fake.Fault{Method: fake.PointPostCopy, Err: errors.New("the stream broke")})
		call := p.migrate(t, func(r *virt.MigrateRequest) { r.PostCopy, r.BandwidthMiB = true, 16 })
		sleep(t, time.Second)
		if err := p.source.StartPostCopy(t.Context(), p.spec.UUID); err != nil {
			t.Fatalf("StartPostCopy: %v", err)
		}
		if _, err := call.Wait(t.Context()); err == nil {
			t.Error("Migrate succeeded over a broken stream")
		}
		if left := p.b.Expected(); len(left) > 0 {
			t.Errorf("Expected = %v after the break, want nothing", left)
		}
	})
}

// A guest that dies in post-copy leaves no place that is kept for it.
func TestDeathInPostCopyKeepsNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, busy())
		call := p.migrate(t, func(r *virt.MigrateRequest) { r.PostCopy, r.BandwidthMiB = true, 16 })
		sleep(t, time.Second)
		if len(p.b.Expected()) != 1 {
			t.Errorf("Expected = %v before the guest came, want its migration", p.b.Expected())
		}
		if err := p.source.StartPostCopy(t.Context(), p.spec.UUID); err != nil {
			t.Fatalf("StartPostCopy: %v", err)
		}
		sleep(t, 500*time.Millisecond)
		if err := p.b.Crash(p.spec.UUID); err != nil {
			t.Fatalf("Crash: %v", err)
		}
		_, _ = call.Wait(t.Context()) // how it ends is another test's
		if left := p.b.Expected(); len(left) > 0 {
			t.Errorf("Expected = %v after its death, want nothing", left)
		}
	})
}

// A limit that is set between the two modes, while the CPUs' state is on its way, is post-copy's.
func TestLimitOnTheWayToPostCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, busy())
		call := p.migrate(t, func(r *virt.MigrateRequest) { r.PostCopy, r.BandwidthMiB, r.PostCopyMiB = true, 16, 1 })
		sleep(t, time.Second)
		if err := errors.Join(p.source.StartPostCopy(t.Context(), p.spec.UUID), p.source.SetBandwidth(t.Context(), p.spec.UUID, 1000)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := call.Wait(t.Context()); err != nil {
			t.Errorf("Migrate: %v", err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("post-copy took %v, as by the limit of before", took)
		}
		p.wantWhole(t)
	})
}
