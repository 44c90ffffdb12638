package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// DrainOptions say how a host is emptied. The zero value of all but To has the
// defaults.
type DrainOptions struct {
	To          []string        // the destinations; their order has no meaning
	Parallel    int             // migrations at a time; default 2, as many as a source conducts at a time by default
	Timeout     time.Duration   // no migration begins later; those in progress are followed; default 24 h
	BusyTimeout time.Duration   // how long an instance comes back to destinations that are busy or away; default 10 min
	BusyPause   time.Duration   // until then, when a busy host does not say how long; default 10 s
	StayOpen    bool            // don't disable the host first: it may get new instances meanwhile
	Reason      string          // why the host is disabled; default "drained"
	Migrate     api.MigrateArgs // policy, bandwidth and the like of each migration; instance, destination and priority are set here
	// Report is told of each step, by one thread at a time; it must not block.
	Report func(DrainEvent)
}

func (o DrainOptions) withDefaults() DrainOptions {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&o.Timeout, 24 * time.Hour}, {&o.BusyTimeout, 10 * time.Minute}, {&o.BusyPause, 10 * time.Second}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if o.Parallel <= 0 {
		o.Parallel = 2
	}
	if o.Reason == "" {
		o.Reason = "drained"
	}
	if o.Report == nil {
		o.Report = func(DrainEvent) {}
	}
	o.Migrate.Priority = api.PriorityDrain
	return o
}

/*
DrainState is where one instance of a host that is emptied stands.

	waiting ─▶ checking ─┬─▶ moving ─┬─▶ moved
	   ▲                 │           ├─▶ gone      it was deleted, or somebody moved it
	   ├──── busy ◀──────┤           ├─▶ stayed    aborted, outcome unknown, no destination is left
	   │                 └─▶ stayed  │
	   └──────── failed ◀────────────┘             it failed there: the next destination is tried

An instance that can't be moved live is stayed from the start; one that is already
on its way is moving from the start.
*/
type DrainState string

// The states; moved, gone and stayed are final.
const (
	DrainWaiting  DrainState = "waiting"
	DrainChecking DrainState = "checking"
	DrainBusy     DrainState = "busy"
	DrainMoving   DrainState = "moving"
	DrainFailed   DrainState = "failed"
	DrainMoved    DrainState = "moved"
	DrainGone     DrainState = "gone"
	DrainStayed   DrainState = "stayed"
)

// Ended reports whether the drain has done with the instance.
func (s DrainState) Ended() bool {
	return s == DrainMoved || s == DrainGone || s == DrainStayed
}

// DrainEvent is one step of one instance.
type DrainEvent struct {
	At                time.Time           `json:"at"`
	State             DrainState          `json:"state"`
	Instance          string              `json:"instance"`
	Name              string              `json:"name"`
	Dest              string              `json:"dest,omitempty"`
	Migration         *instance.Migration `json:"migration,omitempty"`           // its newest state while it moves, and at its end
	RetryAfterSeconds float64             `json:"retry_after_seconds,omitempty"` // of busy
	Reasons           []string            `json:"reasons,omitempty"`             // of busy, failed, gone and stayed
}

// DrainResult is what became of each instance, in the order of their ends.
type DrainResult struct {
	Host     string       `json:"host"`
	Disabled bool         `json:"disabled"` // takes no new instances now
	Stopped  bool         `json:"stopped"`  // it ended before every instance was tried
	Moved    []DrainEvent `json:"moved"`
	Gone     []DrainEvent `json:"gone"`
	Stayed   []DrainEvent `json:"stayed"`
}

// Err is nil when the host is empty, else precondition_failed with every instance
// that stayed in details.reasons.
func (r DrainResult) Err() error {
	if len(r.Stayed) == 0 {
		return nil
	}
	reasons := make([]string, 0, len(r.Stayed))
	for _, e := range r.Stayed {
		reasons = append(reasons, e.Name+": "+strings.Join(e.Reasons, "; "))
	}
	count := "1 instance is still there"
	if n := len(r.Stayed); n > 1 {
		count = fmt.Sprintf("%d instances are still there", n)
	}
	return fault.New(fault.PreconditionFailed, "", "host "+r.Host, count).WithDetail("reasons", reasons)
}

