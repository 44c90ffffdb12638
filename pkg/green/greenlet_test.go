package green_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/green"
)

type runFunc = func(self *green.Greenlet, v any) (any, error)

// hub gives a hub that is closed, inside the bubble, when the test ends.
func hub(t *testing.T) *green.Hub {
	t.Helper()
	h := green.NewHub()
	t.Cleanup(h.Close)
	return h
}

// to switches and fails the test on an error.
func to(t *testing.T, g *green.Greenlet, v any) any {
	t.Helper()
	got, err := g.Switch(v)
	if err != nil {
		t.Errorf("Switch: %v", err)
	}
	return got
}

// simple is upstream's smallest test: main and child append in turns.
func simple(t *testing.T) {
	h := green.NewHub()
	defer h.Close()
	var list []int
	g := h.New(func(self *green.Greenlet, _ any) (any, error) {
		list = append(list, 1)
		to(t, self.Parent(), nil)
		list = append(list, 3)
		return nil, nil
	})
	list = append(list, 0)
	to(t, g, nil)
	list = append(list, 2)
	to(t, g, nil)
	list = append(list, 4)
	if diff := cmp.Diff([]int{0, 1, 2, 3, 4}, list); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	want(t, "dead", g.Dead(), true)
}

func TestGreenlet(t *testing.T) { conform(t, greenletCases) }

