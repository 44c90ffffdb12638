package green_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/green"
)

func TestEvent(t *testing.T) { conform(t, eventCases) }

var eventCases = []conformCase{
	{"event_test.test_waiting_for_event", func(t *testing.T, ctx context.Context) {
		var e green.Event[string]
		green.SpawnN(ctx, func(context.Context) error { return e.Send("v") })
		v, err := e.Wait(ctx)
		want(t, "Wait", v, "v")
		wantErr(t, "Wait", err, nil)
	}},
	{"event_test.test_multiple_waiters", func(t *testing.T, ctx context.Context) {
		var e green.Event[int]
		var waiters []*green.Thread[int]
		for range 5 {
			waiters = append(waiters, green.Spawn(ctx, e.Wait))
		}
		synctest.Wait()
		wantErr(t, "Send", e.Send(4), nil)
		for _, w := range waiters {
			outcome(t, ctx, w, 4, nil)
		}
	}},
	{"event_test.test_reset", func(t *testing.T, ctx context.Context) {
		var e green.Event[int]
		wantErr(t, "Reset of a fresh one", e.Reset(), green.ErrNotSent)
		wantErr(t, "Send", e.Send(1), nil)
		wantErr(t, "second Send", e.Send(2), green.ErrAlreadySent)
		v, _ := e.Wait(ctx)
		want(t, "Wait", v, 1)
		wantErr(t, "Reset", e.Reset(), nil)
		wantErr(t, "second Reset", e.Reset(), green.ErrNotSent)
		wantErr(t, "Send", e.Send(3), nil)
		v, _ = e.Wait(ctx)
		want(t, "Wait", v, 3)
	}},
	{"event_test.test_double_exception", func(t *testing.T, ctx context.Context) {
		var e green.Event[int]
		wantErr(t, "SendError", e.SendError(errBoom), nil)
		_, err := e.Wait(ctx)
		want(t, "Wait", err, errBoom)
		wantErr(t, "Reset", e.Reset(), nil)
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		_, err = e.Wait(short)
		wantErr(t, "Wait", err, context.DeadlineExceeded)
		wantErr(t, "Wait", err, green.ErrWaitGivenUp)
	}},
	{"event_test.test_wait_timeout_ok", func(t *testing.T, ctx context.Context) {
		var e green.Event[int]
		begun := time.Now()
		green.SpawnAfter(ctx, 100*time.Millisecond, func(context.Context) (int, error) { return 0, e.Send(1) })
		limit, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		v, err := e.Wait(limit)
		want(t, "Wait", v, 1)
		wantErr(t, "Wait", err, nil)
		want(t, "took", time.Since(begun), 100*time.Millisecond)
	}},
	{"test__event.test_send_exc", func(t *testing.T, ctx context.Context) {
		var e green.Event[int]
		w := green.Spawn(ctx, e.Wait)
		synctest.Wait()
		wantErr(t, "SendError", e.SendError(errBoom), nil)
		_, err := w.Wait(ctx)
		want(t, "waiter's error", err, errBoom)
	}},
	{"probe, sent is sent: Ready, Done, Wait at once and again", func(t *testing.T, ctx context.Context) {
		var e green.Event[int]
		want(t, "Ready", e.Ready(), false)
		done := e.Done()
		want(t, "Done", isDone(done), false)
		wantErr(t, "Send of the zero value", e.Send(0), nil)
		want(t, "Ready", e.Ready(), true)
		want(t, "Done", isDone(done), true)
		for range 3 {
			v, err := e.Wait(ctx)
			want(t, "Wait", v, 0)
			wantErr(t, "Wait", err, nil)
		}
	}},
	{"probe, after an exception nothing can be sent", func(t *testing.T, ctx context.Context) {
		var e green.Event[int]
		wantErr(t, "SendError", e.SendError(errBoom), nil)
		wantErr(t, "Send", e.Send(1), green.ErrAlreadySent)
		wantErr(t, "SendError", e.SendError(green.ErrExit), green.ErrAlreadySent)
		_, err := e.Wait(ctx)
		want(t, "Wait", err, errBoom)
	}},
	{"probe, an exception must be one", func(t *testing.T, _ context.Context) {
		var e green.Event[int]
		wantErr(t, "SendError(nil)", e.SendError(nil), green.ErrNilError)
		want(t, "Ready", e.Ready(), false)
	}},
	{"probe, reset and sent again before the waiters ran", func(t *testing.T, ctx context.Context) {
		var e green.Event[int]
		w := green.Spawn(ctx, e.Wait)
		synctest.Wait()
		wantErr(t, "Send", e.Send(1), nil)
		wantErr(t, "Reset", e.Reset(), nil)
		wantErr(t, "Send", e.Send(2), nil)
		outcome(t, ctx, w, 1, nil)
	}},
	{"probe, one of two waiters is killed", func(t *testing.T, ctx context.Context) {
		var e green.Event[int]
		a, b := green.Spawn(ctx, e.Wait), green.Spawn(ctx, e.Wait)
		synctest.Wait()
		a.Kill(errBoom)
		outcome(t, ctx, a, 0, errBoom)
		wantErr(t, "Send", e.Send(6), nil)
		outcome(t, ctx, b, 6, nil)
	}},
	{"new, the value wins over a context that has ended", func(t *testing.T, ctx context.Context) {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		for range 100 {
			var e green.Event[int]
			wantErr(t, "Send", e.Send(1), nil)
			v, err := e.Wait(ended)
			want(t, "Wait", v, 1)
			wantErr(t, "Wait", err, nil)
		}
	}},
}

// Each waiter is woken once, by the send of its own generation; of many
// senders one succeeds.
func TestEventProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rounds := rapid.SliceOfN(rapid.IntRange(0, 20), 1, 5).Draw(rt, "waiters of each round")
		senders := rapid.IntRange(1, 5).Draw(rt, "senders")
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			var e green.Event[int]
			for round, waiters := range rounds {
				var woken, sent atomic.Int32
				var threads []*green.Thread[int]
				for range waiters {
					threads = append(threads, green.Spawn(ctx, func(ctx context.Context) (int, error) {
						defer woken.Add(1)
						return e.Wait(ctx)
					}))
				}
				synctest.Wait() // all wait for this generation
				for range senders {
					green.SpawnN(ctx, func(context.Context) error {
						if e.Send(round) == nil {
							sent.Add(1)
						}
						return nil
					})
				}
				synctest.Wait()
				for _, th := range threads {
					outcome(t, ctx, th, round, nil)
				}
				want(t, "woken", woken.Load(), int32(waiters))
				want(t, "sends that succeeded", sent.Load(), 1)
				wantErr(t, "Reset", e.Reset(), nil)
			}
		})
	})
}
