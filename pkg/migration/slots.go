package migration

import (
	"context"
	"sync"
)

// userTurns is how many users go first while a drain waits: then it is its turn.
const userTurns = 3

// slots is a counted resource with two lines of waiters, each first come, first
// served. Users go before drains, but not for ever.
type slots struct {
	mu     sync.Mutex
	free   int // below zero after seize
	users  []chan struct{}
	drains []chan struct{}
	turns  int // users served in a row while a drain waited
}

func newSlots(n int) *slots { return &slots{free: n} }

// acquire waits for a slot, until ctx ends: its cause then.
func (s *slots) acquire(ctx context.Context, drain bool) error {
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	line := s.lineLocked(drain)
	*line = append(*line, turn)
	s.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	waiting := s.dropLocked(drain, turn)
	s.mu.Unlock()
	if !waiting { // it was served at the same moment: pass it on
		s.release()
	}
	return context.Cause(ctx)
}

// try takes a slot if there is one.
func (s *slots) try() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free <= 0 {
		return false
	}
	s.free--
	return true
}

// seize takes a slot whether there is one or not: for a migration that already runs.
func (s *slots) seize() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free--
}

// release gives a slot back, to the next in line.
func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	if s.free <= 0 {
		return
	}
	line := &s.users
	switch {
	case len(s.users) == 0 && len(s.drains) == 0:
		return
	case len(s.drains) == 0:
		s.turns = 0
	case len(s.users) == 0, s.turns >= userTurns:
		line, s.turns = &s.drains, 0
	default:
		s.turns++
	}
	s.free--
	close((*line)[0])
	*line = (*line)[1:]
}

// left tells how many slots are free, or, below zero, how many too many are taken.
func (s *slots) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.free
}

// available tells how many slots are free.
func (s *slots) available() int {
	return max(s.left(), 0)
}

func (s *slots) lineLocked(drain bool) *[]chan struct{} {
	if drain {
		return &s.drains
	}
	return &s.users
}

// dropLocked takes a waiter out of its line; false if it is not there any more.
func (s *slots) dropLocked(drain bool, turn chan struct{}) bool {
	line := s.lineLocked(drain)
	for i, c := range *line {
		if c == turn {
			*line = append((*line)[:i:i], (*line)[i+1:]...)
			return true
		}
	}
	return false
}
