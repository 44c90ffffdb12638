package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// stopPatience is how long a daemon may take to end after SIGTERM before it is killed.
const stopPatience = 5 * time.Second

// run executes a program to its end, feeds it stdin and returns its standard output. The error carries what it complained
// about.
func run(cmd *exec.Cmd, stdin string) (string, error) {
	var stdout, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %s: %w", strings.Join(cmd.Args, " "), strings.TrimSpace(stderr.String()), err)
	}
	return stdout.String(), nil
}

// ip feeds a script to ip(8) inside a network namespace ("" is the root namespace).
func ip(ctx context.Context, netns, script string) error {
	args := []string{"-batch", "-"}
	if netns != "" {
		args = append([]string{"-n", netns}, args...)
	}
	_, err := run(exec.CommandContext(ctx, "ip", args...), script)
	return err
}

// daemon is a program that runs until it is stopped.
type daemon struct {
	cmd    *exec.Cmd
	cancel context.CancelFunc
}

// startDaemon starts a program whose output goes to a file. It lives until stop or kill, not until ctx ends, and in a
// process group of its own, so that an interrupt typed at the terminal reaches only the one who must close the lab.
func startDaemon(ctx context.Context, logFile, name string, args ...string) (*daemon, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the log of %s: %w", name, err)
	}
	defer log.Close() //nolint:errcheck // the child has its own descriptor
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopPatience
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	return &daemon{cmd: cmd, cancel: cancel}, nil
}

// pid is the process id of the running program.
func (d *daemon) pid() int { return d.cmd.Process.Pid }

// stop asks the program to end, kills it after stopPatience, and reaps it. How it ended is of no interest: it was told to.
func (d *daemon) stop() {
	d.cancel()
	_ = d.cmd.Wait()
}

// kill ends the program at once (SIGKILL) and reaps it.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
	d.cancel()
}

// poll calls try every step until it succeeds; when the limit is over it returns the last error.
func poll(ctx context.Context, limit, step time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(step)
	defer ticker.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up after %s: %w", limit, err)
		case <-ticker.C:
		}
	}
}

// tail returns the last bytes of a file, for an error message.
func tail(file string) string {
	const most = 2000
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	if len(data) > most {
		data = data[len(data)-most:]
	}
	return strings.TrimSpace(string(data))
}
