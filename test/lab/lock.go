package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// lockStep is how often a busy lock is asked again.
const lockStep = 20 * time.Millisecond

// takeLock makes this process the owner of the machine's lab, waiting at most wait for another owner to end. Children
// don't inherit the lock.
func takeLock(ctx context.Context, wait time.Duration) (*os.File, error) {
	file, err := os.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lab's lock: %w", err)
	}
	try := func(context.Context) error { return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }
	err = try(ctx)
	if errors.Is(err, syscall.EWOULDBLOCK) && wait > 0 {
		err = poll(ctx, wait, lockStep, try)
	}
	if err != nil {
		owner, _ := os.ReadFile(lockFile)
		_ = file.Close()
		return nil, fmt.Errorf("another lab runs on this machine (%s); wait for it to end, or end it: %w",
			strings.TrimSpace(string(owner)), err)
	}
	if err := signLock(file); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("cannot write the lab's lock: %w", err)
	}
	return file, nil
}

// signLock writes who holds the lock, for the message that the next one sees.
func signLock(file *os.File) error {
	if err := file.Truncate(0); err != nil {
		return err
	}
	_, err := fmt.Fprintf(file, "process %d, %s, since %s\n", os.Getpid(), os.Args[0], time.Now().Format(time.TimeOnly))
	return err
}
