package green

// Workers tells how many goroutines a metronome has.
func (m *Metronome) Workers() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.workers
}