// Drain empties one host: it live-migrates everything away, some at a time, and can
// be run again to go on with what is left. [Client.Drain] makes it.
type Drain struct {
	client  *Client
	host    string
	opts    DrainOptions
	targets *targets
	stop    chan struct{}
	once    sync.Once

	mu     sync.Mutex // also: one report at a time
	moving map[string]string
	ended  DrainResult
}

// Drain prepares to empty host. Nothing happens before [Drain.Run].
func (c *Client) Drain(host string, o DrainOptions) *Drain {
	return &Drain{
		client: c, host: host, opts: o.withDefaults(), stop: make(chan struct{}), moving: map[string]string{},
		ended: DrainResult{Host: host, Moved: []DrainEvent{}, Gone: []DrainEvent{}, Stayed: []DrainEvent{}},
	}
}

// Run empties the host and returns when every instance has its outcome; what stayed
// is no error of Run but of [DrainResult.Err]. Errors: a host that is unknown or
// down, no destination that takes anything, and the cause of ctx, after which
// migrations go on without anybody who looks.
func (d *Drain) Run(ctx context.Context) (DrainResult, error) {
	if err := d.ready(ctx); err != nil {
		return d.result(), fault.Wrap(err, "drain", "")
	}
	s := d.newSchedule()
	defer s.close()
	for {
		fresh, err := d.plan(ctx, s)
		if err != nil {
			return d.result(), fault.Wrap(err, "drain", "")
		}
		if !fresh {
			return d.result(), nil
		}
		if err := s.run(ctx); err != nil {
			return d.result(), err
		}
	}
}

// Stop lets no new migration begin; those in progress are followed to their end.
func (d *Drain) Stop() { d.once.Do(func() { close(d.stop) }) }

func (d *Drain) stopped() bool {
	select {
	case <-d.stop:
		return true
	default:
		return false
	}
}

// Moving lists the migrations in progress: the UUIDs, by that of their instance.
func (d *Drain) Moving() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.moving)
}

// Abort stops, and asks for the end of every migration in progress; Run sees them end.
// One that has switched over goes on, and its agent says so.
func (d *Drain) Abort(ctx context.Context) error {
	d.Stop()
	var all error
	for _, id := range d.Moving() {
		t, err := d.client.AbortMigration(ctx, id)
		if err == nil {
			_, err = t.Wait(ctx)
			err = errors.Join(err, t.Close())
		}
		all = errors.Join(all, err)
	}
	return all
}

// ready looks the hosts up and closes the one that is to be emptied.
func (d *Drain) ready(ctx context.Context) error {
	h, err := d.client.UpHost(ctx, d.host)
	if err != nil {
		return err
	}
	if d.targets, err = d.findTargets(ctx); err != nil {
		return err
	}
	d.ended.Disabled = !h.Enabled
	if d.opts.StayOpen || !h.Enabled { // somebody's reason stays
		return nil
	}
	h, err = d.client.SetHostEnabled(ctx, d.host, false, d.opts.Reason)
	d.ended.Disabled = err == nil && !h.Enabled
	return err
}

// report tells of a step and keeps the outcomes.
func (d *Drain) report(e DrainEvent) {
	e.At = time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.moving, e.Instance)
	switch e.State {
	case DrainMoving:
		if e.Migration != nil {
			d.moving[e.Instance] = e.Migration.UUID
		}
	case DrainMoved:
		d.ended.Moved = append(d.ended.Moved, e)
	case DrainGone:
		d.ended.Gone = append(d.ended.Gone, e)
	case DrainStayed:
		d.ended.Stayed = append(d.ended.Stayed, e)
	case DrainWaiting, DrainChecking, DrainBusy, DrainFailed:
	}
	d.opts.Report(e)
}

func (d *Drain) result() DrainResult {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended
}
