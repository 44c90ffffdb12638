package migration

import (
	"regexp"
	"slices"
)

// ownWords are those with which a host speaks of itself.
var ownWords = regexp.MustCompile(`\b(here|this host)\b`)

// bySpeaker joins what the two hosts have against the migration, each reason once. What
// both say, and what is said of "here", means nothing beside the other host's reasons: it
// begins with the name of the host that says it.
func (r Record) bySpeaker(ours, theirs []string) []string {
	name := func(host string, said, other []string) []string {
		named := slices.Clone(said)
		for i, reason := range named {
			if slices.Contains(other, reason) || ownWords.MatchString(reason) {
				named[i] = "on " + host + ": " + reason
			}
		}
		return named
	}
	all := merge(nil, name(r.Migration.Source, ours, theirs))
	return merge(all, name(r.Migration.Dest, theirs, ours))
}
