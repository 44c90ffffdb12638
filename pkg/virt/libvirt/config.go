package libvirt

import (
	"context"
	"net"
	"path/filepath"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Config is all that can be chosen. The zero value works on a host with libvirt's
// usual folders.
type Config struct {
	// SocketPath is libvirtd's (or virtqemud's) unix socket. Default /run/libvirt/libvirt-sock.
	SocketPath string
	// URI is the hypervisor asked for on that socket. Default qemu:///system.
	URI string
	// InstancesPath holds one folder per instance: overlays and console log. It must be the
	// same on all hosts that guests move between. Default /var/lib/compute-agent/instances.
	InstancesPath string
	// LocalInstancesPath is the same folder as this process sees it, if it runs in another
	// mount namespace than libvirt (a container, a test). Default: InstancesPath.
	LocalInstancesPath string
	// VirtType is auto, kvm or qemu (plain emulation). Default auto: kvm where the host has it.
	VirtType string
	// Machine is the machine type of guests that name none. Default q35.
	Machine string
	// CPUModel is the CPU of emulated guests that name none. Default qemu64.
	CPUModel string
	// QemuImg is the program that makes overlays (Debian: qemu-utils). Default qemu-img.
	QemuImg string

	// LiveMigrationURI is where guests are sent to this host, %s being the inbound
	// address: nova's live_migration_uri. Default qemu+tls://%s/system.
	LiveMigrationURI string
	// InboundAddr is this host's address for migrations: nova's
	// live_migration_inbound_addr. Default: the host name; then no migrate URI is given.
	InboundAddr string

	// NativeTLS encrypts the memory stream with QEMU's own TLS: nova's
	// live_migration_with_native_tls. Both hosts need QEMU's certificates. Default false.
	NativeTLS bool
	// TLSDir is where they are, as qemu.conf's migrate_tls_x509_cert_dir says; they are looked
	// at before a migration as far as this process may read them. Default /etc/pki/qemu.
	TLSDir string

	// CallTimeout bounds every call that has no bound of its own. Default 30 s.
	CallTimeout time.Duration
	// ConnectTimeout bounds dialling and greeting. Default 10 s.
	ConnectTimeout time.Duration
	// StartTimeout bounds start and restore. Default 5 min (a restore reads the memory from disk).
	StartTimeout time.Duration
	// DestroyTimeout bounds destroy; libvirt itself waits up to 40 s for a stuck QEMU. Default 60 s.
	DestroyTimeout time.Duration
	// SaveTimeout bounds save, which writes the memory to disk. Default 30 min.
	SaveTimeout time.Duration
	// MigrateTimeout bounds one perform. The monitor ends a migration long before. Default 24 h.
	MigrateTimeout time.Duration
	// DetachTimeout is how long a guest may take to let go of an interface before it is asked
	// again: nova's device_detach_timeout. Default 20 s.
	DetachTimeout time.Duration
	// DetachAttempts is how often it is asked: nova's device_detach_attempts. Default 8.
	DetachAttempts int
	// FilesTimeout bounds making one overlay. Default 60 s.
	FilesTimeout time.Duration
	// PingInterval is how often an idle connection is tried. Default 10 s.
	PingInterval time.Duration
	// ReconnectFirst and ReconnectLimit are the first and the longest sleep between two
	// attempts to connect; each is First longer than the one before, and jittered. Defaults 200 ms and 10 s.
	ReconnectFirst, ReconnectLimit time.Duration
	// CallsPerConnection is how many calls may be in flight on one connection; libvirtd's
	// max_client_requests is 5. Default 4.
	CallsPerConnection int
	// MaxMigrations is how many performs may run at a time, each on its own connection.
	// Others wait. Default 4.
	MaxMigrations int
	// EventBacklog is how many events may wait for slow subscribers before the connection
	// is given up and made anew. Default 10,000.
	EventBacklog int

	// Log, if set, takes one line per change of the connection and per call that hung.
	Log func(ctx context.Context, msg string, err error)

	dial func(ctx context.Context) (net.Conn, error) // tests: instead of SocketPath
}

// WithDefaults fills in what is not set.
func (c Config) WithDefaults() Config {
	text := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	text(&c.SocketPath, "/run/libvirt/libvirt-sock")
	text(&c.URI, "qemu:///system")
	text(&c.InstancesPath, "/var/lib/compute-agent/instances")
	text(&c.LocalInstancesPath, c.InstancesPath)
	text(&c.VirtType, "auto")
	text(&c.Machine, "q35")
	text(&c.CPUModel, "qemu64")
	text(&c.QemuImg, "qemu-img")
	text(&c.LiveMigrationURI, "qemu+tls://%s/system")
	text(&c.TLSDir, "/etc/pki/qemu")
	setDurations(&c)
	count := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	count(&c.CallsPerConnection, 4)
	count(&c.MaxMigrations, 4)
	count(&c.EventBacklog, 10_000)
	count(&c.DetachAttempts, 8)
	if c.Log == nil {
		c.Log = func(context.Context, string, error) {}
	}
	if c.dial == nil {
		c.dial = func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.SocketPath)
		}
	}
	return c
}

func setDurations(c *Config) {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&c.CallTimeout, 30*time.Second)
	set(&c.ConnectTimeout, 10*time.Second)
	set(&c.StartTimeout, 5*time.Minute)
	set(&c.DestroyTimeout, time.Minute)
	set(&c.SaveTimeout, 30*time.Minute)
	set(&c.MigrateTimeout, 24*time.Hour)
	set(&c.FilesTimeout, time.Minute)
	set(&c.DetachTimeout, 20*time.Second)
	set(&c.PingInterval, 10*time.Second)
	set(&c.ReconnectFirst, 200*time.Millisecond)
	set(&c.ReconnectLimit, 10*time.Second)
}

func (c Config) check() error {
	bad := func(option, format string, args ...any) error {
		return fault.Newf(fault.InvalidArgument, "libvirt_config", option, format, args...)
	}
	switch c.VirtType {
	case "auto", "kvm", "qemu":
	default:
		return bad("virt_type", "%q: use auto, kvm or qemu", c.VirtType)
	}
	if !filepath.IsAbs(c.InstancesPath) {
		return bad("instances_path", "%q is not an absolute path", c.InstancesPath)
	}
	if _, err := destinationURI(c.LiveMigrationURI, "host"); err != nil {
		return bad("live_migration_uri", "%q is not a URI with one %%s for the host", c.LiveMigrationURI)
	}
	return nil
}
