package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// stateDir holds everything a running lab writes. It is fixed, so that a later run finds what a crashed one left.
	stateDir = "/var/lib/compute-agent-lab"
	// lockFile is held (flock) by the process that owns the lab. The kernel lets go of it when that process ends.
	lockFile = "/run/compute-agent-lab.lock"
	// maxHosts keeps management addresses inside 10.77.0.11 … 10.77.0.30.
	maxHosts = 20
)

// Config says what lab is wanted. The zero Config is two hosts.
type Config struct {
	Hosts        int           // how many hosts, 1 to 20; 0 means 2
	LockWait     time.Duration // how long to wait for another lab on this machine to end; 0 means not at all
	StartTimeout time.Duration // limit for all libvirtd to answer; 0 means 30 s
}

// Lab is a running lab. It belongs to the process that started it; its methods are not safe for concurrent use, those of
// its hosts are as long as nobody closes the lab.
type Lab struct {
	hosts  []*Host
	guest  Guest
	nats   []*NATS
	agents []*Agent
	lock   *os.File
}

// Start sweeps away what an earlier lab left, makes the networks and brings up the hosts, each with a libvirtd that
// answers. It takes about two seconds. The lab lives until Close, also when ctx ends earlier; after an error nothing is left.
func Start(ctx context.Context, config Config) (*Lab, error) {
	if config.Hosts == 0 {
		config.Hosts = 2
	}
	if config.StartTimeout == 0 {
		config.StartTimeout = 30 * time.Second
	}
	if config.Hosts < 1 || config.Hosts > maxHosts {
		return nil, fmt.Errorf("a lab has 1 to %d hosts, not %d", maxHosts, config.Hosts)
	}
	if err := Available(); err != nil {
		return nil, err
	}
	guest, err := findGuest()
	if err != nil {
		return nil, err
	}
	lock, err := takeLock(ctx, config.LockWait)
	if err != nil {
		return nil, err
	}
	l := &Lab{guest: guest, lock: lock}
	if err := l.bringUp(ctx, config); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot start the lab: %w", err), l.Close(ctx))
	}
	return l, nil
}

// bringUp does the work of Start; the caller cleans up after an error.
func (l *Lab) bringUp(ctx context.Context, config Config) error {
	if err := sweep(ctx); err != nil {
		return err
	}
	if err := checkAddresses(); err != nil {
		return err
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return fmt.Errorf("cannot make the lab's folder: %w", err)
	}
	for n := 1; n <= config.Hosts; n++ {
		l.hosts = append(l.hosts, newHost(n))
	}
	if err := buildNetwork(ctx, l.hosts); err != nil {
		return fmt.Errorf("cannot make the lab's networks: %w", err)
	}
	for _, h := range l.hosts {
		if err := h.bringUp(ctx, l.hosts); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
	}
	for _, h := range l.hosts {
		if err := h.waitLibvirt(ctx, config.StartTimeout); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
	}
	return nil
}

// Hosts returns the hosts, in the order h1, h2, ….
func (l *Lab) Hosts() []*Host { return l.hosts }

// Host returns host n, counted from 1, as in its name. There must be such a host.
func (l *Lab) Host(n int) *Host { return l.hosts[n-1] }

// Guest returns what a guest boots from.
func (l *Lab) Guest() Guest { return l.guest }

// GuestAddress returns the n-th address for guests (1 to 200) with the length of the data network's prefix.
func (l *Lab) GuestAddress(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 1, byte(n)}), 24)
}

// Dir returns a folder on the lab's own disk space that goes away with the lab. Every host sees it at the same path.
func (l *Lab) Dir(name string) (string, error) {
	dir := filepath.Join(stateDir, "shared", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("cannot make a folder for the lab: %w", err)
	}
	return dir, nil
}

// Close removes every process, link, namespace, mount and file of the lab. It works on when ctx has already ended; each
// of its waits is bounded. Something that is still there at the end is an error that names it. A second Close does nothing.
func (l *Lab) Close(ctx context.Context) error {
	if l.lock == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	for _, a := range l.agents {
		a.Kill()
	}
	for _, n := range l.nats {
		n.Kill()
	}
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, h.shutDown(ctx))
	}
	errs = append(errs, sweep(ctx))
	// Looked at before the lock is given back: afterwards it may be another lab's.
	left, lookErr := Remains(ctx)
	if len(left) > 0 {
		lookErr = fmt.Errorf("the lab left behind: %s", strings.Join(left, ", "))
	}
	errs = append(errs, lookErr)
	if err := l.lock.Close(); err != nil {
		errs = append(errs, fmt.Errorf("cannot unlock the lab: %w", err))
	}
	l.lock = nil
	return errors.Join(errs...)
}
