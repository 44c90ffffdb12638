package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/version"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

/*
Start opens the agent and returns when it is ready: the journal is read, calls are
answered, casts are taken. The hypervisor may still be away.

	read journal ─▶ subscribe ─▶ threads ─▶ calls ─▶ casts ─▶ READY
	                                                   │
	    unacknowledged casts have come again ──────────┤
	    first inventory, or StartWait ─────────────────┴─▶ lanes open

ctx carries the logger; its end does not stop the agent, Stop does.
*/
func (a *Agent) Start(ctx context.Context) error {
	a.started = time.Now().UTC()
	a.base, a.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	a.calls = green.NewCrew(a.base, callersKept)
	if err := a.open(ctx); err != nil {
		a.cancel(migration.ErrStopping)
		return errors.Join(err, a.shut())
	}
	logkit.From(ctx).Info("ready", logkit.Key("host").Of(a.cfg.Host), logkit.Took.Of(time.Since(a.started)))
	return nil
}

func (a *Agent) open(ctx context.Context) error {
	tasks, bad, err := a.ledger.load()
	if err != nil {
		return err
	}
	if len(bad) > 0 {
		logkit.From(ctx).Error("records of the journal can't be read; they are left as they are", logkit.Err(errors.Join(bad...)))
	}
	if err := a.net.Adopt(ctx); err != nil { // ports are plugged again by the inventory
		logkit.From(ctx).Warn("cannot tell which ports are plugged", logkit.Err(err))
	}
	if err := a.dest.Start(a.base); err != nil {
		return err
	}
	a.defers(a.hv.Subscribe(a.onEvent))
	a.threads()
	a.resumeArrivals(ctx)
	stop, err := untilBack(ctx, a, func(context.Context) (func() error, error) {
		return a.bus.Serve(a.base, a.serviceInfo(), a.serveCall)
	})
	if err != nil {
		return err
	}
	a.close = append(a.close, stop)
	return a.openCasts(ctx, tasks)
}

// untilBack asks the bus again while it is away, up to BusWait: its server may restart
// while an agent starts.
func untilBack[T any](ctx context.Context, a *Agent, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.BusWait)
	defer cancel()
	return green.RetryCall(ctx, green.Retry{
		Max: -1, First: a.cfg.RetryFirst, Limit: a.cfg.RetryLimit,
		Retryable: func(err error) bool { return errors.Is(err, rpc.ErrAway) || errors.Is(err, fault.Timeout) },
		OnRetry: func(_ int, err error, sleep time.Duration) {
			logkit.From(ctx).Warn("the bus went away during the start, trying again", logkit.Err(err), logkit.Key("pause").Of(sleep))
		},
	}, ask)
}

// resumeArrivals takes up the guests that are to come, and those that have ended too:
// they refuse late messages.
func (a *Agent) resumeArrivals(ctx context.Context) {
	for _, r := range a.ledger.migrations() {
		if r.Role != migration.RoleDest {
			continue
		}
		if err := a.dest.Resume(a.base, r); err != nil {
			logkit.From(ctx).Error("an arriving migration was not taken up", logkit.Migration.Of(r.Migration.UUID), logkit.Err(err))
		}
	}
}

// openCasts takes up the tasks of an earlier run and begins to read new ones.
func (a *Agent) openCasts(ctx context.Context, tasks []Task) error {
	reader, err := untilBack(ctx, a, func(context.Context) (rpc.CastReader, error) { return a.bus.Casts(ctx, a.cfg.Host) })
	if err != nil {
		return err
	}
	a.close = append(a.close, reader.Close)
	first := a.lanes.shut()
	a.takeUp(tasks)
	close(a.taken)
	a.views.renew()
	n, err := reader.Unacked(ctx) // before reading: what is read now is not missing
	a.returns.watch()
	missing := n > 0 || err != nil && !errors.Is(err, fault.NotFound)
	a.onReconnect(reader)
	a.spawn(func(ctx context.Context) {
		if missing {
			a.gather(ctx, reader, n)
		}
		a.returns.end()
		a.awaitInventory(ctx)
		a.lanes.release(first)
	})
	a.thread(func(ctx context.Context) error { return a.readCasts(ctx, reader) })
	return nil
}

// takeUp brings the tasks of an earlier run back to where they were.
func (a *Agent) takeUp(tasks []Task) {
	for _, t := range tasks {
		e := a.endpoints[t.Method] // none after a downgrade: its lane ends it
		op := e.op
		if args, err := decode(t.Method, t.Args); err == nil {
			op = e.opOf(args)
		}
		if e.now != nil {
			a.atOnce(t, op)
		} else {
			a.lanes.add(t.Instance, entry{task: t, op: op})
			a.lanes.kick(t.Instance)
		}
	}
}

// onReconnect renews the views after the bus was away, and holds the casts that come
// from then on back until their order is sure. What was accepted before goes on.
func (a *Agent) onReconnect(reader rpc.CastReader) {
	a.defers(a.bus.OnState(func(connected bool) {
		if !connected {
			a.lanes.shut()
			return
		}
		a.views.renew()
		if gate := a.lanes.shutGate(); gate != nil {
			a.spawn(func(ctx context.Context) {
				a.gather(ctx, reader, 0)
				a.lanes.release(gate)
			})
		}
	}))
}

