// Package archtest holds the rules of the house and checks the whole tree against them. It has no code of its own:
// everything is in its tests, and `go test ./internal/archtest` takes well under two seconds.
//
// The rules, each with its reason in rules_test.go:
//
//   - floors: every package stands on a floor of the table and imports only from strictly lower floors. Siblings are
//     strangers. A package that isn't in the table is a violation, so that nobody builds a room by accident.
//   - drivers: a driver package is named in two places only, which hand it to the composition root.
//   - doors: each wide library has one door; its types stay behind it.
//   - go: only pkg/green starts goroutines, so each has an owner, a name in the log and an end.
//   - init: no func init; what happens at start is seen in main.
//   - comments: every package says in one sentence what it is for, "Package x …" or "Command x …".
//   - sleep: no time.Sleep; tests use testing/synctest, code uses green.Sleep with its context.
//   - size: a function fits a screen, a file can be read at one sitting.
//
// Tests are free of the floors and the doors: they may look at the world from outside. A package whose name ends in "test"
// (a contract suite, a recorder) keeps both, and may start goroutines and be as long as a test. What stands below test/ is outside
// of both for the same reason, and nothing of the house may import it.
//
// To add a room: give it a floor in table_test.go. To open a door: widen its row there. To break a rule once: add the
// file to the exemptions with a reason; an exemption that no longer exempts anything is a violation.
package archtest
