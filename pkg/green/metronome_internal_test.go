package green

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestReinforcements(t *testing.T) {
	for _, c := range []struct {
		name                           string
		workers, fresh, turns, waiting int
		want                           int
	}{
		{name: "the only one blocks", workers: 1, waiting: 9, want: 1},
		{name: "all block: twice as many", workers: 8, waiting: 100, want: 8},
		{name: "most block", workers: 8, turns: 7, waiting: 100, want: 8},
		{name: "no more than wait", workers: 8, waiting: 3, want: 3},
		{name: "those who were called have not begun", workers: 8, fresh: 1, waiting: 100},
		{name: "short runs, too many for one", workers: 1, turns: 20, waiting: 100, want: 1},
		{name: "too many for some", workers: manyWorkers - 1, turns: manyWorkers, waiting: 100, want: 1},
		{name: "too many for the processor", workers: manyWorkers, turns: manyWorkers, waiting: 100},
		{name: "many, and they block", workers: 5 * manyWorkers, turns: manyWorkers, waiting: 10000, want: 5 * manyWorkers},
	} {
		if got := reinforcements(c.workers, c.fresh, c.turns, c.waiting); got != c.want {
			t.Errorf("%s: %d more, want %d", c.name, got, c.want)
		}
	}
}

// holder is a run that does nothing.
type holder struct{ seat }

func (h *holder) place() *seat                    { return &h.seat }
func (*holder) turn() (next time.Time, goes bool) { return time.Time{}, false }

// The line gives what was put into it by time, without the places that count no more.
func TestLine(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 3))
		var l line
		var want, got []time.Duration
		all := make([]*holder, random.IntN(40))
		for i := range all {
			all[i] = &holder{}
			for range 1 + random.IntN(3) { // the last place counts
				all[i].due = time.Duration(random.IntN(1000)*len(all) + i)
				l.push(appointment{all[i].due, all[i]})
			}
		}
		for _, h := range all {
			if random.IntN(5) == 0 {
				h.due = away
			} else {
				want = append(want, h.due)
			}
		}
		for {
			a, ok := l.first()
			if !ok {
				break
			}
			got = append(got, a.at)
			a.who.place().due = away
			l.pop()
		}
		slices.Sort(want)
		if !slices.Equal(want, got) {
			t.Fatalf("seed %d: %v, want %v", seed, got, want)
		}
		if len(l) != 0 {
			t.Fatalf("seed %d: %d places are left", seed, len(l))
		}
	}
}

// However often loops are woken, the line stays as long as there are loops.
func TestLineStaysShort(t *testing.T) {
	m := NewMetronome()
	m.workers, m.waits, m.until = 1, true, away // who never comes
	all := make([]*holder, 100)
	for i := range all {
		all[i] = &holder{}
		m.join(all[i], time.Now().Add(time.Hour))
	}
	const most = 2*100 + sparePlaces
	for range 1000 {
		for _, h := range all {
			h.due = time.Hour // it ran, and has taken its seat again
			m.hurry(h)
			m.hurry(h) // it is due already
		}
		if len(m.line) > most {
			t.Fatalf("%d places for %d loops", len(m.line), len(all))
		}
	}
	m.line.sweep()
	last := time.Duration(0)
	for n := range all {
		a, ok := m.line.first()
		if !ok || a.at < last {
			t.Fatalf("place %d: %v after %v, %t", n, a.at, last, ok)
		}
		last = a.at
		m.line.pop()
	}
}
