package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// waiting are the flags of a verb that is carried out by a cast.
type waiting struct{ wait, noWait bool }

func (a *app) waitFlags(c *cobra.Command) *waiting {
	w := &waiting{}
	c.Flags().BoolVar(&w.wait, "wait", true, "follow the task to its end and fail when it fails")
	c.Flags().BoolVar(&w.noWait, "no-wait", false, "print the request id and return as soon as the host has accepted it; with --force, as soon as it is stored")
	c.Flags().BoolVar(&a.force, "force", false, "send it also to a host that is down or that nobody knows; it waits in the stream")
	c.MarkFlagsMutuallyExclusive("wait", "no-wait")
	return w
}

func (w *waiting) none() bool { return w.noWait || !w.wait }

// carryOut prints the request id of a task, or follows it to its end and prints done.
func (a *app) carryOut(ctx context.Context, t *controller.Task, w *waiting, done string) (err error) {
	defer func() { err = errors.Join(err, t.Close()) }()
	if w.none() {
		return a.accepted(ctx, t)
	}
	begun := time.Now()
	event, err := t.Wait(ctx)
	if err != nil {
		return whileWaiting(ctx, err, t)
	}
	return a.ended(event, fmt.Sprintf("%s in %s", done, short(time.Since(begun))))
}

// ended prints the last event of a task for programs, one line for people.
func (a *app) ended(event api.TaskEvent, line string) error {
	if a.output != outputTable {
		return a.encode(a.out, event)
	}
	_, err := fmt.Fprintln(a.out, line)
	return err
}

// accepted is --no-wait: what the host refuses is an error, what it takes is the request
// id. With --force the host may be away for long, and it is enough that the request is stored.
func (a *app) accepted(ctx context.Context, t *controller.Task) error {
	if !a.force {
		if err := t.Accepted(ctx); err != nil {
			return whileWaiting(ctx, err, t)
		}
	}
	if a.output == outputTable {
		_, err := fmt.Fprintln(a.out, t.RequestID())
		return err
	}
	return a.encode(a.out, map[string]string{"request_id": t.RequestID(), "host": t.Host(), "method": t.Method(), "migration": t.Migration()})
}

// whileWaiting says after Ctrl-C what goes on without us.
func whileWaiting(ctx context.Context, err error, t *controller.Task) error {
	if ctx.Err() == nil {
		return err
	}
	return &interrupted{fmt.Sprintf("%s goes on at %s. Its end can still be seen:\n  compute-agent events --host %s --id %s --follow --all",
		t.Method(), t.Host(), t.Host(), t.RequestID())}
}

// failed tells whether err is the outcome of the task itself.
func failed(e api.TaskEvent, err error) bool {
	return err != nil && e.State.Ended() && fault.KindOf(err) != ""
}
