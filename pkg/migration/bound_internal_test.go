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

// A bound is taken again as long as nobody has asked for its Done, and each time it has its
// whole limit.
func TestBoundAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := newBound(t.Context(), time.Second, "a look")
		b := first
		for range 3 {
			time.Sleep(700 * time.Millisecond)
			if b.Err() != nil {
				t.Errorf("within its limit: %v", b.Err())
			}
			b.end()
			if b = b.again(); b != first || b.Err() != nil {
				t.Errorf("taken again it is another one: %v, %v", b != first, b.Err())
			}
		}
		time.Sleep(2 * time.Second)
		if err := b.Err(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("its time has passed: %v", err)
		}
		b.end()
		after := b.again()
		if after == b || after.Err() != nil || b.Err() == nil {
			t.Errorf("after one that was asked for: the same: %v; %v, %v", after == b, after.Err(), b.Err())
		}
		<-after.Done()
		if err := context.Cause(after); fault.KindOf(err) != fault.Timeout {
			t.Errorf("its time has passed too: %v", err)
		}
	})
}
