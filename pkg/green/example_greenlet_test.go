package green_test

import (
	"fmt"

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
