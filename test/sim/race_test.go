//go:build race

package sim_test

// sample is how many cells of the restart table there are for each that is played: the
// race detector makes them slow, and `make test` plays all of them without it.
const sample = 4
