package controller

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

/*
Task is a cast that was stored in the stream, and its events. One goroutine at a
time may use it; Close it in the end.

	stored ──▶ accepted ──▶ running ──▶ succeeded | failed
	   │ ▲         └──▶ refused
	   └─┘ sent again every ResendInterval, up to AcceptTimeout
*/
type Task struct {
	client    *Client
	host      string
	message   rpc.Message
	migration string
	sent      time.Time // the first time; zero when another process sent it
	events    rpc.EventReader
	last      api.TaskEvent
}

// Cast stores a request for host and gives the handle of it. It reads the task's
// events from before the request is stored, so none is missed. args is one of
// api's argument types, or raw JSON. The typed casts are shorter.
func (c *Client) Cast(ctx context.Context, host, method string, args any) (*Task, error) {
	m, err := message(ctx, method, args)
	if err != nil {
		return nil, err
	}
	if c.opts.CastExpiry > 0 {
		m.Expires = time.Now().Add(c.opts.CastExpiry)
	}
	if !c.opts.Force {
		if _, err := c.UpHost(ctx, host); err != nil {
			return nil, fault.Wrap(err, method, "")
		}
	}
	t := &Task{client: c, host: host, message: m, sent: time.Now()}
	if err := t.open(ctx); err != nil {
		return nil, err
	}
	if err := t.send(ctx); err != nil {
		return nil, errors.Join(fault.Wrap(err, method, host), t.Close())
	}
	return t, nil
}

// Task gives the handle of a cast that somebody sent to host, by its request id.
// Nothing is sent again: the first event is the last one that is known.
func (c *Client) Task(ctx context.Context, host, requestID string) (*Task, error) {
	t := &Task{client: c, host: host, message: rpc.Message{RequestID: requestID}}
	if err := t.open(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// RequestID is what the agent journals the request under.
func (t *Task) RequestID() string { return t.message.RequestID }

// Host is where the cast went.
func (t *Task) Host() string { return t.host }

// Method is what was asked for; empty for another's task until its first event.
func (t *Task) Method() string { return t.message.Method }

// Migration is the UUID of the migration that a live_migration makes, else empty.
func (t *Task) Migration() string { return t.migration }

// Last is the last event that was read; its state is empty before the first.
func (t *Task) Last() api.TaskEvent { return t.last }

// Close stops reading events. The task itself goes on.
func (t *Task) Close() error { return t.events.Close() }

// Accepted waits until the agent has the cast in its journal, sending it again as
// long as it doesn't. An error of a refused task is the agent's; timeout after
// AcceptTimeout means that the cast is in the stream and nobody has read it.
func (t *Task) Accepted(ctx context.Context) error {
	if t.last.State == "" {
		if _, err := t.Next(ctx); err != nil {
			return err
		}
	}
	if t.last.State == api.TaskRefused {
		return t.failure()
	}
	return nil
}

// Wait follows the task to its end. The error of a task that failed or was refused
// is the agent's own *fault.Error; the event is there too.
func (t *Task) Wait(ctx context.Context) (api.TaskEvent, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, t.client.opts.TaskTimeout,
		fault.Newf(fault.Timeout, t.message.Method, t.host, "it has not ended within %s", t.client.opts.TaskTimeout))
	defer cancel()
	for !t.last.State.Ended() {
		if _, err := t.Next(ctx); err != nil {
			return t.last, err
		}
	}
	if t.last.State == api.TaskSucceeded {
		return t.last, nil
	}
	return t.last, t.failure()
}

// Next waits for the task's next event; after its end it gives the last one again.
// Wait is made of it. Until the first event the cast is sent again now and then.
func (t *Task) Next(ctx context.Context) (api.TaskEvent, error) {
	for !t.last.State.Ended() {
		e, err := t.read(ctx)
		if err == nil && e.State != t.last.State { // else it was told again
			t.last = e
			t.message.Method = e.Method
			return e, nil
		}
		if err == nil {
			continue
		}
		if err := t.goOn(ctx, err); err != nil {
			return t.last, err
		}
	}
	return t.last, nil
}

// goOn does what lets reading continue after err, or says why it can't.
func (t *Task) goOn(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return t.given(ctx)
	case errors.Is(err, errQuiet):
		return t.again(ctx)
	case fault.Retryable(err):
		return t.reopen(ctx)
	default:
		return fault.Wrap(err, t.message.Method, t.host)
	}
}

