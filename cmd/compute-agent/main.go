// Command compute-agent is the daemon of a hypervisor host, `compute-agent run`,
// and the command line of whoever controls such hosts: every other verb speaks to
// agents over NATS and needs nothing on this machine.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// After the first signal the default comes back: the second one ends the process.
	context.AfterFunc(ctx, stop)
	code := newApp(os.Stdin, os.Stdout, os.Stderr, os.Environ()).execute(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// notify and silence begin and end the delivery of the signals that end a program.
func notify(c chan<- os.Signal)  { signal.Notify(c, syscall.SIGINT, syscall.SIGTERM) }
func silence(c chan<- os.Signal) { signal.Stop(c) }
