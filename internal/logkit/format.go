package logkit

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/term"
)

// Format is how a line looks.
type Format string

// The formats; the package comment shows a line of each.
const (
	FormatAuto     Format = "auto"     // journald, text or JSON, by what the output is
	FormatText     Format = "text"     // for a person
	FormatJSON     Format = "json"     // for a program, one object for each line
	FormatJournald Format = "journald" // for the journal: <priority> in front, no time
)

// newFormatter returns the formatter for lines written to out.
func newFormatter(f Format, out io.Writer) (logrus.Formatter, error) {
	if f == FormatAuto || f == "" {
		f = detect(out, os.Getenv("JOURNAL_STREAM"))
	}
	switch f { //nolint:exhaustive // detect never returns FormatAuto.
	case FormatText:
		return lineFormatter{head: textHead}, nil
	case FormatJournald:
		return lineFormatter{head: journaldHead}, nil
	case FormatJSON:
		return jsonFormatter{inner: logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano, DisableHTMLEscape: true}}, nil
	default:
		return nil, fmt.Errorf("unknown log format %q: use auto, text, json or journald", f)
	}
}

// detect chooses by what out is. JOURNAL_STREAM holds "device:inode" of the stream that the manager connected; a child
// whose output goes elsewhere inherits the variable, so both numbers are compared (systemd.exec(5)).
func detect(out io.Writer, journalStream string) Format {
	file, ok := out.(*os.File)
	if !ok {
		return FormatJSON
	}
	if journalStream != "" && journalStream == streamID(file) {
		return FormatJournald
	}
	if term.IsTerminal(int(file.Fd())) {
		return FormatText
	}
	return FormatJSON
}

// streamID returns "device:inode" of the file, or nothing where that can't be told.
func streamID(file *os.File) string {
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// lineFormatter writes "head message key=value…" on one line, whatever the message holds.
type lineFormatter struct {
	head func(e *logrus.Entry) string
}

// textHead begins a line for people.
func textHead(e *logrus.Entry) string {
	return fmt.Sprintf("%s %-5s ", e.Time.Format("15:04:05.000"), strings.ToUpper(levelName(e.Level)))
}

// journaldHead begins a line for the journal with the syslog priority (sd-daemon(3)).
func journaldHead(e *logrus.Entry) string {
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		return "<3>"
	case logrus.WarnLevel:
		return "<4>"
	case logrus.InfoLevel:
		return "<6>"
	case logrus.DebugLevel, logrus.TraceLevel:
		return "<7>"
	}
	return "<6>"
}

// Format implements logrus.Formatter.
func (f lineFormatter) Format(e *logrus.Entry) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(f.head(e))
	b.WriteString(oneLine(e.Message))
	for _, key := range sortedKeys(e.Data) {
		fmt.Fprintf(&b, " %s=%s", key, quoted(text(e.Data[key])))
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// sortedKeys returns the fields' names in the order of the line: ours first, then the others by name, the error last.
func sortedKeys(data logrus.Fields) []string {
	rank := func(key string) int {
		if key == string(Error) {
			return len(keyOrder) + 1
		}
		if i := slices.Index(keyOrder[:], Key(key)); i >= 0 {
			return i
		}
		return len(keyOrder)
	}
	return slices.SortedFunc(maps.Keys(data), func(a, b string) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
}

// text returns a value as people read it.
func text(v any) string {
	if d, ok := v.(time.Duration); ok {
		return shortDuration(d).String()
	}
	return fmt.Sprint(v)
}

// shortDuration drops the digits that nobody reads: three are left, and all hundredths of a second.
func shortDuration(d time.Duration) time.Duration {
	const digits, coarsest = 1000, 10 * time.Millisecond
	unit := time.Nanosecond
	for unit < coarsest && d.Abs() >= digits*unit {
		unit *= 10
	}
	return d.Round(unit)
}

// oneLine keeps a message on its line: the journal would take each line for a message of its own.
func oneLine(s string) string {
	if strings.ContainsFunc(s, isControl) {
		return strconv.Quote(s)
	}
	return s
}

// quoted puts quotes where a value would not be told from the next field.
func quoted(s string) string {
	if s == "" || strings.ContainsAny(s, " =\"") || strings.ContainsFunc(s, isControl) {
		return strconv.Quote(s)
	}
	return s
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// levelName returns the level as users write it.
func levelName(l logrus.Level) string {
	if l == logrus.WarnLevel {
		return "warn"
	}
	return l.String()
}

// jsonFormatter is logrus's, with durations in seconds.
type jsonFormatter struct {
	inner logrus.JSONFormatter
}

// Format implements logrus.Formatter. A line whose values can't be encoded is written with those values as text rather
// than lost. The entry is the Logger's own, made for this one line, so its data may be changed.
func (f jsonFormatter) Format(e *logrus.Entry) ([]byte, error) {
	for key, v := range e.Data {
		if d, ok := v.(time.Duration); ok {
			e.Data[key] = d.Seconds()
		}
	}
	line, err := f.inner.Format(e)
	if err == nil {
		return line, nil
	}
	for key, v := range e.Data {
		e.Data[key] = fmt.Sprint(v)
	}
	return f.inner.Format(e)
}
