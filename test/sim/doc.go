// Package sim holds the simulation: whole agents on fake machines and the bus in
// memory, under virtual time, with everything that can go wrong drawn from a seed.
//
// A run draws hosts, guests, how their agents are set up, requests, faults and
// restarts; lets them happen within a virtual minute; makes everything whole again;
// waits until nothing moves; and audits what is left (audit_test.go). The agents and
// their journals are the real ones; only fsync is left out, and a crash
// is [simulate.Host.Kill]: the journal as it stands, nothing said and nothing done
// after that moment.
//
//	make sim                  100,000 seeds
//	make sim SEEDS=2000       fewer
//	make sim SEED=4711        one, with its log
//
// A seed fixes all that is drawn. It does not fix how Go interleaves goroutines that
// are ready at the same virtual instant, so a rare failure may want a seed to be
// played more than once: make sim SEED=4711 TIMES=200.
package sim
