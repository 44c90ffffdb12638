// Package lab starts real hypervisor hosts on one machine, for tests, the demo and benchmarks.
//
// A host is a network, mount and UTS namespace with a libvirtd of its own in it; its guests are real QEMU processes (TCG,
// so no virtualisation support is needed) that live-migrate for real between the hosts:
//
//	root namespace            ca-lab-net                     ca-lab-h1, ca-lab-h2, … (host names h1, h2, …)
//	ca-lab-mgmt 10.77.0.254 ── bridge mgmt 10.77.0.1 (NATS) ── mgmt0 10.77.0.11, .12, …   libvirtd, migration, agent
//	ca-lab-data 10.77.1.254 ── bridge data ─────────────────── data0 in bridge br-int0 ── taps of the guests
//
// A test pings the guests (10.77.1.0/24) from the root namespace, dials each libvirtd at [Host.Socket], and runs programs
// inside a host with [Host.Command]. Everything is found by its name ("ca-lab-…") and by its namespace, so [Lab.Close] and
// the sweep at the next [Start] also remove what a crashed run left: processes first, then links, namespaces and files.
// One lab runs on a machine at a time; a lock file keeps others out.
//
// The guest is a distribution kernel with an initramfs of busybox and guest/init. It handles the ACPI power button: the
// kernel's button and evdev modules make an input device of it, busybox acpid reads that and powers the guest off. So
// virsh shutdown, and a soft reboot built on it, work as with a full system.
//
// It needs root on Debian or Ubuntu, prepared by setup.sh of this folder; [Available] says what is missing.
// The package starts no goroutines: what must run beside something else ([Pinger.Run]) blocks its caller.
package lab
