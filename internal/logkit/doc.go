// Package logkit is the agent's logging, and the only door to logrus: nobody else imports that library or sees its
// types.
//
// A Logger travels in the context and collects fields on its way down, so that a line says which request, instance and
// phase it belongs to without anybody passing that around:
//
//	log, err := logkit.New(logkit.Options{Level: "info"})
//	ctx = logkit.Into(ctx, log)
//	ctx = logkit.With(ctx, logkit.Instance.Of(id), logkit.Task.Of("rebooting"))
//	logkit.From(ctx).Info("guest is up again", logkit.Took.Of(time.Since(start)))
//
// There is no global logger. A context without one gets a Logger that writes warnings and errors to standard error, so
// that a captured panic is never swallowed because somebody forgot Into.
//
// # Fields
//
// Each name has one spelling, which is a [Key] constant; a log line in another spelling can't be found again. A time
// taken is written in seconds in JSON ("took":0.231) and as Go writes it elsewhere (took=231ms).
//
// # How much to log
//
// One line for each change of state, one for each failed request (at the top of its lane, not at each floor that the
// error passes), nothing else at info. Debug is for what only a developer wants.
//
// # Formats
//
//	text      15:04:05.000 INFO  guest is up again instance=… took=231ms        a person at a terminal
//	json      {"time":"…","level":"info","msg":"guest is up again",…}           a collector
//	journald  <6>guest is up again instance=… took=231ms                        the journal adds time and unit itself
//
// [FormatAuto] takes journald when the output is the stream that JOURNAL_STREAM names (systemd.exec(5)), text on a
// terminal, JSON otherwise.
//
// # Libraries
//
// [Logger.Slog] is the way in for what speaks log/slog, pkg/green's last resort included.
//
// # Tests
//
// The logtest package has a Logger that writes to the test's own log and a recorder that remembers what was said.
package logkit