var greenletCases = []conformCase{
	{"test_greenlet.test_simple", func(t *testing.T, _ context.Context) { simple(t) }},
	{"test_greenlet.test_threads", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(10)
		for range 10 {
			spawnNIn(t, ctx, p, func(context.Context) error { simple(t); return nil })
		}
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
	}},
	{"test_greenlet.test_two_children", func(t *testing.T, _ context.Context) {
		h := hub(t)
		list := 0
		f := func(self *green.Greenlet, _ any) (any, error) {
			list++
			to(t, self.Parent(), nil)
			list++
			return nil, nil
		}
		g, g2 := h.New(f), h.New(f)
		to(t, g, nil)
		want(t, "length", list, 1)
		to(t, g2, nil)
		want(t, "length", list, 2)
		to(t, g, nil)
		want(t, "length", list, 3)
		want(t, "g dead, g2 dead", [2]bool{g.Dead(), g2.Dead()}, [2]bool{true, false})
		to(t, g2, nil)
		want(t, "length", list, 4)
		want(t, "g2 dead", g2.Dead(), true)
	}},
	{"test_greenlet.test_two_recursive_children", func(t *testing.T, _ context.Context) {
		h := hub(t)
		var list []string
		g := h.New(func(*green.Greenlet, any) (any, error) {
			inner := h.New(func(*green.Greenlet, any) (any, error) { list = append(list, "b"); return nil, nil })
			list = append(list, "a")
			to(t, inner, nil)
			list = append(list, "c")
			return nil, nil
		})
		to(t, g, nil)
		want(t, "list", strings.Join(list, ""), "abc")
	}},
	{"test_greenlet.test_exception", func(t *testing.T, _ context.Context) {
		h := hub(t)
		var g2 *green.Greenlet
		g1 := h.New(func(self *green.Greenlet, _ any) (any, error) {
			g2 = h.New(func(*green.Greenlet, any) (any, error) { return nil, errBoom })
			_, err := g2.Switch(nil)
			want(t, "error in g1", err, errBoom)
			return nil, err
		})
		_, err := g1.Switch(nil)
		want(t, "error in main", err, errBoom)
		want(t, "g2 echoes", to(t, g2, 5), any(5))
		_, err = g2.Throw(errBoom)
		want(t, "g2 echoes a throw", err, errBoom)
	}},
	{"test_greenlet.test_send_exception", func(t *testing.T, _ context.Context) {
		h := hub(t)
		seen := errors.New("nothing")
		g := h.New(func(self *green.Greenlet, _ any) (any, error) {
			helper := h.New(func(*green.Greenlet, any) (any, error) { return nil, errBoom })
			_, seen = self.Parent().Switch(helper)
			return nil, nil
		})
		helper, _ := to(t, g, nil).(*green.Greenlet)
		to(t, helper, nil) // it fails, and that goes to its parent g
		want(t, "error in the target", seen, errBoom)
	}},
	{"test_throw.test_kill", func(t *testing.T, _ context.Context) {
		h := hub(t)
		g := h.New(func(self *green.Greenlet, _ any) (any, error) { return self.Parent().Switch("test") })
		want(t, "Switch", to(t, g, nil), any("test"))
		for range 2 {
			v, err := g.Throw(nil)
			want(t, "Throw", v, any(green.ErrExit))
			wantErr(t, "Throw", err, nil)
			want(t, "dead", g.Dead(), true)
		}
	}},
	{"test_throw.test_throw_goes_to_original_parent", func(t *testing.T, _ context.Context) {
		h := hub(t)
		caught := func(_ any, err error) (any, error) {
			if errors.Is(err, errBoom) {
				return "caught", nil
			}
			return nil, err
		}
		for name, begun := range map[string]bool{"unstarted": false, "suspended": true} {
			g1 := h.New(func(self *green.Greenlet, _ any) (any, error) {
				g2 := h.New(func(self *green.Greenlet, _ any) (any, error) { return h.Main().Switch(self) })
				if begun {
					return caught(g2.Switch(nil))
				}
				return caught(h.Main().Switch(g2))
			})
			g2, _ := to(t, g1, nil).(*green.Greenlet)
			v, err := g2.Throw(errBoom)
			want(t, name+": Throw", v, any("caught"))
			wantErr(t, name+": Throw", err, nil)
			want(t, name+": dead", g1.Dead() && g2.Dead(), true)
		}
		never := h.New(func(*green.Greenlet, any) (any, error) { t.Error("ran"); return nil, nil })
		_, err := never.Throw(errBoom)
		want(t, "Throw into an unstarted one", err, errBoom)
		want(t, "dead", never.Dead(), true)
	}},
	{"docs, symmetric: a to b to a, a ends", func(t *testing.T, _ context.Context) {
		h := hub(t)
		var a, b *green.Greenlet
		a = h.New(func(*green.Greenlet, any) (any, error) { to(t, b, nil); return "a's", nil })
		b = h.New(func(*green.Greenlet, any) (any, error) { return a.Switch(nil) })
		want(t, "main gets", to(t, a, nil), any("a's"))
		want(t, "a, b dead", [2]bool{a.Dead(), b.Dead()}, [2]bool{true, false})
	}},
	{"docs, values in and out over three switches", func(t *testing.T, _ context.Context) {
		g := hub(t).New(func(self *green.Greenlet, v any) (any, error) {
			n, _ := v.(int)
			n, _ = to(t, self.Parent(), n+1).(int)
			n, _ = to(t, self.Parent(), n+1).(int)
			return n + 1, nil
		})
		for _, step := range [][2]int{{1, 2}, {10, 11}, {100, 101}} {
			want(t, "Switch", to(t, g, step[0]), any(step[1]))
		}
		want(t, "dead", g.Dead(), true)
	}},
	{"probe, a switch to itself", func(t *testing.T, _ context.Context) {
		h := hub(t)
		want(t, "main", to(t, h.Main(), 3), any(3))
		_, err := h.Main().Throw(errBoom)
		want(t, "main throws", err, errBoom)
		g := h.New(func(self *green.Greenlet, _ any) (any, error) { return self.Switch(4) })
		want(t, "child", to(t, g, nil), any(4))
	}},
	{"test_greenlet.test_main_greenlet_parent_is_none, TestRepr", func(t *testing.T, _ context.Context) {
		h := hub(t)
		if h.Main().Parent() != nil || h.Main().Dead() {
			t.Error("main has a parent or is dead")
		}
		var during [2]string
		g := h.New(func(self *green.Greenlet, _ any) (any, error) {
			during = [2]string{self.String(), h.Main().String()}
			return self.Parent().Switch(nil)
		})
		want(t, "parent", g.Parent(), h.Main())
		states := []string{h.Main().String(), g.String()}
		to(t, g, nil)
		states = append(states, during[:]...)
		states = append(states, g.String())
		to(t, g, nil)
		states = append(states, g.String())
		if diff := cmp.Diff([]string{
			"greenlet main (current)", "greenlet (unstarted)", "greenlet (current)", "greenlet main (suspended)",
			"greenlet (suspended)", "greenlet (dead)",
		}, states); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}},
	{"new, a panic inside reaches the parent", func(t *testing.T, _ context.Context) {
		g := hub(t).New(func(*green.Greenlet, any) (any, error) { panic(errBoom) })
		_, err := g.Switch(nil)
		if p, ok := errors.AsType[*green.PanicError](err); !ok || !errors.Is(err, errBoom) || len(p.Stack) == 0 {
			t.Errorf("Switch: %v, want a PanicError", err)
		}
		want(t, "dead", g.Dead(), true)
	}},
	{"new, Goexit inside ends the goroutine that drives", func(t *testing.T, ctx context.Context) {
		var g *green.Greenlet
		h := hub(t)
		outcome(t, ctx, green.Spawn(ctx, func(context.Context) (int, error) {
			g = h.New(func(*green.Greenlet, any) (any, error) { runtime.Goexit(); return nil, nil })
			to(t, g, nil)
			return 0, nil
		}), 0, green.ErrGoexit)
		want(t, "dead", g.Dead(), true)
		want(t, "the hub goes on", to(t, h.New(func(*green.Greenlet, any) (any, error) { return 1, nil }), nil), any(1))
	}},
	{"test_greenlet.test_switching_holding_critical_section: a lock held across a switch", func(t *testing.T, _ context.Context) {
		h := hub(t)
		lock := make(chan struct{}, 1)
		g := h.New(func(self *green.Greenlet, _ any) (any, error) {
			lock <- struct{}{}
			to(t, self.Parent(), nil)
			<-lock
			return nil, nil
		})
		to(t, g, nil)
		want(t, "held", len(lock), 1)
		to(t, g, nil)
		want(t, "held", len(lock), 0)
	}},
}

