package main

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"

	"github.com/panjf2000/ants/v2"
	"github.com/sourcegraph/conc/pool"
	"golang.org/x/sync/errgroup"

	"github.com/compute-agent/compute-agent/pkg/green"
)

const (
	batch = 1000 // threads that are spawned before the first is waited for
	width = 1000 // size of the pools
	lanes = 8    // workers of the keyed queue
)

func groups() []group {
	return []group{
		{name: "spawn and wait, batches of 1000", ops: 400_000, cases: []benchCase{
			{name: "raw go + channel", run: rawJoin},
			{name: "green.Spawn + Wait", run: greenSpawn, most: 2},
			{name: "green.PoolSpawn + Wait", run: greenPoolSpawn, most: 1.5},
			{name: "errgroup, one Wait for all", run: errgroupJoin},
		}},
		{name: "spawn and wait, one at a time", ops: 200_000, cases: []benchCase{
			{name: "raw go + channel", run: rawJoinOne},
			{name: "green.Spawn + Wait", run: greenSpawnOne},
			{name: "green.PoolSpawn + Wait", run: greenPoolSpawnOne},
		}},
		{name: "pool of 1000, no result", ops: 1_000_000, cases: []benchCase{
			{name: "green.Pool.SpawnN", run: greenPoolSpawnN},
			{name: "ants", run: antsPool},
			{name: "conc", run: concPool},
			{name: "errgroup with limit", run: errgroupLimit},
		}},
		{name: "greenlet switch", ops: 1_000_000, cases: []benchCase{
			{name: "iter.Pull step, there and back", run: pullStep},
			{name: "greenlet, main to child and back", run: greenletMainChild, most: 3},
			{name: "greenlet, child to child", run: greenletChildChild, most: 3},
		}},
		{name: "keyed queue, 8 workers, distinct keys", ops: 1_000_000, cases: []benchCase{
			{name: "channel, 8 workers", run: channelWorkers},
			{name: "KeyedQueue, int keys", run: keyedInts, fastest: 2e6},
			{name: "KeyedQueue, 36-byte string keys", run: keyedStrings, fastest: 2e6},
			{name: "KeyedQueue, all added before Run", run: keyedAhead},
		}},
	}
}

// one is the work of each task: a value, and no more.
func one(context.Context) (int, error) { return 1, nil }

func rawJoin(ops int) {
	chans := make([]chan int, batch)
	for range ops / batch {
		for i := range chans {
			ch := make(chan int, 1)
			chans[i] = ch
			go func() { ch <- 1 }()
		}
		for _, ch := range chans {
			<-ch
		}
	}
}

func greenSpawn(ops int) {
	ctx := context.Background()
	threads := make([]*green.Thread[int], batch)
	for range ops / batch {
		for i := range threads {
			threads[i] = green.Spawn(ctx, one)
		}
		for _, t := range threads {
			must(t.Wait(ctx))
		}
	}
}

func greenPoolSpawn(ops int) {
	ctx := context.Background()
	p := green.NewPool(width)
	threads := make([]*green.Thread[int], batch)
	for range ops / batch {
		for i := range threads {
			threads[i] = must(green.PoolSpawn(ctx, p, one))
		}
		for _, t := range threads {
			must(t.Wait(ctx))
		}
	}
}

func errgroupJoin(ops int) {
	for range ops / batch {
		var g errgroup.Group
		for range batch {
			g.Go(func() error { return nil })
		}
		check(g.Wait())
	}
}

func rawJoinOne(ops int) {
	for range ops {
		ch := make(chan int, 1)
		go func() { ch <- 1 }()
		<-ch
	}
}

func greenSpawnOne(ops int) {
	ctx := context.Background()
	for range ops {
		must(green.Spawn(ctx, one).Wait(ctx))
	}
}

func greenPoolSpawnOne(ops int) {
	ctx := context.Background()
	p := green.NewPool(width)
	for range ops {
		must(must(green.PoolSpawn(ctx, p, one)).Wait(ctx))
	}
}

