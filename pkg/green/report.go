package green

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
)

// Logger takes what nobody else would see: captured panics, errors of
// functions without a handle, failed beats, overruns (ErrLoopOverrun). The
// stack of a panic is in the *PanicError. It is called on the goroutine
// concerned, with no lock held, and must not panic.
type Logger func(ctx context.Context, msg string, err error)

type loggerKey struct{}

// WithLogger makes log the place where everything that is started with the
// returned context reports. Without one, slog's default logger is used.
func WithLogger(ctx context.Context, log Logger) context.Context {
	return context.WithValue(ctx, loggerKey{}, log)
}

// report hands err to the logger of ctx.
func report(ctx context.Context, msg string, err error) {
	if log, ok := ctx.Value(loggerKey{}).(Logger); ok && log != nil {
		log(ctx, msg, err)
		return
	}
	slogReport(ctx, msg, err)
}

func slogReport(ctx context.Context, msg string, err error) {
	level := slog.LevelError
	if errors.Is(err, ErrLoopOverrun) {
		level = slog.LevelWarn
	}
	slog.Default().Log(ctx, level, msg, logFields(err)...)
}

func logFields(err error) []any {
	fields := []any{slog.Any("error", err)}
	if p, ok := errors.AsType[*PanicError](err); ok {
		fields = append(fields, slog.String("stack", string(p.Stack)))
	}
	return fields
}

// reportUnseen reports an error that no handle carries, unless it is a quiet
// end: nil, ErrExit, or the end of the function's own context.
func reportUnseen(ctx context.Context, msg string, err error) {
	if err == nil || errors.Is(err, ErrExit) || endedBy(ctx, err) {
		return
	}
	report(ctx, msg, err)
}

// abnormal turns what recover gave, in a deferred function of something that
// did not return, into an error, and reports a panic at once. Since Go 1.21
// recover gives nil only when there was no panic: then it was Goexit.
func abnormal(ctx context.Context, recovered any) error {
	if recovered == nil {
		return ErrGoexit
	}
	err := newPanicError(recovered)
	report(ctx, "captured a panic", err)
	return err
}

// newPanicError is to be called in the deferred function that recovered.
func newPanicError(recovered any) *PanicError {
	return &PanicError{Value: recovered, Stack: debug.Stack()}
}

// guarded runs fn behind a barrier; a panic is reported and returned. Goexit
// goes through it.
func guarded(ctx context.Context, fn func(context.Context) error) (err error) {
	returned := false
	defer func() {
		if !returned {
			if r := recover(); r != nil {
				err = abnormal(ctx, r)
			}
		}
	}()
	err = fn(ctx)
	returned = true
	return err
}
