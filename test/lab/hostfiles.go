package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ownFolders are the folders that each host has for itself, bound over the machine's. All of /run: libvirt's sockets, and
// neither D-Bus nor systemd of the machine can be reached, so that libvirt registers nothing there.
var ownFolders = []string{"/run", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt"}

// TLSDir is where the QEMUs of each host look for certificates, when a guest comes or goes over TLS.
const TLSDir = "/etc/libvirt/pki"

// anchorScript turns a fresh mount and UTS namespace into a host. Its arguments: the host name, the host's folder. It
// mounts /sys anew, because /sys/class/net shows the network namespace of whoever mounted it. It says "ready" by making a
// file and then sleeps: the namespaces live as long as it does.
const anchorScript = `
hostname "$1" 2>/dev/null || echo "$1" >/proc/sys/kernel/hostname
umount -l /sys && mount -t sysfs none /sys
for path in /etc/hosts /etc/machine-id /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /run; do
	if [ -e "$path" ]; then mount --bind "$2$path" "$path"; fi
done
: >"$2/ready"
exec sleep infinity`

// anchorPatience is the limit for a host's namespaces to be set up.
const anchorPatience = 10 * time.Second

// bringUp writes the host's files, makes its namespaces and starts libvirtd without waiting for it.
func (h *Host) bringUp(ctx context.Context, hosts []*Host) error {
	if err := h.writeFiles(hosts); err != nil {
		return fmt.Errorf("cannot write its files: %w", err)
	}
	home := h.Outside("/")
	log := h.Outside("/anchor.log")
	var err error
	h.anchor, err = startDaemon(ctx, log, "nsenter", "--net="+netnsFile(h.netns), "unshare", "--mount", "--uts",
		"--propagation", "private", "sh", "-euc", anchorScript, "sh", h.Name, strings.TrimSuffix(home, "/"))
	if err != nil {
		return err
	}
	err = poll(ctx, anchorPatience, 5*time.Millisecond, func(context.Context) error {
		_, err := os.Stat(h.Outside("/ready"))
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot make its namespaces: %s: %w", tail(log), err)
	}
	return h.launchLibvirt(ctx)
}

// writeFiles makes the host's own folders and the configuration in them.
func (h *Host) writeFiles(hosts []*Host) error {
	for _, folder := range ownFolders {
		if err := os.MkdirAll(h.Outside(folder), 0o755); err != nil {
			return err
		}
	}
	var names strings.Builder
	names.WriteString("127.0.0.1 localhost\n")
	for _, other := range hosts {
		fmt.Fprintf(&names, "%s %s\n", other.Address, other.Name)
	}
	files := map[string]string{
		"/etc/hosts":                 names.String(),
		"/etc/machine-id":            fmt.Sprintf("ca1ab%027x\n", h.number),
		"/etc/libvirt/libvirtd.conf": h.libvirtdConf(),
		"/etc/libvirt/qemu.conf":     h.qemuConf(),
		"/etc/libvirt/libvirt.conf":  "",
		TLSDir + "/README":           "QEMU's certificates for migrations over TLS; a test that wants them puts them here.\n",
	}
	for path, content := range files {
		file := h.Outside(path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// libvirtdConf: the host needs a UUID of its own, because libvirt refuses to migrate to a host with the same one, and takes
// it from the firmware otherwise. TCP without authentication is open on the lab's own network only.
func (h *Host) libvirtdConf() string {
	return fmt.Sprintf(`host_uuid = "ca1ab000-0000-4000-8000-%012x"
listen_tls = 0
listen_tcp = 1
listen_addr = "%s"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
unix_sock_ro_perms = "0700"
log_level = 3
`, h.number, h.Address)
}

// qemuConf: guests as root, without security drivers, mount namespaces, control groups or virtlogd, none of which a
// namespace on a foreign machine has; migration on the management network.
func (h *Host) qemuConf() string {
	return fmt.Sprintf(`user = "root"
group = "root"
dynamic_ownership = 1
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
migration_address = "%[1]s"
migration_host = "%[1]s"
migrate_tls_x509_cert_dir = "%[2]s"
migrate_tls_x509_verify = 1
`, h.Address, TLSDir)
}
