package migration

// Verdict is how a migration ended, by the facts of both hosts.
type Verdict string

// The verdicts. Unknown is a lawful answer: nothing is destroyed, nothing goes on
// by itself, people decide.
const (
	VerdictNone      Verdict = "" // not decided yet
	VerdictCompleted Verdict = "completed"
	VerdictFailed    Verdict = "failed"
	VerdictCancelled Verdict = "cancelled"
	VerdictUnknown   Verdict = "unknown"
)
