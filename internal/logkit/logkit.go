package logkit

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/sirupsen/logrus"
)

// Options say where a Logger writes, what and how. The zero Options write at level info to standard error in the format
// that suits it.
type Options struct {
	Out    io.Writer // optional; default os.Stderr. One Write for each line, one at a time
	Level  string    // optional; debug, info (default), warning or error
	Format Format    // optional; default FormatAuto
}

// Logger writes lines with fields. Loggers made from one another by With share output and level. A Logger is safe for
// use by many goroutines; a nil Logger writes nothing.
type Logger struct {
	out    *logrus.Logger
	above  *Logger // whose fields it has too; nil: none
	fields []Field // never changed once the Logger is made
}

// New makes a Logger. It refuses a level or a format that it doesn't know.
func New(o Options) (*Logger, error) {
	level, err := parseLevel(o.Level)
	if err != nil {
		return nil, err
	}
	if o.Out == nil {
		o.Out = os.Stderr
	}
	format, err := newFormatter(o.Format, o.Out)
	if err != nil {
		return nil, err
	}
	out := logrus.New()
	out.SetOutput(o.Out)
	out.SetLevel(level)
	out.SetFormatter(format)
	return &Logger{out: out}, nil
}

// fallback serves a context without a Logger.
func fallback() *Logger {
	out := logrus.New()
	out.SetOutput(os.Stderr)
	out.SetLevel(logrus.WarnLevel)
	out.SetFormatter(lineFormatter{head: textHead})
	return &Logger{out: out}
}

// SetLevel changes the level of this Logger and of all that were made from it or that it was made from; a reload of the
// configuration calls it. It refuses a level that it doesn't know and then changes nothing.
func (l *Logger) SetLevel(name string) error {
	level, err := parseLevel(name)
	if err != nil || l == nil {
		return err
	}
	l.out.SetLevel(level)
	return nil
}

// With returns a Logger that adds fields to each line. A key that is already there gets the new value.
func (l *Logger) With(fields ...Field) *Logger {
	if l == nil || len(fields) == 0 {
		return l
	}
	return &Logger{out: l.out, above: l, fields: slices.Clone(fields)}
}

// Debug writes what only a developer wants.
func (l *Logger) Debug(msg string, fields ...Field) { l.write(logrus.DebugLevel, msg, fields) }

// Info writes a change of state.
func (l *Logger) Info(msg string, fields ...Field) { l.write(logrus.InfoLevel, msg, fields) }

// Warn writes what went wrong and will be tried again or was worked around.
func (l *Logger) Warn(msg string, fields ...Field) { l.write(logrus.WarnLevel, msg, fields) }

// Error writes what went wrong for good; give it the reason with Err.
func (l *Logger) Error(msg string, fields ...Field) { l.write(logrus.ErrorLevel, msg, fields) }

// DebugEnabled reports whether Debug writes anything, for the caller whose fields are dear to compute.
func (l *Logger) DebugEnabled() bool { return l != nil && l.out.IsLevelEnabled(logrus.DebugLevel) }

func (l *Logger) write(level logrus.Level, msg string, fields []Field) {
	if l == nil || !l.out.IsLevelEnabled(level) {
		return
	}
	data := make(logrus.Fields, len(l.fields)+len(fields))
	l.into(data)
	for _, f := range fields {
		data[string(f.key)] = f.value
	}
	if data[string(Error)] == nil {
		delete(data, string(Error))
	}
	entry := logrus.Entry{Logger: l.out, Data: data}
	entry.Log(level, msg)
}

// into adds the fields, the newest last.
func (l *Logger) into(data logrus.Fields) {
	if l.above != nil {
		l.above.into(data)
	}
	for _, f := range l.fields {
		data[string(f.key)] = f.value
	}
}

// contextKey is the key of the Logger in a context.
type contextKey struct{}

// Into returns a context that carries l.
func Into(ctx context.Context, l *Logger) context.Context {
	return context.WithValue(ctx, contextKey{}, l)
}

// From returns the context's Logger; never nil unless a nil one was put in. Without one it returns a Logger that writes
// warnings and errors to standard error.
func From(ctx context.Context) *Logger {
	if l, ok := ctx.Value(contextKey{}).(*Logger); ok {
		return l
	}
	return fallback()
}

// With returns a context whose Logger adds fields to each line.
func With(ctx context.Context, fields ...Field) context.Context {
	return Into(ctx, From(ctx).With(fields...))
}

// parseLevel reads the name of a level; the empty one is info.
func parseLevel(name string) (logrus.Level, error) {
	switch name {
	case "debug":
		return logrus.DebugLevel, nil
	case "", "info":
		return logrus.InfoLevel, nil
	case "warning", "warn":
		return logrus.WarnLevel, nil
	case "error":
		return logrus.ErrorLevel, nil
	default:
		return 0, fmt.Errorf("unknown log level %q: use debug, info, warning or error", name)
	}
}
