package migration

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
)

// TestSlotsOrder: users go first, but a drain that waits gets its turn.
func TestSlotsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1)
		var order strings.Builder
		if err := s.acquire(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		for _, who := range "ddduuuuu" {
			go func() {
				if err := s.acquire(t.Context(), who == 'd'); err != nil {
					t.Error(err)
				}
				order.WriteRune(who)
				s.release()
			}()
			synctest.Wait()
		}
		s.release()
		synctest.Wait()
		if got := order.String(); got != "uuuduudd" {
			t.Errorf("order %s, want uuuduudd", got)
		}
		if s.available() != 1 {
			t.Errorf("%d slots are free at the end, want 1", s.available())
		}
	})
}

func TestSlotsGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1)
		s.seize()
		s.seize() // a restart finds two jobs running
		why := errors.New("aborted")
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error)
		go func() { done <- s.acquire(ctx, true) }()
		synctest.Wait()
		cancel(why)
		if err := <-done; !errors.Is(err, why) {
			t.Errorf("acquire = %v, want %v", err, why)
		}
		if s.release(); s.available() != 0 || s.try() {
			t.Error("a slot is free although one job too many ran")
		}
		if s.release(); !s.try() {
			t.Error("no slot after all were released")
		}
	})
}
