package libvirt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// rig is a driver on a scripted daemon, under virtual time.
type rig struct {
	*daemon
	t   *testing.T
	d   *Driver
	log *recorder
}

// recorder keeps events as text.
type recorder struct {
	mu   sync.Mutex
	seen []string
}

func (r *recorder) add(ev virt.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := string(ev.Kind)
	if ev.Reason != "" {
		text += "(" + string(ev.Reason) + ")"
	}
	if ev.Iteration != 0 {
		text += fmt.Sprint(" ", ev.Iteration)
	}
	r.seen = append(r.seen, text)
}

func (r *recorder) wants(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if diff := cmp.Diff(want, r.seen); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// withRig runs f in a bubble with a driver that is connected, unless prepare made
// the daemon such that it can't be.
func withRig(t *testing.T, prepare func(*daemon, *Config), f func(r rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := rig{daemon: newDaemon(t), t: t, log: &recorder{}}
		c := Config{
			InstancesPath: t.TempDir(), VirtType: "qemu", CallTimeout: 30 * time.Second, ConnectTimeout: 10 * time.Second,
			PingInterval: time.Minute, ReconnectFirst: time.Second, ReconnectLimit: 5 * time.Second, dial: r.dial,
		}
		if prepare != nil {
			prepare(r.daemon, &c)
		}
		d, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		r.d = d
		d.Subscribe(r.log.add)
		synctest.Wait()
		f(r)
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

// hostname is the call that these tests make.
func (r rig) hostname(ctx context.Context) (string, error) {
	return control(ctx, r.d, "test", "", (*golibvirt.Libvirt).ConnectGetHostname)
}

func wantKind(t *testing.T, what string, err error, want fault.Kind) {
	t.Helper()
	if fault.KindOf(err) != want {
		t.Errorf("%s: %v (kind %s), want kind %s", what, err, fault.KindOf(err), want)
	}
}

// waitRelease makes a reaction that answers once the channel is closed.
func waitRelease(release <-chan struct{}) reaction {
	return func(*daemonConn, []byte) ([]byte, error) {
		<-release
		return xdr("late"), nil
	}
}

func TestHangingCallIsBoundedAndTheDriverRecovers(t *testing.T) {
	withRig(t, nil, func(r rig) {
		t := r.t
		silent := func(*daemonConn, []byte) ([]byte, error) { return nil, errSilent }
		r.set(func(d *daemon) { d.script[procHostname] = silent })
		began := time.Now()
		_, err := r.hostname(t.Context())
		wantKind(t, "a call that hangs", err, fault.Timeout)
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("it took %s, want its bound of 30s", took)
		}
		r.set(func(d *daemon) { delete(d.script, procHostname) })
		if name, err := r.hostname(t.Context()); name != "h1" || err != nil {
			t.Errorf("the next call = %q, %v, want h1", name, err)
		}
		r.log.wants(t, "connected")
		if r.open() != 2 {
			t.Errorf("%d connections are open, want two: events and the new control", r.open())
		}
	})
}

func TestNeighboursOfAHangingCallEndWell(t *testing.T) {
	withRig(t, nil, func(r rig) {
		t := r.t
		release := make(chan struct{})
		r.set(func(d *daemon) {
			d.script[procHostname] = func(*daemonConn, []byte) ([]byte, error) { return nil, errSilent }
			d.script[procLibVersion] = func(*daemonConn, []byte) ([]byte, error) { <-release; return xdr(uint64(7)), nil }
		})
		hung, slow := make(chan error, 1), make(chan error, 1)
		go func() { _, err := r.hostname(t.Context()); hung <- err }()
		time.Sleep(20 * time.Second)
		go func() {
			_, err := control(t.Context(), r.d, "test", "", (*golibvirt.Libvirt).ConnectGetLibVersion)
			slow <- err
		}()
		wantKind(t, "the call that hangs", <-hung, fault.Timeout)
		r.set(func(d *daemon) { d.script = map[uint32]reaction{} })
		if _, err := r.hostname(t.Context()); err != nil {
			t.Errorf("a call beside the old connection: %v", err)
		}
		close(release)
		if err := <-slow; err != nil {
			t.Errorf("the neighbour on the connection that is out of service: %v, want its answer", err)
		}
		r.log.wants(t, "connected")
	})
}

func TestHungDaemonIsNoticedAndFoundAgain(t *testing.T) {
	withRig(t, nil, func(r rig) {
		t := r.t
		r.set(func(d *daemon) { d.stuck = true })
		_, err := r.hostname(t.Context())
		wantKind(t, "a call to a daemon that hangs", err, fault.Timeout)
		time.Sleep(11 * time.Second)
		r.log.wants(t, "connected", "disconnected")
		began := time.Now()
		_, err = r.hostname(t.Context())
		wantKind(t, "a call while it hangs", err, fault.Unavailable)
		if time.Since(began) != 0 {
			t.Errorf("it took %s, want an answer at once", time.Since(began))
		}
		r.cut() // the kernel closes what a killed daemon had
		r.set(func(d *daemon) { d.stuck = false })
		time.Sleep(time.Minute)
		r.log.wants(t, "connected", "disconnected", "connected")
		if _, err := r.hostname(t.Context()); err != nil {
			t.Errorf("after it came back: %v", err)
		}
	})
}

func TestCutConnection(t *testing.T) {
	withRig(t, nil, func(r rig) {
		t := r.t
		release := make(chan struct{})
		defer close(release)
		r.set(func(d *daemon) { d.script[procHostname] = waitRelease(release) })
		pending := make(chan error, 1)
		go func() { _, err := r.hostname(t.Context()); pending <- err }()
		synctest.Wait()
		r.set(func(d *daemon) { d.away = errors.New("connection refused") })
		r.cut()
		wantKind(t, "the pending call", <-pending, fault.Unavailable)
		r.log.wants(t, "connected", "disconnected")
		_, err := r.hostname(t.Context())
		wantKind(t, "a call meanwhile", err, fault.Unavailable)
		time.Sleep(20 * time.Second)
		tried := r.dialled()
		if tried < 6 || tried > 14 {
			t.Errorf("%d dials in all after 20s away, want a few, with growing sleeps", tried)
		}
		registered := 0
		r.d.Subscribe(func(ev virt.Event) {
			if ev.Kind == virt.EventConnected {
				r.set(func(d *daemon) { registered = d.calls[procRegister] })
			}
		})
		r.set(func(d *daemon) { d.away = nil })
		time.Sleep(6 * time.Second)
		r.log.wants(t, "connected", "disconnected", "connected")
		if want := 2 * len(eventIDs()); registered != want {
			t.Errorf("%d subscriptions in all when it said connected, want %d: anew on the new connection, before", registered, want)
		}
	})
}

func TestOpenWhileLibvirtIsAway(t *testing.T) {
	away := func(d *daemon, _ *Config) { d.away = errors.New("no such file") }
	withRig(t, away, func(r rig) {
		t := r.t
		_, err := r.d.List(t.Context())
		wantKind(t, "List", err, fault.Unavailable)
		if fault.HintOf(err) == "" {
			t.Errorf("%v: no hint", err)
		}
		r.log.wants(t)
		r.set(func(d *daemon) { d.away = nil })
		time.Sleep(6 * time.Second)
		r.log.wants(t, "connected")
	})
}

func TestCallerThatLeavesHarmsNobody(t *testing.T) {
	withRig(t, nil, func(r rig) {
		t := r.t
		release := make(chan struct{})
		r.set(func(d *daemon) { d.script[procHostname] = waitRelease(release) })
		ctx, cancel := context.WithCancel(t.Context())
		left, stays := make(chan error, 1), make(chan error, 1)
		go func() { _, err := r.hostname(ctx); left <- err }()
		go func() { _, err := r.hostname(t.Context()); stays <- err }()
		synctest.Wait()
		cancel()
		wantKind(t, "the caller that left", <-left, fault.Cancelled)
		short, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		_, err := r.hostname(short)
		wantKind(t, "a caller with a deadline", err, fault.Timeout)
		close(release)
		if err := <-stays; err != nil {
			t.Errorf("the caller that stayed: %v", err)
		}
		if r.dialled() != 2 {
			t.Errorf("%d dials, want the two of the start: nothing hung", r.dialled())
		}
	})
}

func TestCallsInFlightAreBounded(t *testing.T) {
	withRig(t, nil, func(r rig) {
		t := r.t
		release := make(chan struct{})
		r.set(func(d *daemon) { d.script[procHostname] = waitRelease(release) })
		done := make(chan error, 6)
		for range 6 {
			go func() { _, err := r.hostname(t.Context()); done <- err }()
		}
		synctest.Wait()
		r.set(func(d *daemon) {
			if d.calls[procHostname] != 4 {
				t.Errorf("%d calls are in flight, want 4", d.calls[procHostname])
			}
		})
		close(release)
		for range 6 {
			if err := <-done; err != nil {
				t.Errorf("a call that waited its turn: %v", err)
			}
		}
	})
}

func TestEventsKeepTheirOrder(t *testing.T) {
	id := uuid.New()
	early := func(d *daemon, _ *Config) {
		d.onOpen = func(c *daemonConn) { c.lifecycle(id, golibvirt.DomainEventStarted, 1) }
	}
	withRig(t, early, func(r rig) {
		t := r.t
		c := r.events(t)
		for i := range 3 {
			c.event(procIteration, "d", id, 1, i+1)
			c.lifecycle(id, golibvirt.DomainEventSuspended, 0)
			c.event(procReboot, "d", id, 1)
		}
		c.event(procJobCompleted, "d", id, 1, 1, "downtime", uint32(4), uint64(188))
		c.event(999, "d", id, 1) // a kind that nobody asked for
		c.lifecycle(id, golibvirt.DomainEventStopped, 3)
		r.log.wants(t, "connected", "started(migrated)",
			"migration-iteration 1", "suspended(user)", "rebooted",
			"migration-iteration 2", "suspended(user)", "rebooted",
			"migration-iteration 3", "suspended(user)", "rebooted",
			"job-completed", "stopped(migrated)")
		later := &recorder{}
		cancel := r.d.Subscribe(later.add)
		later.wants(t, "connected")
		cancel()
		c.lifecycle(id, golibvirt.DomainEventUndefined, 0)
		later.wants(t, "connected")
	})
}

func TestImpossiblePacketEndsTheConnection(t *testing.T) {
	for _, size := range []uint32{0, 4, 27, maxPacket + 1} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			withRig(t, nil, func(r rig) {
				t := r.t
				c := r.events(t)
				_, _ = c.conn.Write(xdr(size))
				time.Sleep(5 * time.Second)
				r.log.wants(t, "connected", "disconnected", "connected")
			})
		})
	}
}

