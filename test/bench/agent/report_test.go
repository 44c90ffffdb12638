package main

import (
	"math/rand/v2"
	"testing"
)

// The interval is the textbook's for small n, and holds the median as often as it says.
func TestInterval(t *testing.T) {
	for n, want := range map[int][2]float64{6: {1, 6}, 10: {2, 9}, 20: {6, 15}, 60: {22, 39}} {
		var s samples
		for i := range n {
			s = append(s, float64(i+1))
		}
		if low, high := s.interval(); low != want[0] || high != want[1] {
			t.Errorf("of %d samples: %v to %v, want %v", n, low, high, want)
		}
	}
	held, draw := 0, rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a draw, no secret
	for range 10_000 {
		var s samples
		for range 20 {
			s = append(s, draw.NormFloat64())
		}
		if low, high := s.interval(); low <= 0 && 0 <= high {
			held++
		}
	}
	if held < 9_500 {
		t.Errorf("the median 0 was held %d times of 10,000, want 95 %%", held)
	}
}