func greenPoolSpawnN(ops int) {
	ctx := context.Background()
	p := green.NewPool(width)
	var n atomic.Int64
	for range ops {
		check(p.SpawnN(ctx, func(context.Context) error { n.Add(1); return nil }))
	}
	check(p.WaitAll(ctx))
	all(n.Load(), ops)
}

func antsPool(ops int) {
	p := must(ants.NewPool(width))
	defer p.Release()
	var n atomic.Int64
	var wg sync.WaitGroup
	wg.Add(ops)
	for range ops {
		check(p.Submit(func() { n.Add(1); wg.Done() }))
	}
	wg.Wait()
	all(n.Load(), ops)
}

func concPool(ops int) {
	p := pool.New().WithMaxGoroutines(width)
	var n atomic.Int64
	for range ops {
		p.Go(func() { n.Add(1) })
	}
	p.Wait()
	all(n.Load(), ops)
}

func errgroupLimit(ops int) {
	var g errgroup.Group
	g.SetLimit(width)
	var n atomic.Int64
	for range ops {
		g.Go(func() error { n.Add(1); return nil })
	}
	check(g.Wait())
	all(n.Load(), ops)
}

func pullStep(ops int) {
	next, stop := iter.Pull(func(yield func(int) bool) {
		for i := 0; yield(i); i++ {
		}
	})
	defer stop()
	for range ops {
		next()
	}
}

// greenletMainChild is two switches an operation, as an iter.Pull step is.
func greenletMainChild(ops int) {
	h := green.NewHub()
	defer h.Close()
	child := h.New(func(self *green.Greenlet, v any) (any, error) {
		for {
			if _, err := self.Parent().Switch(v); err != nil {
				return nil, err
			}
		}
	})
	for range ops {
		must(child.Switch(nil))
	}
}

// greenletChildChild is one switch an operation, which passes through main's
// loop: two changes of stack.
func greenletChildChild(ops int) {
	h := green.NewHub()
	defer h.Close()
	var a, b *green.Greenlet
	a = h.New(func(*green.Greenlet, any) (any, error) {
		for range ops / 2 {
			if _, err := b.Switch(nil); err != nil {
				return nil, err
			}
		}
		return nil, nil
	})
	b = h.New(func(*green.Greenlet, any) (any, error) {
		for {
			if _, err := a.Switch(nil); err != nil {
				return nil, err
			}
		}
	})
	must(a.Switch(nil))
}

func channelWorkers(ops int) {
	ch := make(chan int, width)
	var n atomic.Int64
	var wg sync.WaitGroup
	for range lanes {
		wg.Go(func() {
			for range ch {
				n.Add(1)
			}
		})
	}
	for i := range ops {
		ch <- i
	}
	close(ch)
	wg.Wait()
	all(n.Load(), ops)
}

func keyedInts(ops int) {
	keyed(ops, func(i int) int { return i }, false)
}

func keyedAhead(ops int) {
	keyed(ops, func(i int) int { return i }, true)
}

var names []string

func keyedStrings(ops int) {
	for i := len(names); i < ops; i++ { // made once, in the round that warms up
		names = append(names, fmt.Sprintf("%08x-0000-4000-8000-%012x", i, i))
	}
	keyed(ops, func(i int) string { return names[i] }, false)
}

// keyed adds ops distinct keys and waits until each was handled.
func keyed[K comparable](ops int, key func(int) K, ahead bool) {
	ctx, stop := context.WithCancel(context.Background())
	var q green.KeyedQueue[K, int]
	var n atomic.Int64
	add := func() {
		for i := range ops {
			q.Add(key(i), 0, i)
		}
	}
	if ahead {
		add()
	}
	run := green.Spawn(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, q.Run(ctx, lanes, func(context.Context, K, int) error {
			if n.Add(1) == int64(ops) {
				stop()
			}
			return nil
		})
	})
	if !ahead {
		add()
	}
	_, _ = run.Wait(context.WithoutCancel(ctx)) // the end of ctx, that is expected
	all(n.Load(), ops)
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func all(got int64, want int) {
	if got != int64(want) {
		panic(fmt.Sprintf("%d of %d tasks ran", got, want))
	}
}
