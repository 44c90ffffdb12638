package logkit

// Key is the name of a field.
type Key string

// The names of the fields, one spelling each (the order is the one in which text and journald lines show them).
const (
	RequestID Key = "request_id" // the request's UUID, the same on every host that it reaches
	Instance  Key = "instance"   // the instance's UUID
	Migration Key = "migration"  // the migration's UUID
	Task      Key = "task"       // the task state or the method that holds the instance
	Phase     Key = "phase"      // the phase of a phase table (migration, reboot)
	Peer      Key = "peer"       // the other host
	Port      Key = "port"       // the network port's id
	Took      Key = "took"       // a time.Duration
	Error     Key = "error"      // an error; see Err
)

// keyOrder is how lines for people begin; other fields follow by name, and the error stands last.
var keyOrder = [...]Key{RequestID, Instance, Migration, Task, Phase, Peer, Port, Took}

// Field is one named value of a log line; made by Key.Of or Err.
type Field struct {
	key   Key
	value any
}

// Of returns the field with value v. Use it on the constants of this package; a conversion Key("disk") serves a value
// that only one package knows.
func (k Key) Of(v any) Field { return Field{key: k, value: v} }

// Err returns the field of an error. A nil error makes a field that is left out.
func Err(err error) Field { return Field{key: Error, value: err} }