func TestBacklogOfASlowSubscriberStartsAnew(t *testing.T) {
	small := func(_ *daemon, c *Config) { c.EventBacklog = 10 }
	withRig(t, small, func(r rig) {
		t := r.t
		gate, began := make(chan struct{}), make(chan struct{}, 1)
		r.d.Subscribe(func(ev virt.Event) {
			if ev.Kind == virt.EventStarted {
				select {
				case began <- struct{}{}:
				default:
				}
				<-gate
			}
		})
		synctest.Wait()
		c, id := r.events(t), uuid.New()
		for range 13 {
			c.lifecycle(id, golibvirt.DomainEventStarted, 0)
		}
		<-began
		synctest.Wait()
		if _, err := r.hostname(t.Context()); err == nil {
			t.Error("a call right after the backlog was full worked, want a session that starts anew")
		}
		close(gate)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		r.log.mu.Lock()
		defer r.log.mu.Unlock()
		if n := len(r.log.seen); r.log.seen[n-2] != "disconnected" || r.log.seen[n-1] != "connected" {
			t.Errorf("events end with %v, want disconnected and connected", r.log.seen)
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	withRig(t, nil, func(r rig) {
		t := r.t
		release := make(chan struct{})
		defer close(release)
		r.set(func(d *daemon) { d.script[procHostname] = waitRelease(release) })
		pending := make(chan error, 1)
		go func() { _, err := r.hostname(t.Context()); pending <- err }()
		synctest.Wait()
		if err := r.d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		wantKind(t, "the pending call", <-pending, fault.Unavailable)
		_, err := r.hostname(t.Context())
		wantKind(t, "a call after Close", err, fault.Unavailable)
		if !errors.Is(err, errClosed) {
			t.Errorf("a call after Close: %v, want it to say so", err)
		}
		synctest.Wait()
		if r.open() != 0 {
			t.Errorf("%d connections are still open", r.open())
		}
	})
}
