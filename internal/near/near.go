// Package near finds names that somebody may have meant: for hints beside
// "there is no such host", "no such option", "no such method".
package near

import (
	"slices"
	"strings"
)

// most is how many names a hint gives; more is not a hint but a list.
const most = 3

// Names gives those of have that are close to want, the closest first, at most
// three. Close is: equal but for case, the one begins with the other, or few
// letters apart (added, lost, changed, or two neighbours swapped), and not much
// farther than the closest.
func Names(want string, have []string) []string {
	type candidate struct {
		name  string
		score int
	}
	var found []candidate
	limit := min(3, max(1, len(want)/3))
	for _, name := range have {
		score := distance(strings.ToLower(want), strings.ToLower(name))
		if score <= limit || begins(want, name) {
			found = append(found, candidate{name, score})
		}
	}
	slices.SortFunc(found, func(a, b candidate) int {
		if a.score != b.score {
			return a.score - b.score
		}
		return strings.Compare(a.name, b.name)
	})
	names := make([]string, 0, most)
	for _, c := range found {
		if c.score <= found[0].score+1 && len(names) < most && !slices.Contains(names, c.name) {
			names = append(names, c.name)
		}
	}
	return names
}

// Hint is "did you mean a, b or c?" with the close names, empty without one.
func Hint(want string, have []string) string {
	names := Names(want, have)
	switch len(names) {
	case 0:
		return ""
	case 1:
		return "did you mean " + names[0] + "?"
	default:
		last := len(names) - 1
		return "did you mean " + strings.Join(names[:last], ", ") + " or " + names[last] + "?"
	}
}

// begins reports whether one name is a beginning of the other that says something.
func begins(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	return min(len(a), len(b)) >= 2 && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a))
}

// distance is the optimal string alignment distance of two names, in bytes.
func distance(a, b string) int {
	before, last := []int(nil), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			changed := last[j-1]
			if a[i-1] != b[j-1] {
				changed++
			}
			row[j] = min(last[j]+1, row[j-1]+1, changed)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
