package agent

import "sync"

// waiters are the calls that wait for their task's end. Each waits on a channel of
// its own with room for the answer, so that telling never blocks.
type waiters struct {
	mu sync.Mutex
	by map[string][]chan Task
}

func (w *waiters) add(id string) chan Task {
	ch := make(chan Task, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by == nil {
		w.by = map[string][]chan Task{}
	}
	w.by[id] = append(w.by[id], ch)
	return ch
}

func (w *waiters) drop(id string, ch chan Task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, c := range w.by[id] {
		if c == ch {
			w.by[id] = append(w.by[id][:i:i], w.by[id][i+1:]...)
			break
		}
	}
	if len(w.by[id]) == 0 {
		delete(w.by, id)
	}
}

// ended tells everybody who waits for the task.
func (a *Agent) ended(t Task) {
	a.waiters.mu.Lock()
	defer a.waiters.mu.Unlock()
	for _, ch := range a.waiters.by[t.ID] {
		select {
		case ch <- t:
		default:
		}
	}
}
