package green

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// Retry says how often and how patiently RetryCall tries. Its state is per
// call, so one Retry may be shared. The zero Retry tries once.
type Retry struct {
	// Max is the number of tries after the first; below 0 there is no limit.
	Max int
	// First is the sleep before the first retry. The n-th sleep is n times
	// First (oslo.service's RetryDecorator).
	First time.Duration
	// Limit caps each sleep; 0 is no cap. oslo.service has 60 s.
	Limit time.Duration
	// Jitter shortens each sleep by a random part of up to this fraction,
	// 0 to 1, so that many callers don't come back together.
	Jitter float64
	// Retryable tells which errors are worth another try; nil is all.
	Retryable func(error) bool
	// OnRetry is told before each sleep: the number of the retry to come,
	// from 1, the error of the try before it, and the sleep. May be nil.
	OnRetry func(try int, err error, sleep time.Duration)
}

// RetryCall calls fn, in the caller's goroutine, until it succeeds, gives an
// error that is not retryable, or r.Max retries are used up: then the last
// error is the result. When ctx ends it stops, after at least one try, with
// ErrWaitGivenUp, the cause of ctx and the last error. A panic passes through.
func RetryCall[T any](ctx context.Context, r Retry, fn func(context.Context) (T, error)) (T, error) {
	for try := 1; ; try++ {
		v, err := fn(ctx)
		if err == nil || !r.again(try, err) {
			return v, err
		}
		if ctx.Err() != nil {
			return v, stopped(ctx, err)
		}
		sleep := r.sleep(try)
		if r.OnRetry != nil {
			r.OnRetry(try, err, sleep)
		}
		if Sleep(ctx, sleep) != nil {
			return v, stopped(ctx, err)
		}
	}
}

func (r *Retry) again(try int, err error) bool {
	if r.Max >= 0 && try > r.Max {
		return false
	}
	return r.Retryable == nil || r.Retryable(err)
}

// sleep is the pause before retry number try.
func (r *Retry) sleep(try int) time.Duration {
	d := r.First * time.Duration(try)
	if r.First > 0 && d/r.First != time.Duration(try) { // overflow
		d = 1<<63 - 1
	}
	if r.Limit > 0 {
		d = min(d, r.Limit)
	}
	if r.Jitter > 0 {
		d -= time.Duration(float64(d) * min(r.Jitter, 1) * rand.Float64()) //nolint:gosec // spreads callers, guards nothing
	}
	return max(d, 0)
}

func stopped(ctx context.Context, last error) error {
	return fmt.Errorf("%w; the last try failed: %w", givenUp(ctx), last)
}
