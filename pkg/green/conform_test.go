package green_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/compute-agent/compute-agent/pkg/green"
)

// The conformance tests restate the behaviour of eventlet, oslo.service,
// greenlet and neutron's router queue. Each carries the name of the test it
// comes from; "probe" is a behaviour that was observed and that no upstream
// test names, "new" one that Go adds. docs/green.md lists the cases that do
// not apply, with the reasons.
//
// All of them run in a synctest bubble: time is virtual, and a goroutine that
// is left behind, even asleep, fails the test.
type conformCase struct {
	source string
	run    func(t *testing.T, ctx context.Context)
}

func conform(t *testing.T, cases []conformCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.source, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				c.run(t, ctx)
			})
		})
	}
}

// reports collects what a logger is told.
type reports struct {
	mu   sync.Mutex
	errs []error
}

func listen(ctx context.Context) (context.Context, *reports) {
	r := &reports{}
	return green.WithLogger(ctx, func(_ context.Context, _ string, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.errs = append(r.errs, err)
	}), r
}

func (r *reports) all() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]error(nil), r.errs...)
}

// expect fails the test unless exactly one report came, which is want.
func (r *reports) expect(t *testing.T, want error) {
	t.Helper()
	if got := r.all(); len(got) != 1 || !errors.Is(got[0], want) {
		t.Errorf("reports = %v, want exactly %v", got, want)
	}
}

func (r *reports) expectNone(t *testing.T) {
	t.Helper()
	if got := r.all(); len(got) != 0 {
		t.Errorf("reports = %v, want none", got)
	}
}

var errBoom = errors.New("boom")

// journal is a list that several goroutines write.
type journal[T any] struct {
	mu    sync.Mutex
	items []T
}

func (j *journal[T]) add(v T) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.items = append(j.items, v)
}

func (j *journal[T]) list() []T {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]T(nil), j.items...)
}

func value[T any](v T) func(context.Context) (T, error) {
	return func(context.Context) (T, error) { return v, nil }
}

func failing(err error) func(context.Context) (int, error) {
	return func(context.Context) (int, error) { return 0, err }
}

func want[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: error %v, want %v", what, got, want)
	}
}

// outcome waits for a thread and compares.
func outcome[T comparable](t *testing.T, ctx context.Context, th *green.Thread[T], wantV T, wantE error) {
	t.Helper()
	v, err := th.Wait(ctx)
	wantErr(t, "Wait", err, wantE)
	if wantE == nil && v != wantV {
		t.Errorf("Wait = %v, want %v", v, wantV)
	}
}

func isDone(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
