package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Guest names the files that a guest of the lab boots from. Every host sees them at the same path.
type Guest struct {
	Kernel string // a distribution's kernel for virtual machines
	Initrd string // busybox, virtio modules and guest/init
}

// Available returns nil when the lab can run here, else one error that names everything that is missing. Only root on
// Linux and amd64, after setup.sh, passes.
func Available() error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fmt.Errorf("the lab needs linux/amd64, this is %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root")
	}
	for _, program := range []string{"libvirtd", "virsh", "qemu-system-x86_64", "ip", "nsenter", "unshare", "perl", "iptables", "nats-server"} {
		if _, err := lookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	guest, err := findGuest()
	if err != nil {
		return err
	}
	for _, file := range []string{"/dev/net/tun", guest.Kernel, guest.Initrd} {
		if _, err := os.Stat(file); err != nil {
			missing = append(missing, file)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the lab is missing: %s (test/lab/setup.sh, as root on Debian or Ubuntu, prepares a machine)",
			strings.Join(missing, ", "))
	}
	return nil
}

// findGuest returns where setup.sh puts the guest: $COMPUTE_AGENT_LAB_CACHE, or .cache/compute-agent-lab at home.
func findGuest() (Guest, error) {
	cache := os.Getenv("COMPUTE_AGENT_LAB_CACHE")
	if cache == "" {
		home := os.Getenv("HOME")
		if home == "" {
			home = "/root"
		}
		cache = filepath.Join(home, ".cache", "compute-agent-lab")
	}
	cache, err := filepath.Abs(cache)
	if err != nil {
		return Guest{}, fmt.Errorf("cannot find the guest's folder: %w", err)
	}
	return Guest{Kernel: filepath.Join(cache, "vmlinuz"), Initrd: filepath.Join(cache, "initrd")}, nil
}

// lookPath finds a program, also in the administrator's folders, which a PATH may lack.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil || !errors.Is(err, exec.ErrNotFound) {
		return path, err
	}
	return exec.LookPath(filepath.Join("/usr/sbin", program))
}
