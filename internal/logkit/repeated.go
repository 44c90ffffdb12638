package logkit

import (
	"context"
	"time"
)

// Reminder is how long a cause that lasts is not named again.
const Reminder = time.Minute

// Repeated is the warning of something that is tried until it succeeds: whoever reads the log at night wants each cause
// once, and to be reminded of one that stays. The zero value has said nothing yet. It has one user at a time.
type Repeated struct {
	cause string
	at    time.Time
}

// Warn logs msg with its cause: as a warning where the cause is another one than before, or was last named a [Reminder]
// ago, else at debug.
func (r *Repeated) Warn(ctx context.Context, msg string, cause error, fields ...Field) {
	log, now := From(ctx), time.Now()
	fields = append(fields, Err(cause))
	if cause.Error() == r.cause && now.Sub(r.at) < Reminder {
		log.Debug(msg, fields...)
		return
	}
	r.cause, r.at = cause.Error(), now
	log.Warn(msg, fields...)
}
