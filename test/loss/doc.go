// Package loss shows that no cast is lost and none runs twice: many casts from
// several senders over a NATS server in a process of its own, while the agent, the
// real binary with its journal on disk, is killed with SIGKILL again and again, the
// server is killed and restarted, and messages come twice. What happened to each
// guest is counted by the fake driver, whose file outlives the agent; what was told is
// read from the event stream.
//
//	make soak                                 100,000 casts: about a quarter of an hour
//	make soak CASTS=2000000                   more: some four hours, and up to 17 are allowed
//	make soak CASTS=2000000 SOAKTIME=2000     with so many minutes allowed
package loss
