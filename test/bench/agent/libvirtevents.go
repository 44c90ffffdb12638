package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/test/lab"
)

// eventLog is `virsh event` running beside everything, with libvirt's events in a file.
type eventLog struct{ p *process }

func listenTo(ctx context.Context, e *env, h *lab.Host) (*eventLog, error) {
	cmd := h.Command(ctx, "stdbuf", "-oL", "virsh", "-c", "qemu:///system", "event", "--all", "--loop", "--timestamp")
	p, err := e.start("events-"+h.Name, append(os.Environ(), "LC_ALL=C"), cmd.Path, cmd.Args[1:]...)
	return &eventLog{p}, err
}

func (w *eventLog) stop() { _, _ = w.p.stop() }

// find waits for the first event with that text since a moment.
func (w *eventLog) find(ctx context.Context, text string, after time.Time) (time.Time, error) {
	for deadline := time.Now().Add(5 * time.Second); ; {
		lines, err := linesOf(w.p.log)
		if err != nil {
			return time.Time{}, err
		}
		for _, line := range lines {
			stamp, rest, found := strings.Cut(line, ": ")
			if !found || !strings.Contains(rest, text) {
				continue
			}
			at, err := time.Parse("2006-01-02 15:04:05.000-0700", stamp)
			if err == nil && at.After(after) {
				return at, nil
			}
		}
		if time.Now().After(deadline) {
			return time.Time{}, w.p.trouble(fmt.Errorf("no event %q since %s", text, after))
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

func linesOf(file string) ([]string, error) {
	raw, err := os.ReadFile(file)
	return strings.Split(string(raw), "\n"), err
}
