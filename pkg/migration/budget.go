package migration

import (
	"slices"
	"sync"
)

// Divide shares a host's bandwidth among the migrations that leave it, by max-min
// fairness: each gets an equal part, and what one with a lower limit of its own leaves is
// divided among the others. All figures are MiB/s. A limit of 0 is none, a total of 0 is no
// budget: then each has its own limit. Nobody gets less than 1, which would be no limit.
func Divide(total uint64, limits []uint64) []uint64 {
	shares := slices.Clone(limits)
	if total == 0 {
		return shares
	}
	order := make([]int, len(limits))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { // those without a limit last
		switch x, y := limits[a]-1, limits[b]-1; { // 0 becomes the highest
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	left := uint64(len(order))
	for _, i := range order {
		part := max(total/left, 1)
		if limits[i] == 0 || limits[i] > part {
			shares[i] = part
		}
		total -= min(shares[i], total)
		left--
	}
	return shares
}

// budget keeps what each migration that moves memory may use of the host's bandwidth.
type budget struct {
	total uint64

	mu     sync.Mutex
	limits map[*run]uint64 // of those that move memory, their own
	shares map[*run]uint64
}

func newBudget(total uint64) *budget {
	return &budget{total: total, limits: map[*run]uint64{}, shares: map[*run]uint64{}}
}

// join counts a migration in.
func (b *budget) join(r *run, limit uint64) {
	b.change(func() { b.limits[r] = limit })
}

// update changes the own limit of a migration that is counted in.
func (b *budget) update(r *run, limit uint64) {
	b.change(func() {
		if _, in := b.limits[r]; in {
			b.limits[r] = limit
		}
	})
}

// leave counts a migration out.
func (b *budget) leave(r *run) {
	b.change(func() { delete(b.limits, r) })
}

// change divides anew and wakes the monitors of those whose share is another one now.
func (b *budget) change(do func()) {
	if b.total == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	do()
	runs, limits := make([]*run, 0, len(b.limits)), make([]uint64, 0, len(b.limits))
	for r, limit := range b.limits {
		runs, limits = append(runs, r), append(limits, limit)
	}
	before := b.shares
	b.shares = make(map[*run]uint64, len(runs))
	for i, share := range Divide(b.total, limits) {
		b.shares[runs[i]] = share
		if before[runs[i]] != share {
			runs[i].poke()
		}
	}
}

// of gives a migration's share; its own limit where nothing is divided.
func (b *budget) of(r *run, limit uint64) uint64 {
	if b.total == 0 {
		return limit
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if share, ok := b.shares[r]; ok {
		return share
	}
	return Divide(b.total, []uint64{limit})[0]
}
