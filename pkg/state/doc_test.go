package state_test

import (
	"context"
	"fmt"
	"os"

	"github.com/compute-agent/compute-agent/pkg/state"
)

func ExampleStore_Update() {
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx := context.Background()
	s, err := state.Open(ctx, dir, state.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = s.Close() }()

	colours := state.Table[string]{Name: "colours", Version: 1}
	err = s.Update(ctx, func(tx *state.Tx) error { return colours.Put(tx, "sky", "blue") })
	fmt.Println("on disk:", err == nil)
	_ = s.View(func(tx *state.Tx) error {
		v, ok, err := colours.Get(tx, "sky")
		fmt.Println(v, ok, err)
		return nil
	})
	// Output:
	// on disk: true
	// blue true <nil>
}
