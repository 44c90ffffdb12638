package green_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/green"
)

// generator runs body in a greenlet that gives values to whoever asks.
type generator struct {
	g    *green.Greenlet
	from *green.Greenlet // who asks
}

func generate(h *green.Hub, caller func() *green.Greenlet, body func(yield func(any))) *generator {
	gen := &generator{}
	gen.g = h.New(func(*green.Greenlet, any) (any, error) {
		body(func(v any) { _, _ = gen.from.Switch(v) })
		return gen.from.Switch(nil)
	})
	gen.from = caller()
	return gen
}

func (gen *generator) next(t *testing.T, from *green.Greenlet) any {
	gen.from = from
	return to(t, gen.g, nil)
}

// test_generator_nested: generators in generators, on greenlets.
func TestGenerators(t *testing.T) { conform(t, generatorsCases) }

var generatorsCases = []conformCase{
	{"test_generator_nested.test_layered_genlets", func(t *testing.T, _ context.Context) {
		h := hub(t)
		main := h.Main
		var g2 *generator
		g1 := generate(h, main, func(yield func(any)) {
			for n := range 4 {
				yield(n + 1)
			}
		})
		g2 = generate(h, main, func(yield func(any)) {
			for range 4 {
				n, _ := g1.next(t, g2.g).(int)
				yield(n)
				yield(n * n)
			}
		})
		var got []any
		for v := g2.next(t, main()); v != nil; v = g2.next(t, main()) {
			got = append(got, v)
		}
		if diff := cmp.Diff([]any{1, 1, 2, 4, 3, 9, 4, 16}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}},
	{"test_generator_nested.test_permutations", func(t *testing.T, _ context.Context) {
		h := hub(t)
		seen := map[string]bool{}
		gen := generate(h, h.Main, func(yield func(any)) { permute("", "abcd", func(s string) { yield(s) }) })
		for v := gen.next(t, h.Main()); v != nil; v = gen.next(t, h.Main()) {
			s, _ := v.(string)
			seen[s] = true
		}
		want(t, "permutations", len(seen), 24)
		want(t, "both orders", seen["abcd"] && seen["dcba"], true)
	}},
	{"test_generator.test_generator, test_genlet_simple: interleaved", func(t *testing.T, _ context.Context) {
		h := hub(t)
		count := func(from int) *generator {
			return generate(h, h.Main, func(yield func(any)) {
				for i := range 5 {
					yield(from + i)
				}
			})
		}
		a, b := count(1), count(0)
		var got []any
		for range 5 {
			got = append(got, a.next(t, h.Main()), b.next(t, h.Main()))
		}
		if diff := cmp.Diff([]any{1, 0, 2, 1, 3, 2, 4, 3, 5, 4}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}},
	{"test_generator_nested.test_nested_genlets: deep nesting", func(t *testing.T, _ context.Context) {
		h := hub(t)
		var nest func(depth int) runFunc
		nest = func(depth int) runFunc {
			return func(*green.Greenlet, any) (any, error) {
				if depth == 0 {
					return 0, nil
				}
				v, err := h.New(nest(depth - 1)).Switch(nil)
				n, _ := v.(int)
				return n + 1, err
			}
		}
		want(t, "depth", to(t, h.New(nest(1000)), nil), any(1000))
	}},
}

func permute(done, rest string, give func(string)) {
	if rest == "" {
		give(done)
	}
	for i := range rest {
		permute(done+rest[i:i+1], rest[:i]+rest[i+1:], give)
	}
}
