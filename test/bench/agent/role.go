package main

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/nats-io/nats-server/v2/server"
)

// playRole is what a child process of this program does until it is stopped.
func playRole(ctx context.Context, role string, args []string) error {
	switch role {
	case "nats":
		return roleNATS(ctx, args[0], args[1], len(args) > 2 && args[2] == "sync")
	case "bare":
		return roleBare(ctx, args[0])
	case "echo":
		return roleEcho(ctx, args[0])
	case "consumer":
		return roleConsumer(ctx, args[0])
	case "teller":
		return roleTeller(ctx, args[0])
	case "member":
		return roleMember(ctx, args[0])
	default:
		return fmt.Errorf("no such role: %q", role)
	}
}

// roleNATS is the server of the module, for machines without their own.
func roleNATS(ctx context.Context, address, store string, sync bool) error {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	s, err := server.NewServer(&server.Options{Host: host, Port: port, JetStream: true, StoreDir: store, SyncAlways: sync, NoSigs: true, NoLog: true})
	if err != nil {
		return err
	}
	s.Start()
	<-ctx.Done()
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}
