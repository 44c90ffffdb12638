package migration

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// TestBound holds a bound beside what it stands for, a context with a deadline and a cause.
func TestBound(t *testing.T) {
	stopped := errors.New("stopped")
	cases := []struct {
		name  string
		do    func(ctx context.Context, stop context.CancelCauseFunc, end context.CancelFunc)
		err   error
		cause func(error) bool
	}{
		{"nothing happens", func(context.Context, context.CancelCauseFunc, context.CancelFunc) {}, nil, func(err error) bool { return err == nil }},
		{
			"its time passes", func(context.Context, context.CancelCauseFunc, context.CancelFunc) { time.Sleep(2 * time.Second) },
			context.DeadlineExceeded, func(err error) bool { return fault.KindOf(err) == fault.Timeout },
		},
		{
			"its parent ends", func(_ context.Context, stop context.CancelCauseFunc, _ context.CancelFunc) { stop(stopped) },
			context.Canceled, func(err error) bool { return errors.Is(err, stopped) },
		},
		{
			"its work is done", func(_ context.Context, _ context.CancelCauseFunc, end context.CancelFunc) { end() },
			context.Canceled, func(err error) bool { return errors.Is(err, context.Canceled) },
		},
		{"its work is done before its time passes", func(_ context.Context, _ context.CancelCauseFunc, end context.CancelFunc) {
			end()
			time.Sleep(2 * time.Second)
		}, context.Canceled, func(err error) bool { return errors.Is(err, context.Canceled) }},
	}
	for _, asked := range []bool{false, true} {
		for _, c := range cases {
			name := c.name
			if asked {
				name += ", and somebody waits for it"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					parent, stop := context.WithCancelCause(t.Context())
					defer stop(nil)
					ctx, end := within(parent, time.Second, "a look")
					defer end()
					if asked {
						child, cancel := context.WithCancel(ctx)
						defer cancel()
						defer func() {
							synctest.Wait()
							if child.Err() != nil != (c.err != nil) {
								t.Errorf("a context below it: %v", child.Err())
							}
						}()
					}
					c.do(ctx, stop, end)
					synctest.Wait()
					if err := ctx.Err(); !errors.Is(err, c.err) {
						t.Errorf("Err: %v, want %v", err, c.err)
					}
					if err := context.Cause(ctx); !c.cause(err) {
						t.Errorf("Cause: %v", err)
					}
					if c.err != nil {
						<-ctx.Done()
					}
					if d, ok := ctx.Deadline(); !ok || time.Until(d) > time.Second {
						t.Errorf("Deadline: %v, %v", d, ok)
					}
				})
			})
		}
	}
}
