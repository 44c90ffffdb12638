package migration

import (
	"maps"
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

// update changes the own limit of a migration that is counted in, if it is another one now:
// somebody asked for it, or the job is in its other mode.
func (b *budget) update(r *run, limit uint64) {
	if b.total == 0 || b.agrees(r, limit) {
		return
	}
	b.change(func() {
		if _, in := b.limits[r]; in {
			b.limits[r] = limit
		}
	})
}

// agrees reports whether nothing has to be divided anew for that limit.
func (b *budget) agrees(r *run, limit uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	had, in := b.limits[r]
	return !in || had == limit
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
	before := b.shares
	b.shares = sharesOf(b.total, b.limits)
	for r, share := range b.shares {
		if before[r] != share {
			r.poke()
		}
	}
}

// sharesOf divides the total among migrations.
func sharesOf(total uint64, own map[*run]uint64) map[*run]uint64 {
	runs, limits := make([]*run, 0, len(own)), make([]uint64, 0, len(own))
	for r, limit := range own {
		runs, limits = append(runs, r), append(limits, limit)
	}
	shares := make(map[*run]uint64, len(runs))
	for i, share := range Divide(total, limits) {
		shares[runs[i]] = share
	}
	return shares
}

// of gives a migration's share: the one it has, or the one it would have with another limit
// of its own. Where nothing is divided that limit is all.
func (b *budget) of(r *run, limit uint64) uint64 {
	if b.total == 0 {
		return limit
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if had, in := b.limits[r]; in && had == limit {
		return b.shares[r]
	}
	own := maps.Clone(b.limits)
	own[r] = limit
	return sharesOf(b.total, own)[r]
}
