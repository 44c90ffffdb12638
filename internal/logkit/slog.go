package logkit

import (
	"context"
	"log/slog"
	"slices"

	"github.com/sirupsen/logrus"
)

// Slog returns a slog.Logger that writes through l, for libraries that speak slog and for slog.SetDefault in main: what
// they say then has the agent's format, level and fields. A record whose context carries a Logger goes to that one.
// Groups become dots ("tls.version").
func (l *Logger) Slog() *slog.Logger { return slog.New(slogHandler{log: l}) }

// slogHandler implements slog.Handler. Its values are never changed once made.
type slogHandler struct {
	log    *Logger
	group  string  // the open groups, each with its dot
	fields []Field // of WithAttrs
}

// Enabled implements slog.Handler.
func (h slogHandler) Enabled(ctx context.Context, level slog.Level) bool {
	l := h.target(ctx)
	return l != nil && l.out.IsLevelEnabled(fromSlog(level))
}

// Handle implements slog.Handler.
func (h slogHandler) Handle(ctx context.Context, r slog.Record) error {
	fields := slices.Clone(h.fields)
	r.Attrs(func(a slog.Attr) bool {
		fields = appendAttr(fields, h.group, a)
		return true
	})
	h.target(ctx).write(fromSlog(r.Level), r.Message, fields)
	return nil
}

// WithAttrs implements slog.Handler.
func (h slogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.fields = slices.Clone(h.fields)
	for _, a := range attrs {
		h.fields = appendAttr(h.fields, h.group, a)
	}
	return h
}

// WithGroup implements slog.Handler.
func (h slogHandler) WithGroup(name string) slog.Handler {
	if name != "" {
		h.group += name + "."
	}
	return h
}

// target is the context's Logger, else the handler's own.
func (h slogHandler) target(ctx context.Context) *Logger {
	if l, ok := ctx.Value(contextKey{}).(*Logger); ok {
		return l
	}
	return h.log
}

// appendAttr adds an attribute, a group member by member. Empty ones are left out, as slog asks of handlers.
func appendAttr(fields []Field, prefix string, a slog.Attr) []Field {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindGroup {
		if a.Key == "" {
			return fields
		}
		return append(fields, Key(prefix+a.Key).Of(v.Any()))
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, member := range v.Group() {
		fields = appendAttr(fields, prefix, member)
	}
	return fields
}

// fromSlog maps slog's open scale of levels onto ours.
func fromSlog(level slog.Level) logrus.Level {
	switch {
	case level >= slog.LevelError:
		return logrus.ErrorLevel
	case level >= slog.LevelWarn:
		return logrus.WarnLevel
	case level >= slog.LevelInfo:
		return logrus.InfoLevel
	default:
		return logrus.DebugLevel
	}
}
