package green_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/green"
)

// failTimes fails n times and then gives 7.
func failTimes(n int, err error, calls *int) func(context.Context) (int, error) {
	return func(context.Context) (int, error) {
		if *calls++; *calls <= n {
			return 0, err
		}
		return 7, nil
	}
}

func TestRetry(t *testing.T) { conform(t, retryCases) }

var retryCases = []conformCase{
	{"loopingcall RetryDecorator.test_retry_with_expected_exceptions", func(t *testing.T, ctx context.Context) {
		var sleeps []time.Duration
		var tries []int
		calls := 0
		r := green.Retry{Max: 5, First: 10 * ms, Retryable: func(err error) bool { return errors.Is(err, errBoom) }}
		r.OnRetry = func(try int, err error, sleep time.Duration) {
			wantErr(t, "OnRetry", err, errBoom)
			tries, sleeps = append(tries, try), append(sleeps, sleep)
		}
		begun := time.Now()
		v, err := green.RetryCall(ctx, r, failTimes(2, errBoom, &calls))
		want(t, "value", v, 7)
		wantErr(t, "error", err, nil)
		if diff := cmp.Diff([]time.Duration{10 * ms, 20 * ms}, sleeps) + cmp.Diff([]int{1, 2}, tries); diff != "" {
			t.Errorf("sleeps, tries (-want +got):\n%s", diff)
		}
		want(t, "slept", time.Since(begun), 30*ms)
	}},
	{"loopingcall RetryDecorator.test_retry_with_max_retries", func(t *testing.T, ctx context.Context) {
		calls := 0
		_, err := green.RetryCall(ctx, green.Retry{Max: 2, First: ms}, failTimes(3, errBoom, &calls))
		want(t, "error", err, errBoom)
		want(t, "calls", calls, 3)
	}},
	{"loopingcall RetryDecorator.test_retry_with_unexpected_exception", func(t *testing.T, ctx context.Context) {
		calls := 0
		_, err := green.RetryCall(ctx, green.Retry{Max: 9, Retryable: func(error) bool { return false }}, failTimes(3, errBoom, &calls))
		want(t, "error", err, errBoom)
		want(t, "calls", calls, 1)
	}},
	{"probe, the zero value calls once", func(t *testing.T, ctx context.Context) {
		calls := 0
		_, err := green.RetryCall(ctx, green.Retry{}, failTimes(3, errBoom, &calls))
		want(t, "error", err, errBoom)
		want(t, "calls", calls, 1)
	}},
	{"probe, sleeps grow up to the limit", func(t *testing.T, ctx context.Context) {
		var sleeps []time.Duration
		calls := 0
		_, err := green.RetryCall(ctx, green.Retry{
			Max: -1, First: 20 * ms, Limit: 50 * ms,
			OnRetry: func(_ int, _ error, sleep time.Duration) { sleeps = append(sleeps, sleep) },
		}, failTimes(4, errBoom, &calls))
		wantErr(t, "error", err, nil)
		if diff := cmp.Diff([]time.Duration{20 * ms, 40 * ms, 50 * ms, 50 * ms}, sleeps); diff != "" {
			t.Errorf("sleeps (-want +got):\n%s", diff)
		}
	}},
	{"probe, each call has its own budget", func(t *testing.T, ctx context.Context) {
		r := green.Retry{Max: 2, First: ms}
		for range 2 {
			calls := 0
			_, _ = green.RetryCall(ctx, r, failTimes(99, errBoom, &calls))
			want(t, "calls", calls, 3)
		}
	}},
	{"new, the context ends while it sleeps", func(t *testing.T, ctx context.Context) {
		calls := 0
		ctx, cancel := context.WithCancelCause(ctx)
		why := errors.New("why")
		time.AfterFunc(time.Second, func() { cancel(why) })
		begun := time.Now()
		_, err := green.RetryCall(ctx, green.Retry{Max: -1, First: time.Hour}, failTimes(99, errBoom, &calls))
		wantErr(t, "cause", err, why)
		wantErr(t, "last error", err, errBoom)
		wantErr(t, "mark", err, green.ErrWaitGivenUp)
		want(t, "calls", calls, 1)
		want(t, "took", time.Since(begun), time.Second)
	}},
	{"new, a context that has ended gets one try", func(t *testing.T, ctx context.Context) {
		calls := 0
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		_, err := green.RetryCall(ctx, green.Retry{Max: -1}, failTimes(99, errBoom, &calls))
		wantErr(t, "error", err, context.Canceled)
		want(t, "calls", calls, 1)
	}},
	{"new, no overflow", func(t *testing.T, ctx context.Context) {
		calls := 0
		begun := time.Now()
		_, err := green.RetryCall(ctx, green.Retry{Max: -1, First: time.Duration(1) << 60, Limit: time.Minute}, failTimes(200, errBoom, &calls))
		wantErr(t, "error", err, nil)
		want(t, "took", time.Since(begun), 200*time.Minute)
	}},
}

// A sleep is never above the plain one nor the limit, nor below the jittered.
func TestRetryJitterProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := green.Retry{
			Max:    rapid.IntRange(0, 20).Draw(rt, "max"),
			First:  time.Duration(rapid.Int64Range(0, 1000).Draw(rt, "first")),
			Limit:  time.Duration(rapid.Int64Range(0, 5000).Draw(rt, "limit")),
			Jitter: rapid.Float64Range(0, 1).Draw(rt, "jitter"),
		}
		retries := 0
		r.OnRetry = func(try int, _ error, sleep time.Duration) {
			retries++
			plain := r.First * time.Duration(try)
			if r.Limit > 0 {
				plain = min(plain, r.Limit)
			}
			least := time.Duration(float64(plain)*(1-r.Jitter)) - 1
			if try != retries || sleep > plain || sleep < least {
				rt.Errorf("retry %d (numbered %d) sleeps %v, want %v to %v", retries, try, sleep, least, plain)
			}
		}
		if _, err := green.RetryCall(t.Context(), r, failing(fmt.Errorf("so: %w", errBoom))); !errors.Is(err, errBoom) || retries != r.Max {
			rt.Errorf("%d retries, error %v, want %d retries and the last error", retries, err, r.Max)
		}
	})
}
