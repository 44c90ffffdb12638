package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sweepPatience is how long killed processes may take to leave their namespace.
const sweepPatience = 10 * time.Second

// Remains lists what a lab has on this machine: namespaces, processes in them, links in the root namespace, files.
// It is empty when no lab runs and none was left behind.
func Remains(ctx context.Context) ([]string, error) {
	var found []string
	spaces, err := namespaces(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range spaces {
		found = append(found, "namespace "+name)
		pids, err := processes(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			found = append(found, fmt.Sprintf("process %d in %s", pid, name))
		}
	}
	links, err := rootLinks(ctx)
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		found = append(found, "link "+link)
	}
	if _, err := os.Stat(stateDir); err == nil {
		found = append(found, "folder "+stateDir)
	}
	return found, nil
}

// sweep removes all of it. The caller holds the lock.
func sweep(ctx context.Context) error {
	spaces, err := namespaces(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range spaces {
		errs = append(errs, killAll(ctx, name))
	}
	links, err := rootLinks(ctx)
	errs = append(errs, err)
	for _, link := range links {
		errs = append(errs, ip(ctx, "", "link del "+link))
	}
	for _, name := range spaces {
		errs = append(errs, ip(ctx, "", "netns del "+name))
	}
	errs = append(errs, os.RemoveAll(stateDir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot sweep the lab: %w", err)
	}
	return nil
}

// killAll kills everything in a network namespace and waits until it is gone.
func killAll(ctx context.Context, netns string) error {
	return poll(ctx, sweepPatience, 5*time.Millisecond, func(ctx context.Context) error {
		pids, err := kill(ctx, netns)
		if err == nil && len(pids) > 0 {
			err = fmt.Errorf("processes %v are still in %s", pids, netns)
		}
		return err
	})
}

// kill sends SIGKILL to everything in a network namespace but the spared ones, and returns whom it sent it to.
func kill(ctx context.Context, netns string, spared ...int) ([]int, error) {
	pids, err := processes(ctx, netns)
	pids = slices.DeleteFunc(pids, func(pid int) bool { return slices.Contains(spared, pid) })
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is as good
	}
	return pids, err
}

// namespaces lists the lab's network namespaces.
func namespaces(ctx context.Context) ([]string, error) {
	return names(ctx, func(line string) string { return line }, "netns", "list")
}

// rootLinks lists the lab's links in the root namespace; of "ca-lab-mgmt@if3" only the name counts.
func rootLinks(ctx context.Context) ([]string, error) {
	return names(ctx, func(line string) string {
		name, _, _ := strings.Cut(line, "@")
		return name
	}, "-br", "link", "show")
}

// names returns the first word of each line that ip prints, as trim leaves it, where it is the lab's.
func names(ctx context.Context, trim func(string) string, args ...string) ([]string, error) {
	out, err := run(exec.CommandContext(ctx, "ip", args...), "")
	if err != nil {
		return nil, err
	}
	var found []string
	lines := bufio.NewScanner(strings.NewReader(out))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) > 0 && strings.HasPrefix(words[0], prefix) {
			found = append(found, trim(words[0]))
		}
	}
	return found, lines.Err()
}

// processes lists the process ids in a network namespace.
func processes(ctx context.Context, netns string) ([]int, error) {
	out, err := run(exec.CommandContext(ctx, "ip", "netns", "pids", netns), "")
	if err != nil {
		return nil, err
	}
	var pids []int
	for word := range strings.FieldsSeq(out) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("cannot read the process ids of %s: %w", netns, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}