// errQuiet: no event came within ResendInterval.
var errQuiet = errors.New("no event yet")

func (t *Task) read(ctx context.Context) (api.TaskEvent, error) {
	wait, cancel := ctx, context.CancelFunc(func() {})
	if t.last.State == "" {
		wait, cancel = context.WithTimeoutCause(ctx, t.client.opts.ResendInterval, errQuiet)
	}
	defer cancel()
	raw, err := t.events.Next(wait)
	if err != nil {
		if wait.Err() != nil {
			return api.TaskEvent{}, context.Cause(wait)
		}
		return api.TaskEvent{}, err
	}
	var e api.TaskEvent
	if json.Unmarshal(raw.Body, &e) != nil || e.Host != t.host || e.RequestID != t.message.RequestID {
		return t.last, nil // not the agent's word about this task: as if nothing new was told
	}
	return e, nil
}

// again sends a cast that nobody has accepted once more, until AcceptTimeout.
func (t *Task) again(ctx context.Context) error {
	if t.sent.IsZero() {
		return fault.New(fault.NotFound, "task", t.message.RequestID, "no event of this request is in the stream").
			WithHint("events are kept for a day; is %s the host it was sent to?", t.host)
	}
	if time.Since(t.sent) >= t.client.opts.AcceptTimeout {
		return fault.Newf(fault.Timeout, t.message.Method, t.host, "the cast is stored, but the agent has not accepted it within %s", t.client.opts.AcceptTimeout).
			WithHint("it stays in the stream and is carried out when the agent reads it; follow it by its request id %s", t.message.RequestID).
			WithDetail("request_id", t.message.RequestID)
	}
	return t.send(ctx)
}

// send stores the message; a bus that is away is tried again until AcceptTimeout.
func (t *Task) send(ctx context.Context) error {
	for {
		once, cancel := context.WithTimeout(ctx, t.client.opts.CallTimeout)
		err := t.client.bus.Cast(once, t.host, t.message)
		cancel()
		if err == nil || !fault.Retryable(err) || time.Since(t.sent) >= t.client.opts.AcceptTimeout {
			return err
		}
		if pause(ctx, t.client.opts.ResendInterval) != nil {
			return err
		}
	}
}

func (t *Task) open(ctx context.Context) error {
	events, err := t.client.readEvents(ctx, t.filter())
	if err != nil {
		return fault.Wrap(err, "read events of", t.host)
	}
	t.events = events
	return nil
}

// reopen begins again at the last known event after the bus was away; the bound
// is the caller's context.
func (t *Task) reopen(ctx context.Context) error {
	events, err := t.client.openAgain(ctx, t.filter(), t.events)
	if err != nil {
		return err
	}
	t.events = events
	return nil
}

func (t *Task) filter() rpc.EventFilter {
	return rpc.EventFilter{Host: t.host, Kind: api.EventTask, ID: t.message.RequestID, From: rpc.FromLast}
}

// given is the error of a wait that its context ended.
func (t *Task) given(ctx context.Context) error {
	return fault.Wrap(context.Cause(ctx), t.message.Method, t.host)
}

// failure is the agent's error, whatever it left out.
func (t *Task) failure() error {
	if t.last.Error != nil {
		return t.last.Error
	}
	return fault.Newf(fault.Internal, t.last.Method, t.last.Instance, "the task was %s and the agent did not say why", t.last.State)
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
