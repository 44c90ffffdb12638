// Package loss shows that no cast is lost and none runs twice: many casts from
// several senders over a real NATS server, while the agent is killed, the server
// is restarted and messages come twice. What happened to each guest is counted by
// the fake driver, what was told is read from the event stream.
package loss
