package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// keeper makes its shell a child subreaper (prctl 36, system call 157 on amd64; the mark survives exec), starts libvirtd
// as a child and then waits for ever. The guests, which QEMU turns into daemons, become children of that shell, and a
// shell that waits reaps every child at once. Without it they would be left to process 1, which in containers often
// reaps late or never, and libvirt, which waits for the process to go, would take seconds for each end of a guest.
// SIGTERM ends it when its children have ended. Arguments: the file for libvirtd's process id, then libvirtd's command line.
const (
	subreaper = `syscall(157, 36, 1, 0, 0, 0) == 0 or die "prctl: $!"; exec @ARGV or die "exec: $!"`
	keeper    = `pid=$1; shift; "$@" & echo $! >"$pid.new"; mv "$pid.new" "$pid"
children() { kids=; read kids </proc/$$/task/$$/children; [ -n "$kids" ]; }
trap 'kill $s; while children; do sleep 0.01; done; exit' TERM
while :; do sleep 1000 & s=$!; wait $s; done`
)

// libvirtPatience is how long libvirtd may take to get a process id, and to end after SIGTERM before it is killed.
const libvirtPatience = 10 * time.Second

// StopLibvirt ends the host's libvirtd, by SIGTERM or, with kill, by SIGKILL. Its guests run on, as on a real host.
func (h *Host) StopLibvirt(ctx context.Context, kill bool) error {
	if h.libvirt == 0 {
		return nil
	}
	gone := func(context.Context) error {
		if err := syscall.Kill(h.libvirt, 0); !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("libvirtd, process %d, is still there (%w)", h.libvirt, err)
		}
		return nil
	}
	if !kill {
		_ = syscall.Kill(h.libvirt, syscall.SIGTERM)
		kill = poll(ctx, libvirtPatience, 10*time.Millisecond, gone) != nil
	}
	if kill {
		_ = syscall.Kill(h.libvirt, syscall.SIGKILL)
	}
	if err := poll(ctx, libvirtPatience, time.Millisecond, gone); err != nil {
		return err
	}
	h.libvirt = 0
	return nil
}

// StartLibvirt starts the host's libvirtd again and waits, at most limit, until it answers.
func (h *Host) StartLibvirt(ctx context.Context, limit time.Duration) error {
	if h.libvirt == 0 {
		if err := h.launchLibvirt(ctx); err != nil {
			return err
		}
	}
	return h.waitLibvirt(ctx, limit)
}

// launchLibvirt starts libvirtd and does not wait until it answers.
func (h *Host) launchLibvirt(ctx context.Context) error {
	program, err := lookPath("libvirtd")
	if err != nil {
		return fmt.Errorf("no libvirtd: %w", err)
	}
	pidFile := h.Outside("/libvirtd.pid")
	if err := os.RemoveAll(pidFile); err != nil {
		return err
	}
	args := h.Command(ctx, "perl", "-e", subreaper, "sh", "-c", keeper, "sh", pidFile, program, "--listen").Args
	started, err := startDaemon(ctx, h.libvirtLog(), args[0], args[1:]...)
	if err != nil {
		return err
	}
	h.keepers = append(h.keepers, started)
	err = poll(ctx, libvirtPatience, 2*time.Millisecond, func(context.Context) error {
		data, err := os.ReadFile(pidFile)
		if err != nil {
			return err
		}
		h.libvirt, err = strconv.Atoi(strings.TrimSpace(string(data)))
		return err
	})
	if err != nil {
		return fmt.Errorf("libvirtd does not start; its log ends with:\n%s\n%w", tail(h.libvirtLog()), err)
	}
	return nil
}

// waitLibvirt waits until libvirtd answers a question and knows what its QEMU can do, which it finds out when it is first
// asked: later times are then those of the work alone.
func (h *Host) waitLibvirt(ctx context.Context, limit time.Duration) error {
	err := poll(ctx, limit, 20*time.Millisecond, func(ctx context.Context) error {
		if _, err := os.Stat(h.Socket()); err != nil {
			return err
		}
		_, err := h.Virsh(ctx, "domcapabilities", "--virttype", "qemu")
		return err
	})
	if err != nil {
		return fmt.Errorf("libvirtd does not answer; its log ends with:\n%s\n%w", tail(h.libvirtLog()), err)
	}
	return nil
}

func (h *Host) libvirtLog() string { return h.Outside("/var/log/libvirt/libvirtd.log") }

// shutDown kills everything in the host and then lets those end who reap it, so that no dead process is left to process 1.
// What it leaves, after a start that failed half-way, is the sweep's.
func (h *Host) shutDown(ctx context.Context) error {
	if h.anchor == nil {
		return nil
	}
	last := []int{h.anchor.pid()}
	for _, k := range h.keepers {
		last = append(last, k.pid())
	}
	_, err := kill(ctx, h.netns, last...)
	for _, k := range h.keepers {
		k.stop()
	}
	h.anchor.kill()
	h.keepers, h.anchor, h.libvirt = nil, nil, 0
	return err
}
