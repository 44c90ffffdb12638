package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/green"
)

// agentPatience is how long an agent may take until it says READY.
const agentPatience = 20 * time.Second

// instancesPath is where agents of the lab keep what belongs to guests: the same path on every host, and each host's own.
const instancesPath = "/var/lib/libvirt/instances"

// Agent is a compute-agent that runs inside a host of the lab, as its service would.
type Agent struct {
	Host  *Host
	Ready time.Duration // from its start to READY=1

	lab    *Lab
	binary string
	config string
	daemon *daemon        // nil while stopped
	notify net.PacketConn // on which the agent tells how it is, as it would tell the service manager; nil while stopped
}

// Agent starts the program binary as the agent of host h on the bus at natsURL and waits until it says READY to a
// service manager. options are lines of TOML below the lab's own, of section libvirt until another one is named. Its journal is in the lab's folder:
// it survives Stop, Kill and Start, not Close.
func (l *Lab) Agent(ctx context.Context, h *Host, binary, natsURL string, options ...string) (*Agent, error) {
	dir, err := l.Dir("agent-" + h.Name)
	if err != nil {
		return nil, err
	}
	a := &Agent{Host: h, lab: l, binary: binary, config: filepath.Join(dir, "compute-agent.toml")}
	if err := os.WriteFile(a.config, []byte(a.toml(dir, natsURL, options)), 0o600); err != nil {
		return nil, err
	}
	if err := a.Start(ctx); err != nil {
		a.Kill()
		return nil, err
	}
	l.agents = append(l.agents, a)
	return a, nil
}

func (a *Agent) toml(dir, natsURL string, options []string) string {
	return fmt.Sprintf(`[agent]
host = %q
driver = "libvirt"
state_dir = %q
[rpc]
url = %q
[log]
format = "text"
level = "debug"
[libvirt]
virt_type = "qemu"
instances_path = %q
live_migration_uri = "qemu+tcp://%%s/system"
live_migration_inbound_addr = %q
tls_dir = %q
%s
`, a.Host.Name, filepath.Join(dir, "state"), natsURL, instancesPath, a.Host.Address, TLSDir, strings.Join(options, "\n"))
}

// Binary is the program that the agent is.
func (a *Agent) Binary() string { return a.binary }

// Log is the file that the agent writes to.
func (a *Agent) Log() string { return strings.TrimSuffix(a.config, ".toml") + ".log" }

// Start starts the agent again after Stop or Kill, on the same journal, and waits for READY. On one that runs it does
// nothing.
func (a *Agent) Start(ctx context.Context) error {
	if a.daemon != nil {
		return nil
	}
	socket := strings.TrimSuffix(a.config, ".toml") + ".notify"
	_ = os.Remove(socket)
	ready, err := new(net.ListenConfig).ListenPacket(ctx, "unixgram", socket)
	if err != nil {
		return err
	}
	a.notify = ready
	begin := time.Now()
	// A service has a clean environment: nothing of the tester's configures the agent.
	enter := a.Host.Command(ctx, "env", "-i", "PATH="+os.Getenv("PATH"), "NOTIFY_SOCKET="+socket, a.binary, "run", "--config", a.config).Args
	if a.daemon, err = startDaemon(ctx, a.Log(), enter[0], enter[1:]...); err != nil {
		a.deaf()
		return err
	}
	if err := awaitReady(ready, begin.Add(agentPatience)); err != nil {
		return fmt.Errorf("the agent of %s is not ready; its log ends with:\n%s\n%w", a.Host.Name, tail(a.Log()), err)
	}
	a.Ready = time.Since(begin)
	green.SpawnN(context.WithoutCancel(ctx), func(context.Context) error { drain(ready); return nil })
	return nil
}

// drain reads what the agent says of itself until deaf, so that saying it never fails.
func drain(c net.PacketConn) {
	_ = c.SetReadDeadline(time.Time{}) // a closed one is noticed below
	buffer := make([]byte, 4096)
	for {
		if _, _, err := c.ReadFrom(buffer); err != nil {
			return
		}
	}
}

// deaf ends listening to an agent that has ended.
func (a *Agent) deaf() {
	if a.notify != nil {
		_ = a.notify.Close() // nothing is written to it
		a.notify = nil
	}
}

// awaitReady reads what a service manager would, until READY=1.
func awaitReady(c net.PacketConn, deadline time.Time) error {
	if err := c.SetReadDeadline(deadline); err != nil {
		return err
	}
	buffer := make([]byte, 4096)
	for {
		n, _, err := c.ReadFrom(buffer)
		if err != nil {
			return err
		}
		if slices.Contains(strings.Split(string(buffer[:n]), "\n"), "READY=1") {
			return nil
		}
	}
}

// Stop ends the agent in order (SIGTERM); guests and migrations go on.
func (a *Agent) Stop() {
	if a.daemon != nil {
		a.daemon.stop()
		a.daemon = nil
		a.deaf()
	}
}

// Kill ends the agent at once (SIGKILL).
func (a *Agent) Kill() {
	if a.daemon != nil {
		a.daemon.kill()
		a.daemon = nil
		a.deaf()
	}
}

// PID is the process id of the running agent, 0 when it is stopped.
func (a *Agent) PID() int {
	if a.daemon == nil {
		return 0
	}
	return a.daemon.pid()
}
