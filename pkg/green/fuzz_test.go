package green_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/green"
)

// longest is how many bytes of an input are played: more only repeats.
const longest = 256

// modelQueue is a keyed queue in its plainest form: what waits, in one list.
type modelQueue struct {
	waiting []modelItem
	seq     int
}

type modelItem struct {
	key             string
	priority, value int
	seq             int
}

func (m *modelQueue) add(key string, priority, value int) {
	for i := range m.waiting {
		if w := &m.waiting[i]; w.key == key {
			w.value, w.priority = value, min(w.priority, priority)
			return
		}
	}
	m.seq++
	m.waiting = append(m.waiting, modelItem{key, priority, value, m.seq})
}

// take removes what must be handled next.
func (m *modelQueue) take() (modelItem, bool) {
	best := -1
	for i, w := range m.waiting {
		if best < 0 || w.priority < m.waiting[best].priority || w.priority == m.waiting[best].priority && w.seq < m.waiting[best].seq {
			best = i
		}
	}
	if best < 0 {
		return modelItem{}, false
	}
	item := m.waiting[best]
	m.waiting = append(m.waiting[:best], m.waiting[best+1:]...)
	return item, true
}

// FuzzKeyedQueue has one worker that adds, while it works, what the bytes say: each
// is a key (2 bits), a priority (2 bits) and whether more is added before the handler
// returns. What is handled next must be what a plain list says.
func FuzzKeyedQueue(f *testing.F) {
	f.Add([]byte{0, 0x81, 0x92, 0x83, 0x10, 0x01, 0xff, 0x80})
	f.Add([]byte{0x8c, 0x88, 0x84, 0x80, 0x0c, 0x1d, 0x9e})
	f.Fuzz(func(t *testing.T, steps []byte) {
		steps = steps[:min(len(steps), longest)]
		synctest.Test(t, func(t *testing.T) {
			var q green.KeyedQueue[string, int]
			var model modelQueue
			value := 0
			play := func() {
				for more := true; more && len(steps) > 0; {
					step := steps[0]
					steps = steps[1:]
					key, priority := string('a'+rune(step&3)), int(step>>2&3)
					value++
					model.add(key, priority, value)
					q.Add(key, priority, value)
					more = step&0x80 != 0
				}
			}
			play()
			stop := runQueue(t.Context(), &q, 1, func(_ context.Context, key string, v int) error {
				if next, ok := model.take(); !ok || next.key != key || next.value != v {
					t.Errorf("handled %s=%d, want %+v (%t)", key, v, next, ok)
				}
				play()
				return nil
			})
			synctest.Wait()
			wantErr(t, "Run", stop(), errBoom)
			if len(model.waiting) > 0 {
				t.Errorf("never handled: %+v", model.waiting)
			}
		})
	})
}

func times(n int, d time.Duration) time.Duration { return time.Duration(n) * d }

// FuzzPool spawns, kills, gives up, waits and resizes as the bytes say: what was
// accepted runs once or was killed before, no more than the size begin, and at the
// end nothing runs.
func FuzzPool(f *testing.F) {
	f.Add(uint8(2), []byte{0, 0, 0, 1, 2, 3, 4, 5})
	f.Add(uint8(0), []byte{0, 3, 0x43, 0, 0, 4, 0xff})
	f.Fuzz(func(t *testing.T, size uint8, steps []byte) {
		steps = steps[:min(len(steps), longest)]
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			now := int(size % 8)
			p := green.NewPool(now)
			var accepted, began, givenUp, never atomic.Int32
			spawn := func(patience, takes time.Duration, kill bool) {
				green.SpawnN(ctx, func(ctx context.Context) error {
					short, cancel := context.WithTimeout(ctx, patience)
					defer cancel()
					task, err := green.PoolSpawn(short, p, func(ctx context.Context) (int, error) {
						began.Add(1)
						return 0, green.Sleep(context.WithoutCancel(ctx), takes)
					})
					if err != nil {
						givenUp.Add(1)
						return nil
					}
					accepted.Add(1)
					if kill && task.Cancel(errBoom) {
						never.Add(1)
					}
					return nil
				})
			}
			spawned := int32(0)
			for _, step := range steps {
				switch n := int(step >> 3); step & 7 {
				case 0, 1, 2:
					spawned++
					spawn(time.Hour, times(n, time.Millisecond), step&7 == 2)
				case 3:
					spawned++
					spawn(times(n, time.Microsecond), time.Millisecond, false)
				case 4, 5:
					now = int(step >> 3 & 7)
					p.Resize(now)
				default:
					_ = green.Sleep(ctx, times(n, time.Millisecond))
				}
				if step&0x80 == 0 { // the next step comes before this one was heard
					continue
				}
				synctest.Wait()
				if p.Size() != now || p.Free() != p.Size()-p.Running() {
					t.Fatalf("size %d, want %d; running %d, free %d", p.Size(), now, p.Running(), p.Free())
				}
			}
			p.Resize(8)
			_ = green.Sleep(ctx, 2*time.Hour)
			counts(t, "at the end", p, 0, 8, 0)
			if accepted.Load()+givenUp.Load() != spawned || began.Load()+never.Load() != accepted.Load() {
				t.Errorf("of %d: %d were accepted, %d gave up, %d began, %d were cancelled before",
					spawned, accepted.Load(), givenUp.Load(), began.Load(), never.Load())
			}
		})
	})
}

// FuzzEvent sends, resets and waits as the bytes say: who waits gets the first send of
// its own generation.
func FuzzEvent(f *testing.F) {
	f.Add([]byte{0, 0, 1, 2, 3, 0, 1, 1})
	f.Add([]byte{3, 2, 0, 1, 3, 0, 2, 3, 2})
	f.Fuzz(func(t *testing.T, steps []byte) {
		steps = steps[:min(len(steps), longest)]
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			var e green.Event[int]
			type generation struct {
				sent    bool
				value   int
				err     error
				waiters []*green.Thread[int]
			}
			gens := []*generation{{}}
			for i, step := range append(steps, 1) { // the last generation is sent
				g := gens[len(gens)-1]
				was := g.sent
				switch step & 3 {
				case 0:
					g.waiters = append(g.waiters, green.Spawn(ctx, e.Wait))
					synctest.Wait()
				case 1:
					if err := e.Send(i); (err != nil) != was {
						t.Fatalf("step %d: Send = %v, sent before: %t", i, err, was)
					}
					if !was {
						g.sent, g.value = true, i
					}
				case 2:
					if err := e.SendError(errBoom); (err != nil) != was {
						t.Fatalf("step %d: SendError = %v, sent before: %t", i, err, was)
					}
					if !was {
						g.sent, g.err = true, errBoom
					}
				case 3:
					if err := e.Reset(); (err == nil) != was {
						t.Fatalf("step %d: Reset = %v, sent before: %t", i, err, was)
					}
					if was {
						gens = append(gens, &generation{})
					}
				}
				if now := gens[len(gens)-1].sent; e.Ready() != now || isDone(e.Done()) != now {
					t.Fatalf("step %d: Ready = %t, want %t", i, e.Ready(), now)
				}
			}
			for _, g := range gens {
				for _, w := range g.waiters {
					outcome(t, ctx, w, g.value, g.err)
				}
			}
		})
	})
}
