package green_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/compute-agent/compute-agent/pkg/green"
)

// The classic pair: control wanders from main to gr1, to gr2, and back to gr1,
// which ends, so that its parent main has it again. gr2 is left where it was:
// 78 is never printed, and Close releases it.
func ExampleGreenlet_Switch() {
	hub := green.NewHub()
	defer hub.Close()
	var gr1, gr2 *green.Greenlet
	gr1 = hub.New(func(*green.Greenlet, any) (any, error) {
		fmt.Println(12)
		if _, err := gr2.Switch(nil); err != nil {
			return nil, err
		}
		fmt.Println(34)
		return nil, nil
	})
	gr2 = hub.New(func(*green.Greenlet, any) (any, error) {
		fmt.Println(56)
		if _, err := gr1.Switch(nil); err != nil {
			return nil, err
		}
		fmt.Println(78)
		return nil, nil
	})
	if _, err := gr1.Switch(nil); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 12
	// 56
	// 34
}

// Values travel with the switches. gr1 and gr2 both have main as parent, so
// when gr1 ends, gr2 stays suspended in its switch.
func ExampleGreenlet_Switch_values() {
	hub := green.NewHub()
	defer hub.Close()
	var gr1, gr2 *green.Greenlet
	gr1 = hub.New(func(_ *green.Greenlet, n any) (any, error) {
		fmt.Println("test1:", n)
		if _, err := gr2.Switch(32); err != nil {
			return nil, err
		}
		fmt.Println("test1: over")
		return nil, nil
	})
	gr2 = hub.New(func(_ *green.Greenlet, n any) (any, error) {
		fmt.Println("test2:", n)
		if _, err := gr1.Switch(23); err != nil {
			return nil, err
		}
		fmt.Println("test2: over")
		return nil, nil
	})
	if _, err := gr1.Switch(2); err != nil {
		fmt.Println(err)
	}
	// Output:
	// test1: 2
	// test2: 32
	// test1: over
}

func ExampleHub() {
	hub := green.NewHub()
	child := hub.New(func(self *green.Greenlet, v any) (any, error) {
		fmt.Println("child got", v, "and its parent is main:", self.Parent() == hub.Main())
		v, err := self.Parent().Switch("from the child")
		fmt.Println("child resumed with", v, err)
		return nil, err
	})
	fmt.Println(child)
	v, _ := child.Switch("from main")
	fmt.Println("main got", v)
	hub.Close() // the child's Switch gives ErrExit
	fmt.Println(child.Dead(), child.String())
	_, err := child.Switch(nil)
	fmt.Println(errors.Is(err, green.ErrClosed))
	// Output:
	// greenlet (unstarted)
	// child got from main and its parent is main: true
	// main got from the child
	// child resumed with <nil> green: exit
	// true greenlet (dead)
	// true
}

// A thrown error comes out of the Switch in which the greenlet waits. One that
// nobody catches goes to the parent, except ErrExit, which ends quietly.
func ExampleGreenlet_Throw() {
	hub := green.NewHub()
	defer hub.Close()
	wait := func(self *green.Greenlet, _ any) (any, error) { return self.Parent().Switch("waiting") }
	g := hub.New(wait)
	fmt.Println(g.Switch(nil))
	_, err := g.Throw(errAway)
	fmt.Println(err, g.Dead())
	g = hub.New(wait)
	fmt.Println(g.Switch(nil))
	fmt.Println(g.Throw(nil))
	// Output:
	// waiting <nil>
	// hypervisor is away true
	// waiting <nil>
	// green: exit <nil>
}

// A function that leaves by runtime.Goexit ends its thread with ErrGoexit.
func ExampleThread_goexit() {
	ctx := context.Background()
	t := green.Spawn(ctx, func(context.Context) (int, error) { runtime.Goexit(); return 0, nil })
	_, err := t.Wait(ctx)
	fmt.Println(errors.Is(err, green.ErrGoexit))
	// Output: true
}

// Events refuse what they can't do.
func ExampleEvent_Reset() {
	var e green.Event[int]
	fmt.Println(errors.Is(e.Reset(), green.ErrNotSent))
	fmt.Println(e.Send(1), errors.Is(e.Send(2), green.ErrAlreadySent), errors.Is(e.SendError(nil), green.ErrNilError))
	// Output:
	// true
	// <nil> true true
}
