package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// libvirtPort is where libvirtd listens for other hosts.
const libvirtPort = 16509

// Freeze stops the agent's process where it is (SIGSTOP): it hears and says nothing, and its connections stay open. It
// does nothing to an agent that is stopped.
func (a *Agent) Freeze() { a.signal(syscall.SIGSTOP) }

// Thaw lets a frozen agent go on.
func (a *Agent) Thaw() { a.signal(syscall.SIGCONT) }

func (a *Agent) signal(s syscall.Signal) {
	if pid := a.PID(); pid != 0 {
		_ = syscall.Kill(pid, s) // one that has ended is as good as frozen
	}
}

// FreezeLibvirt stops the host's libvirtd where it is (SIGSTOP), or lets it go on. It does nothing to one that was
// stopped or killed.
func (h *Host) FreezeLibvirt(frozen bool) {
	s := syscall.SIGCONT
	if frozen {
		s = syscall.SIGSTOP
	}
	if h.libvirt != 0 {
		_ = syscall.Kill(h.libvirt, s) // one that has ended is as good as frozen
	}
}

// QEMU gives the process id of the QEMU that holds the guest with this UUID on the host; 0 if there is none. It does
// not ask libvirt.
func (h *Host) QEMU(ctx context.Context, uuid string) (int, error) {
	pids, err := processes(ctx, h.netns)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		words, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err != nil {
			continue // it ended meanwhile
		}
		program, _, _ := bytes.Cut(words, []byte{0})
		if strings.Contains(string(program), "qemu") && bytes.Contains(words, []byte("\x00-uuid\x00"+uuid+"\x00")) {
			return pid, nil
		}
	}
	return 0, nil
}

// KillQEMU ends the QEMU of a guest at once (SIGKILL). An error if there is none.
func (h *Host) KillQEMU(ctx context.Context, uuid string) error {
	pid, err := h.QEMU(ctx, uuid)
	if err != nil {
		return err
	}
	if pid == 0 {
		return fmt.Errorf("%s has no QEMU of guest %s", h.Name, uuid)
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// MuteLibvirt makes the host's libvirtd silent to the other hosts: it hears them, and nothing it answers arrives.
// What has been established stays so.
func (h *Host) MuteLibvirt(ctx context.Context) error {
	return h.filter(ctx, "-A", "OUTPUT", "-p", "tcp", "--sport", strconv.Itoa(libvirtPort), "-j", "DROP")
}

// ResetLibvirt breaks the connections that this host's libvirtd has to those of others, as soon as it says something
// on them (keepalive: within 5 s).
func (h *Host) ResetLibvirt(ctx context.Context) error {
	return h.filter(ctx, "-A", "OUTPUT", "-p", "tcp", "--dport", strconv.Itoa(libvirtPort), "-j", "REJECT", "--reject-with", "tcp-reset")
}

// streamPorts is where QEMUs listen for guests (qemu.conf's migration_port_min and _max).
const streamPorts = "49152:49215"

// ResetStream breaks the connections on which this host's QEMUs send guests to others, and lets no new one come about.
func (h *Host) ResetStream(ctx context.Context) error {
	return h.filter(ctx, "-A", "OUTPUT", "-p", "tcp", "--dport", streamPorts, "-j", "REJECT", "--reject-with", "tcp-reset")
}

// BreakStream breaks the connections on which this host's QEMUs send guests to others, so that both ends notice, and lets
// no new one come about until Unfilter. A QEMU that waits for a page of its guest while it holds its big lock tells nobody:
// cut the guests off their network first, and let them run in post-copy for a while.
func (h *Host) BreakStream(ctx context.Context) error {
	low, high, _ := strings.Cut(streamPorts, ":")
	_, err := run(h.Command(ctx, "ss", "-K", "-t", "( dport >= :"+low+" and dport <= :"+high+" )"), "")
	return errors.Join(err, h.ResetStream(ctx))
}

// StreamPeers gives the other ends of the connections on which this host's QEMUs send guests, one for each connection.
func (h *Host) StreamPeers(ctx context.Context) ([]netip.AddrPort, error) {
	low, high, _ := strings.Cut(streamPorts, ":")
	out, err := run(h.Command(ctx, "ss", "-Htn", "state", "established", "( dport >= :"+low+" and dport <= :"+high+" )"), "")
	if err != nil {
		return nil, err
	}
	var peers []netip.AddrPort
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		peer, err := netip.ParseAddrPort(strings.ReplaceAll(words[len(words)-1], "::ffff:", ""))
		if err != nil {
			return nil, fmt.Errorf("ss says %q: %w", line, err)
		}
		peers = append(peers, peer)
	}
	return peers, nil
}

// Unfilter takes back MuteLibvirt, ResetLibvirt and ResetStream.
func (h *Host) Unfilter(ctx context.Context) error { return h.filter(ctx, "-F", "OUTPUT") }

func (h *Host) filter(ctx context.Context, args ...string) error {
	program, err := lookPath("iptables")
	if err != nil {
		return fmt.Errorf("no iptables: %w", err)
	}
	_, err = run(h.Command(ctx, program, append([]string{"-w"}, args...)...), "")
	return err
}
