//go:build !race

package sim_test

// sample is how many cells of the restart table there are for each that is played.
const sample = 1
