package migration

import "strings"

// bySpeaker joins what the two hosts have against the migration, each reason once. Beside
// the other host's reasons one means little without the name of the host that says it: it
// begins with that, where it does not already.
func (r Record) bySpeaker(ours, theirs []string) []string {
	name := func(host string, said []string) []string {
		named := make([]string, len(said))
		for i, reason := range said {
			if named[i] = reason; !strings.HasPrefix(reason, host+": ") {
				named[i] = "on " + host + ": " + reason
			}
		}
		return named
	}
	all := merge(nil, name(r.Migration.Source, ours))
	return merge(all, name(r.Migration.Dest, theirs))
}
