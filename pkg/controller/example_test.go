package controller_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/compute-agent/compute-agent/pkg/controller"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// A transport comes from rpc.Dial for NATS; here it is the one in memory, and
// nobody else is on it.
func ExampleNew() {
	bus := rpc.NewBus()
	client := controller.New(bus.Connect("example"), controller.Options{})
	ctx := context.Background()

	_, err := client.LiveMigration(ctx, "web1", api.MigrateArgs{Dest: "node2"})
	fmt.Println(err)
	fmt.Println(errors.Is(err, fault.NotFound))
	fmt.Println(fault.HintOf(err))
	// Output:
	// live_migration: instance web1: no host has an instance of this name or UUID
	// true
	// `compute-agent instance list` shows all
}
