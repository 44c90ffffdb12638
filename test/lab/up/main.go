// Command up starts the lab, an external NATS server and one agent a host, runs a
// command in front of them and takes everything down again. The demo on real
// hypervisors is `up -agent bin/compute-agent -- test/demo/demo.sh tour`; with a
// shell as the command it is a playground.
//
// The command finds in its environment: COMPUTE_AGENT_RPC_URL (the bus), HOST1 and
// HOST2 (host names), KERNEL, INITRD and CMDLINE (what a guest boots), ADDRESS (the
// guest's, which answers ping from here) and BRIDGE.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/compute-agent/compute-agent/test/lab"
)

func main() {
	binary := flag.String("agent", "bin/compute-agent", "the program to run on each host")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, flag.Args()); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary string, command []string) (err error) {
	if len(command) == 0 {
		return errors.New("name a command to run, for example: up -- bash")
	}
	if err := lab.Available(); err != nil {
		return err
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	l, err := lab.Start(ctx, lab.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close(context.WithoutCancel(ctx))) }()
	bus, err := l.NATS(ctx, "")
	if err != nil {
		return err
	}
	for _, h := range l.Hosts() {
		if _, err := l.Agent(ctx, h, binary, bus.URL); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), environment(l, bus.URL, binary)...)
	return cmd.Run()
}

func environment(l *lab.Lab, url, binary string) []string {
	guest, address := l.Guest(), l.GuestAddress(10)
	return []string{
		"COMPUTE_AGENT_RPC_URL=" + url, "BIN=" + binary,
		"HOST1=" + l.Host(1).Name, "HOST2=" + l.Host(2).Name, "BRIDGE=" + l.Host(1).Bridge,
		"KERNEL=" + guest.Kernel, "INITRD=" + guest.Initrd, "CMDLINE=" + guest.Cmdline(address), "ADDRESS=" + address.Addr().String(),
	}
}
