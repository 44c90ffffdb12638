package green_test

import (
	"context"
	"fmt"

	"github.com/compute-agent/compute-agent/pkg/green"
)

func ExampleSpawn() {
	ctx := context.Background()
	t := green.Spawn(ctx, func(context.Context) (int, error) { return 6 * 7, nil })
	v, err := t.Wait(ctx)
	fmt.Println(v, err)
	// Output: 42 <nil>
}