func TestHubClose(t *testing.T) { conform(t, hubCloseCases) }

var hubCloseCases = []conformCase{
	{"new, each suspended greenlet unwinds with ErrExit", func(t *testing.T, _ context.Context) {
		h := green.NewHub()
		var exits, defers atomic.Int32
		var all []*green.Greenlet
		for range 10 {
			g := h.New(func(self *green.Greenlet, _ any) (any, error) {
				defer defers.Add(1)
				_, err := self.Parent().Switch(nil)
				if errors.Is(err, green.ErrExit) {
					exits.Add(1)
				}
				_, err = self.Parent().Switch("again")
				wantErr(t, "a second Switch", err, green.ErrClosed)
				return nil, err
			})
			to(t, g, nil)
			all = append(all, g)
		}
		unstarted := h.New(func(*green.Greenlet, any) (any, error) { t.Error("ran"); return nil, nil })
		h.Close()
		h.Close()
		want(t, "exits", exits.Load(), 10)
		want(t, "defers", defers.Load(), 10)
		for _, g := range all {
			want(t, "dead", g.Dead(), true)
		}
		_, err := unstarted.Switch(nil)
		wantErr(t, "Switch", err, green.ErrClosed)
	}},
	{"test_greenlet.test_throw_to_dead_thread_doesnt_crash", func(t *testing.T, _ context.Context) {
		h := green.NewHub()
		g := h.New(func(self *green.Greenlet, _ any) (any, error) { return self.Parent().Switch(nil) })
		to(t, g, nil)
		h.Close()
		_, err := g.Throw(errBoom)
		wantErr(t, "Throw", err, green.ErrClosed)
	}},
	{"test_greenlet.test_thread_bug: hubs left to their goroutines", func(t *testing.T, ctx context.Context) {
		p := green.NewPool(2)
		for range 2 {
			spawnNIn(t, ctx, p, func(context.Context) error {
				h := green.NewHub()
				defer h.Close()
				to(t, h.New(func(self *green.Greenlet, _ any) (any, error) { return self.Parent().Switch(nil) }), nil)
				return nil
			})
		}
		wantErr(t, "WaitAll", p.WaitAll(ctx), nil)
	}},
	{"new, closed from inside", func(t *testing.T, _ context.Context) {
		h := green.NewHub()
		waiting := h.New(func(self *green.Greenlet, _ any) (any, error) { return self.Parent().Switch(nil) })
		to(t, waiting, nil)
		closer := h.New(func(self *green.Greenlet, _ any) (any, error) {
			h.Close()
			_, err := self.Parent().Switch(nil)
			wantErr(t, "Switch after Close", err, green.ErrClosed)
			return nil, nil
		})
		_, err := closer.Switch(nil)
		wantErr(t, "main's Switch", err, green.ErrClosed)
		want(t, "dead", waiting.Dead() && closer.Dead(), true)
	}},
}
