// Package controller is what a controller imports: typed calls and casts to
// agents, waiting for what was cast, finding instances and migrations wherever
// they are, and watching what agents publish.
//
//	client := controller.New(transport, controller.Options{})
//	task, err := client.LiveMigration(ctx, "web1", api.MigrateArgs{Dest: "node2"})
//	if err != nil {
//		return err // not_found with near names, unavailable when a host is down, …
//	}
//	defer task.Close()
//	_, err = task.Wait(ctx) // errors.Is(err, fault.Conflict), fault.HintOf(err)
//
// # Calls and casts
//
// A call is answered at once. A cast is stored in the stream and carried out by
// the agent, also when the agent is down at the moment: a [Task] is the handle
// of it. A stored cast counts as accepted only when its accepted event has been
// seen; until then [Task.Wait] and [Task.Accepted] send it again with the same
// request id, which is harmless: an agent runs a request id once.
//
// # Names
//
// Where an instance is asked for, its UUID or its name will do. Instances,
// migrations and hosts are looked up in the views that agents publish; where two
// agents publish the same one, the higher generation is right.
//
// # Errors
//
// Every error is a *fault.Error of some kind, whether it arose here or on the
// host: errors.Is(err, fault.NotFound) works on all of them.
package controller

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// Options bound what a Client waits for. The zero value has the defaults.
type Options struct {
	ServiceDownTime time.Duration // without a report for longer, a host is down (nova's service_down_time); default 60 s
	CallTimeout     time.Duration // of a call and of a look into the views whose context has no deadline; default 30 s
	ResendInterval  time.Duration // a cast that is not accepted is sent again so often; default 5 s, the agent's AckWait
	AcceptTimeout   time.Duration // Task.Wait and Task.Accepted give up on a cast that nobody accepts; default 60 s
	TaskTimeout     time.Duration // Task.Wait gives up on an accepted cast; default 24 h, as long as events are kept
	CastExpiry      time.Duration // a cast read later is refused; default 0: the agent's cast_default_expiry
	BusPatience     time.Duration // a look into views or events is repeated so long while the bus reconnects or elects a leader; default 45 s, nats-server 2.9 on a busy machine takes up to 30
	Force           bool          // cast without looking whether the host exists and reports
	// Heartbeat has agents say so often (100 ms to 1 h) that they are still at a call. A call
	// may then take as long as TaskTimeout, and is given up as unavailable when nothing is
	// heard for twice as long as Heartbeat. Default 0: one reply and nothing else.
	Heartbeat time.Duration

	// Resolved is told which instance a name stood for: errors of agents speak of UUIDs,
	// and who typed a name wants to read it.
	Resolved func(name, uuid string)
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&o.ServiceDownTime, 60 * time.Second},
		{&o.CallTimeout, 30 * time.Second},
		{&o.ResendInterval, 5 * time.Second},
		{&o.AcceptTimeout, 60 * time.Second},
		{&o.TaskTimeout, 24 * time.Hour},
		{&o.BusPatience, 45 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if o.Resolved == nil {
		o.Resolved = func(string, string) {}
	}
	return o
}

// Client speaks to agents over one transport. Any number of goroutines may use it.
type Client struct {
	bus  rpc.Client
	opts Options
}

// New makes a client of a transport. The transport stays the caller's to close.
func New(bus rpc.Client, o Options) *Client {
	return &Client{bus: bus, opts: o.withDefaults()}
}

type requestIDKey struct{}

// WithRequestID makes the next request use id, a UUID of the caller's: repeated
// with the same id, method and arguments it runs once, and a call gets its first
// answer again. Without it each request has an id of its own.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

// Call asks host for method and reads the answer into reply, which may be nil or
// a *json.RawMessage. args is one of api's argument types, or raw JSON. The typed
// calls are shorter; this one is for methods of another version.
func (c *Client) Call(ctx context.Context, host, method string, args, reply any) error {
	m, err := message(ctx, method, args)
	if err != nil {
		return err
	}
	limit := c.opts.CallTimeout
	if m.Heartbeat = c.opts.Heartbeat; m.Heartbeat > 0 {
		limit = c.opts.TaskTimeout
	}
	ctx, cancel := within(ctx, limit)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		m.Expires = deadline
	}
	// one that was on its way when the connection broke is sent again: an agent runs a
	// request id once
	body, err := patient(ctx, c, isAway, func() ([]byte, error) { return c.bus.Call(ctx, host, m) })
	if err != nil {
		return c.explain(ctx, host, err)
	}
	if reply == nil || len(body) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, reply); err != nil {
		return fault.WrapAs(fault.Internal, err, method, host)
	}
	return nil
}

// explain finds out why nobody answered: a host that does not exist, or one that is down.
func (c *Client) explain(ctx context.Context, host string, err error) error {
	if !errors.Is(err, fault.Unavailable) {
		return err
	}
	if _, cause := c.UpHost(ctx, host); errors.Is(cause, fault.NotFound) || errors.Is(cause, fault.Unavailable) {
		return cause
	}
	return err
}

// busPause is between two looks at a bus that is away.
const busPause = 100 * time.Millisecond

// patient asks again while the bus reconnects or elects a leader, up to BusPatience.
// ask must change nothing, or be harmless when repeated.
func patient[T any](ctx context.Context, c *Client, again func(error) bool, ask func() (T, error)) (T, error) {
	until := time.Now().Add(c.opts.BusPatience)
	for {
		v, err := ask()
		if err == nil || !again(err) || !time.Now().Before(until) || pause(ctx, busPause) != nil {
			return v, err
		}
	}
}

// isAway: the connection is lost or the servers have no leader.
func isAway(err error) bool { return errors.Is(err, rpc.ErrAway) }

// isSilent is isAway, or a question to the bus itself got lost with a leader.
func isSilent(err error) bool { return isAway(err) || errors.Is(err, fault.Timeout) }

// bounded gives ctx a deadline if it has none.
func (c *Client) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return within(ctx, c.opts.CallTimeout)
}

func within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, limit)
}

// message checks args by their own rules and makes the request of them.
func message(ctx context.Context, method string, args any) (rpc.Message, error) {
	id, ok := ctx.Value(requestIDKey{}).(string)
	if !ok {
		id = instance.NewUUID()
	} else if err := instance.CheckUUID("request id", id); err != nil {
		return rpc.Message{}, fault.Wrap(err, method, "")
	}
	if checker, ok := args.(api.Checker); ok {
		if err := checker.Check(); err != nil {
			return rpc.Message{}, fault.Wrap(err, method, "")
		}
	}
	body, err := rpc.JSON(args)
	if err != nil {
		return rpc.Message{}, fault.WrapAs(fault.InvalidArgument, err, method, "")
	}
	return rpc.Message{Method: method, RequestID: id, Version: api.Needs(method), Args: body}, nil
}
