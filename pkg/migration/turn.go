package migration

import "context"

// turn lets one at a time do something: it holds a token for whoever has it.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// take waits for the turn; pass follows, unless ctx ended first.
func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// try takes the turn if nobody has it.
func (t turn) try() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}

func (t turn) pass() { <-t }