// awaitInventory waits until the hypervisor was seen, at most StartWait.
func (a *Agent) awaitInventory(ctx context.Context) {
	wait, cancel := context.WithTimeout(ctx, a.cfg.StartWait)
	defer cancel()
	select {
	case <-a.machine.seen:
	case <-wait.Done():
		if ctx.Err() == nil {
			logkit.From(ctx).Warn("no inventory of the hypervisor yet; tasks begin without it")
		}
	}
}

// spawn runs fn beside everything else; Stop waits for it.
func (a *Agent) spawn(fn func(context.Context)) {
	a.spawned.Add(1)
	green.SpawnN(a.base, func(ctx context.Context) error {
		defer a.spawned.Done()
		fn(ctx)
		return nil
	})
}

// spawnAfter is spawn after a while; until then it costs a timer and no goroutine, for
// thousands may wait. When the agent stops first, fn is not called.
func (a *Agent) spawnAfter(d time.Duration, fn func(context.Context)) {
	a.spawned.Add(1)
	t := green.SpawnAfter(a.base, d, func(ctx context.Context) (struct{}, error) { fn(ctx); return struct{}{}, nil })
	t.Link(func(*green.Thread[struct{}]) { a.spawned.Done() })
}

// defers notes what Stop undoes.
func (a *Agent) defers(undo func()) {
	a.close = append(a.close, func() error { undo(); return nil })
}

// thread runs fn until the agent stops, and makes Stop wait for it.
func (a *Agent) thread(fn func(context.Context) error) {
	t := green.Spawn(a.base, func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) })
	a.close = append(a.close, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.base), a.cfg.StopTimeout)
		defer cancel()
		_, err := t.Wait(ctx)
		if errors.Is(err, migration.ErrStopping) || errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	})
}

// every runs fn each interval, the first time after delay, until ctx ends.
func every(ctx context.Context, interval, delay time.Duration, fn func(context.Context), opts ...green.LoopOption) error {
	loop := green.NewFixedIntervalLoopingCall[struct{}](func(ctx context.Context) error { fn(ctx); return nil })
	_, err := loop.Run(ctx, interval, append(opts, green.InitialDelay(delay))...)
	return err
}

// threads starts what runs as long as the agent does.
func (a *Agent) threads() {
	a.thread(a.tellEvents)
	a.thread(a.publishViews)
	a.thread(a.beat)
	a.thread(a.net.Run)
	a.thread(func(ctx context.Context) error { return a.looks.Run(ctx, a.cfg.RepairWorkers, a.look) })
	a.thread(a.housekeep)
	a.thread(a.reviews)
	a.thread(a.forget)
	a.serveLanes(a.lanes, true)
	a.serveLanes(a.asides, false)
}

// serveLanes carries out the tasks of lanes; held says that they hold their instance.
func (a *Agent) serveLanes(l *lanes, held bool) {
	a.thread(func(ctx context.Context) error {
		return l.run(ctx, func(ctx context.Context, t *turn) bool { return a.carryTurn(ctx, t, held) }, a.lookAt)
	})
}

// housekeep is the slow beat: an inventory, and the views anew.
func (a *Agent) housekeep(ctx context.Context) error {
	return every(ctx, a.cfg.ReconcileInterval, a.cfg.ReconcileInterval, func(ctx context.Context) {
		if _, connected, _ := a.machine.get(); connected {
			if err := a.reconcile(ctx); err != nil && ctx.Err() == nil {
				logkit.From(ctx).Warn("no inventory", logkit.Err(err))
			}
		}
		a.views.renew() // somebody may have spoilt them
	})
}

func (a *Agent) serviceInfo() rpc.ServiceInfo {
	return rpc.ServiceInfo{
		Host: a.cfg.Host, Version: version.String(),
		Metadata: map[string]string{"host": a.cfg.Host, "machine_id": a.cfg.MachineID, "state_dir": a.cfg.StateDir},
	}
}

// Status is one line for the service manager.
func (a *Agent) Status() string {
	_, connected, problems := a.machine.get()
	hypervisor := "hypervisor away"
	if connected {
		hypervisor = "hypervisor connected"
	}
	s := hypervisor + ", " + plural(a.ledger.count(), "instance")
	if len(problems) > 0 {
		s += ", " + plural(len(problems), "problem")
	}
	return s
}

// Stop takes no new work, lets go of tasks and peer-to-peer jobs and returns within
// seconds; the next Start takes them up. ctx bounds it further.
func (a *Agent) Stop(ctx context.Context) error {
	if a.cancel == nil {
		return nil
	}
	a.cancel(migration.ErrStopping)
	err := errors.Join(a.shut(), a.settle())
	a.source.Close()
	logkit.From(ctx).Info("stopped")
	return err
}

// settle waits until what was spawned has noticed the stop.
func (a *Agent) settle() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.base), a.cfg.StopTimeout)
	defer cancel()
	t := green.Spawn(ctx, func(context.Context) (struct{}, error) { a.spawned.Wait(); return struct{}{}, nil })
	_, err := t.Wait(ctx)
	return err
}

// shut undoes what open did, in reverse.
func (a *Agent) shut() error {
	var errs []error
	for _, undo := range slices.Backward(a.close) {
		errs = append(errs, undo())
	}
	a.close = nil
	return errors.Join(errs...)
}
