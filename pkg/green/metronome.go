package green

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	relieveAfter = 2 * time.Millisecond // how long a run may hold up others before more workers come
	manyWorkers  = 16                   // more of them come only when runs block for longer than that
	sparePlaces  = 64                   // in the line, for those that count no more
	never        = 24 * time.Hour       // what a timer is set to that is stopped at once
)

/*
A Metronome carries out the runs of many looping calls (see [PacedBy]) on as few
goroutines as can keep up: one while the runs are short, more while some of them
block. A loop of its own goroutine costs a stack that has gone cold and a switch at
each beat, which is more than most beats do. Nothing has to be closed: its goroutines,
the workers, end when no loop is left.

	                ┌──────────(its time has come)─────────┐
	                ▼                                      │
	begun ──▶ takes the first ──(it is too early)──▶ waits for it: one worker at most
	            │        ▲
	            ▼        │
	         carries out the run ──▶ hands it back with the time of the next

	takes the first ──(there is none, or another waits for it)──▶ ends

While somebody carries out a run and nobody waits, a look each relieveAfter finds what
is held up, and has more workers come (see reinforcements), until the line is short again.

It is made by [NewMetronome] and may be used by any number of goroutines.
*/
type Metronome struct {
	begun time.Time // what its times count from

	mu      sync.Mutex // guards what follows and every seat
	line    line
	loops   int // that have joined and not ended
	workers int
	fresh   int           // those of them who have not begun yet
	turns   int           // runs that have returned since the last look
	waits   bool          // a worker waits for the first of the line
	until   time.Duration // and for so long
	timer   *time.Timer   // of the one that waits
	relief  *time.Timer   // the next look
	looks   bool          // it is set
}

// NewMetronome makes a metronome that has no loops yet.
func NewMetronome() *Metronome {
	m := &Metronome{begun: time.Now(), timer: time.NewTimer(never)}
	m.timer.Stop()
	m.relief = time.AfterFunc(never, m.relieve) // a short time could be over before it is stopped
	m.relief.Stop()
	return m
}

// paced is a loop's run, for its metronome.
type paced interface {
	place() *seat
	// turn is called by one worker at a time, when it is time or somebody has asked.
	// It gives the time of the next turn, and false after the last.
	turn() (next time.Time, goes bool)
}

// seat is a run's place in the line.
type seat struct {
	asked atomic.Uint32 // what asked... says
	due   time.Duration // when its turn is; away: it has it, or has ended
}

const away time.Duration = -1

// join lets a run wait for its first turn.
func (m *Metronome) join(p paced, first time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loops++
	m.seatLocked(p, first)
}

// hurry makes a run's turn come now. One that has it hears what was asked afterwards.
func (m *Metronome) hurry(p paced) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.place().due > time.Since(m.begun) {
		m.seatLocked(p, time.Time{})
	}
}

// seatLocked puts a run into the line. Whatever place it had there counts no more.
func (m *Metronome) seatLocked(p paced, next time.Time) {
	s, now := p.place(), time.Since(m.begun)
	s.due = max(now, next.Sub(m.begun))
	if s.asked.Load() != 0 {
		s.due = now
	}
	if m.line.push(appointment{s.due, p}); len(m.line) > 2*m.loops+sparePlaces {
		m.line.sweep()
	}
	switch {
	case m.waits && s.due < m.until:
		m.until = s.due
		m.timer.Reset(s.due - now)
	case m.workers == 0:
		m.hireLocked()
	case !m.waits:
		m.lookLocked()
	}
}

func (m *Metronome) hireLocked() {
	m.workers++
	m.fresh++
	go m.work()
}

// work is the life of a worker.
func (m *Metronome) work() {
	left := true
	m.mu.Lock()
	m.fresh--
	defer func() {
		if left { // by runtime.Goexit, in the middle of a run: another one goes on
			m.mu.Lock()
			m.loops--
			m.hireLocked()
		}
		m.workers--
		m.mu.Unlock()
	}()
	for m.goOnLocked() {
	}
	left = false
}

// goOnLocked carries out the first of the line or waits for it; false: this worker is
// not needed any more.
func (m *Metronome) goOnLocked() bool {
	first, ok := m.line.first()
	if !ok {
		if m.waits { // for one that has gone
			m.timer.Reset(0)
		}
		return false
	}
	if early := first.at - time.Since(m.begun); early > 0 {
		if m.waits {
			return false
		}
		m.waits, m.until = true, first.at
		m.timer.Reset(early)
		m.mu.Unlock()
		<-m.timer.C
		m.mu.Lock()
		m.waits = false
		return true
	}
	m.line.pop()
	first.who.place().due = away
	m.lookLocked()
	m.mu.Unlock()
	next, goes := first.who.turn()
	m.mu.Lock()
	m.turns++
	if goes {
		m.seatLocked(first.who, next)
	} else {
		m.loops--
	}
	return true
}

// lookLocked has relieve look in a moment.
func (m *Metronome) lookLocked() {
	if !m.looks {
		m.looks, m.turns = true, 0
		m.relief.Reset(relieveAfter)
	}
}

// relieve has more workers come when what is due waits for those who have blocked.
func (m *Metronome) relieve() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looks = false
	first, ok := m.line.first()
	if m.waits || !ok {
		return
	}
	if first.at <= time.Since(m.begun) {
		for range reinforcements(m.workers, m.fresh, m.turns, len(m.line)) {
			m.hireLocked()
		}
	}
	m.lookLocked()
}

// reinforcements tells how many more workers are to come when runs are held up. Those who
// have not begun yet tell that it is the processor that is missing: more of them would
// have it even less. When fewer runs have returned since the last look than there are
// workers, these block: twice as many go on until the blocked ones are all that wait.
// Runs that are short, but too many for those who are here, get one more at a time.
func reinforcements(workers, fresh, turns, waiting int) int {
	switch {
	case fresh > 0:
		return 0
	case turns < workers:
		return min(workers, waiting)
	case workers < manyWorkers:
		return 1
	}
	return 0
}

// appointment is one place in the line. It counts as long as its run is due then.
type appointment struct {
	at  time.Duration
	who paced
}

// line is a heap of appointments, the earliest first. It is not container/heap's, which
// makes an object of each value that is pushed, at every beat.
type line []appointment

// first gives the earliest appointment that counts; those before it that do not are
// dropped.
func (l *line) first() (appointment, bool) {
	for len(*l) > 0 {
		if a := (*l)[0]; a.who.place().due == a.at {
			return a, true
		}
		l.pop()
	}
	return appointment{}, false
}

// sweep drops the appointments that count no more. Each wake-up leaves one.
func (l *line) sweep() {
	*l = slices.DeleteFunc(*l, func(a appointment) bool { return a.who.place().due != a.at })
	slices.SortFunc(*l, func(a, b appointment) int { return cmp.Compare(a.at, b.at) }) // which is a heap
}

func (l *line) push(a appointment) {
	h := append(*l, a)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if h[up].at <= a.at {
			break
		}
		h[i], i = h[up], up
	}
	h[i] = a
	*l = h
}

// pop drops the earliest appointment.
func (l *line) pop() {
	h := *l
	end := len(h) - 1
	a := h[end]
	h[end] = appointment{}
	h, *l = h[:end], h[:end]
	if end == 0 {
		return
	}
	i := 0
	for {
		down := 2*i + 1
		if down >= end {
			break
		}
		if right := down + 1; right < end && h[right].at < h[down].at {
			down = right
		}
		if a.at <= h[down].at {
			break
		}
		h[i], i = h[down], down
	}
	h[i] = a
}
