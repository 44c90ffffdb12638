// Package green is eventlet's vocabulary over goroutines: threads that are
// spawned and waited for, events, a pool of bounded width, looping calls,
// retries, work that is keyed, and greenlets that switch.
//
// # Where to start
//
//	t := green.Spawn(ctx, func(ctx context.Context) (int, error) { return answer(ctx) })
//	v, err := t.Wait(ctx)
//
// Spawn gives a [Thread] that carries one outcome; SpawnN starts work that
// nobody waits for, thousands of times a second on a [Crew]; a [Pool] bounds
// how much runs at once; an [Event] is sent once and wakes all who wait; a
// [FixedIntervalLoopingCall] beats, thousands of them on the few goroutines of
// a [Metronome]; [RetryCall] tries again; a [KeyedQueue] never works on one key
// twice at once; a [Hub] holds greenlets, which are one thread of control that
// changes places.
//
// # Rules that hold everywhere
//
// Contexts come first and end every wait. A wait that its context ended gives
// the context's cause. Misuse that data can cause is an error; only a negative
// size panics. Zero values of Event, Pool, KeyedQueue and Retry are ready to
// use and must not be copied after that.
//
// A panic never ends the process from inside a thread, a pool task, a looping
// call or a handler of a queue: it becomes a [PanicError] and is reported at
// once with its stack, whether or not anybody waits (see [WithLogger]).
//
// The scheduler is Go's own. Nothing here promises in which order threads
// begin, and nothing runs until it yields: what two threads share needs a
// lock, unless they are greenlets of one hub.
//
// # Whose goroutine is it
//
// A thread's context ends with the thread, so whatever was spawned with that
// context ends too; context.WithoutCancel detaches. Every goroutine that this
// package starts ends when its function returns, a metronome's when no loop is
// left, a crew's with the context that the crew was made with. A pending
// SpawnAfter is a timer and no goroutine. To own several goroutines, start them
// in one Pool and call WaitAll.
//
// # Testing
//
// No lock is held across a wait or a callback and there are no package-level
// channels, so code that uses this package runs in a testing/synctest bubble:
// time is virtual there and a goroutine left behind fails the test.
//
// docs/green.md maps eventlet, oslo.service and greenlet to this package and
// to plain Go.
package green
