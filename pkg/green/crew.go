package green

import (
	"context"
	"sync/atomic"
)

/*
A Crew carries out functions each on a goroutine of its own, as [SpawnN] does, but a
goroutine that is done waits for the next function: a new one has a stack of 2 KiB, which
what answers a request outgrows several times, and each time it is copied. A function
never waits for another.

	SpawnN ──(somebody waits)──▶ works ──▶ waits ──(ctx ends)──▶ ends
	    └─────(nobody does)──▶ new ┘  └──(enough others wait)──────▲

It is made by [NewCrew] and may be used by any number of goroutines.
*/
type Crew struct {
	next chan errand // without room: it is taken by one that waits, or by nobody
	end  <-chan struct{}
	idle atomic.Int64
	most int64
}

// errand is what one goroutine of a crew has to do.
type errand struct {
	ctx context.Context //nolint:containedctx // of fn, which it is given to
	fn  func(context.Context) error
}

// NewCrew makes a crew of which at most that many goroutines wait for work, until ctx ends.
// Nothing has to be closed; functions are carried out after that too.
func NewCrew(ctx context.Context, waiting int) *Crew {
	return &Crew{next: make(chan errand), end: ctx.Done(), most: int64(waiting)}
}

// SpawnN is the function SpawnN on a goroutine of the crew.
func (c *Crew) SpawnN(ctx context.Context, fn func(context.Context) error) {
	e := errand{ctx, fn}
	select {
	case c.next <- e:
	default:
		go c.work(e)
	}
}

// work is one goroutine. A function that leaves by Goexit takes it along.
func (c *Crew) work(e errand) {
	for {
		runUnseen(e.ctx, e.fn)
		e = errand{} // what it held may go
		if !c.await(&e) {
			return
		}
	}
}

// await waits for the next errand; false: it has to end.
func (c *Crew) await(e *errand) bool {
	defer c.idle.Add(-1)
	if c.idle.Add(1) > c.most {
		return false
	}
	select {
	case *e = <-c.next:
		return true
	case <-c.end:
		return false
	}
}
