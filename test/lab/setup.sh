#!/bin/sh
# Prepares a Debian or Ubuntu machine (amd64, root) for the lab: installs the packages it needs, fetches a kernel for the
# guest and packs the guest's initramfs. Safe to run again: a finished set-up is recognised at once. Quiet unless it fails.
#
# Exit codes: 0 ready; 3 this machine can't be prepared (one line says what is missing); anything else: a step failed.
#
# No service is left behind: packages are installed with a policy-rc.d that starts nothing (the machine's own one is put
# back), and the units of packages that this script brought are disabled.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${COMPUTE_AGENT_LAB_CACHE:-${HOME:-/root}/.cache/compute-agent-lab}
stamp=$cache/stamp
packages="libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 qemu-utils seabios ipxe-qemu
busybox-static iptables iproute2 util-linux cpio gzip xz-utils nats-server"
# Ubuntu packs its kernel modules with zstd.
if grep -qs '^ID=ubuntu' /etc/os-release; then packages="$packages zstd"; fi
libvirt_units="libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirt-guests.service
virtlogd.service virtlogd.socket virtlogd-admin.socket virtlockd.service virtlockd.socket virtlockd-admin.socket"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

cannot() {
    echo "test/lab/setup.sh: the lab can't be prepared here: $*" >&2
    exit 3
}

# quietly runs a command and shows its output only when it fails.
quietly() {
    if ! "$@" >"$log" 2>&1; then
        echo "test/lab/setup.sh: failed: $*" >&2
        tail -n 30 "$log" >&2
        return 1
    fi
}

# missing prints the packages that are not installed.
missing() {
    for p in $packages; do
        case $(dpkg-query -W -f '${Status}' "$p" 2>/dev/null) in
        "install ok installed") ;;
        *) printf '%s ' "$p" ;;
        esac
    done
}

# fingerprint changes when this script, the guest's init or the busybox does.
fingerprint() {
    cat "$here/setup.sh" "$here/guest/init" /bin/busybox 2>/dev/null | sha256sum
}

install_packages() {
    want=$(missing)
    [ -n "$want" ] || return 0
    policy=/usr/sbin/policy-rc.d
    saved=$tmp/policy-rc.d
    if [ -e $policy ] || [ -L $policy ]; then mv $policy "$saved"; fi
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    rc=0
    # shellcheck disable=SC2086 # a list of words
    { quietly apt-get update && quietly apt-get install -y --no-install-recommends $want; } || rc=$?
    rm -f $policy
    if [ -e "$saved" ] || [ -L "$saved" ]; then mv "$saved" $policy; fi
    [ $rc -eq 0 ] || return $rc
    disable_services "$want"
}

# disable_services keeps what this script installed ($1) from starting at the next boot; what was there before stays as it
# was. systemctl disable edits links only: it needs no running systemd and stops nothing.
disable_services() {
    # shellcheck disable=SC2086 # a list of words
    case " $1 " in *" libvirt-daemon-system "*) disable $libvirt_units ;; esac
    case " $1 " in *" nats-server "*) disable nats-server.service ;; esac
}

disable() {
    for unit in "$@"; do
        if command -v systemctl >/dev/null; then systemctl disable "$unit" >/dev/null 2>&1 || true; fi
        name=${unit%.service}
        if [ -e "/etc/init.d/$name" ]; then update-rc.d "$name" disable >/dev/null 2>&1 || true; fi
    done
}

# kernel_packages prints the real packages behind the distribution's small virtual-machine kernel.
kernel_packages() {
    for meta in linux-image-cloud-amd64 linux-image-virtual; do
        image=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^  *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
        [ -n "$image" ] || continue
        echo "$image"
        modules=linux-modules-${image#linux-image-}
        if apt-cache show "$modules" >/dev/null 2>&1; then echo "$modules"; fi
        return 0
    done
    echo "test/lab/setup.sh: no kernel package for the guest: neither linux-image-cloud-amd64 nor linux-image-virtual is known to apt" >&2
    return 1
}

fetch_kernel() {
    names=$(kernel_packages) || { quietly apt-get update && names=$(kernel_packages); }
    # shellcheck disable=SC2086 # a list of words
    (cd "$tmp" && { quietly apt-get download $names || { quietly apt-get update && quietly apt-get download $names; }; })
    for deb in "$tmp"/*.deb; do
        quietly dpkg -x "$deb" "$tmp/kernel"
    done
}

# add_module copies a module and prints its name; one that is built into the kernel, or unknown to it, is left out.
add_module() {
    file=$(find "$tmp/kernel" -path '*/modules/*' \( -name "$1.ko" -o -name "$1.ko.*" \) | head -n 1)
    case "$file" in
    "") return 0 ;;
    *.xz) xz -dc "$file" >"$tmp/root/lib/modules/$1.ko" ;;
    *.zst) zstd -qdc "$file" >"$tmp/root/lib/modules/$1.ko" ;;
    *) cp "$file" "$tmp/root/lib/modules/$1.ko" ;;
    esac
    echo "$1"
}

# build_guest packs busybox, the modules in the order they must be loaded, and the init.
build_guest() {
    kernel=$(find "$tmp/kernel/boot" -name 'vmlinuz-*' | head -n 1)
    mkdir -p "$tmp/root/bin" "$tmp/root/lib/modules" "$tmp/root/proc" "$tmp/root/sys" "$tmp/root/dev" "$tmp/root/tmp"
    cp /bin/busybox "$tmp/root/bin/busybox"
    install -m 755 "$here/guest/init" "$tmp/root/init"
    for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover \
        virtio_net virtio_blk evdev button; do
        add_module "$module"
    done >"$tmp/root/lib/modules/order"
    (cd "$tmp/root" && find . | cpio --quiet -o -H newc | gzip -n -9) >"$tmp/initrd"
    install -m 644 "$kernel" "$cache/vmlinuz"
    install -m 644 "$tmp/initrd" "$cache/initrd"
}

[ "$(uname -s)" = Linux ] || cannot "it needs Linux, this is $(uname -s)"
[ "$(uname -m)" = x86_64 ] || cannot "it needs an x86_64 machine, this is $(uname -m)"
command -v apt-get >/dev/null || cannot "it needs Debian or Ubuntu (no apt-get here)"
if [ -f "$stamp" ] && [ -f "$cache/vmlinuz" ] && [ -f "$cache/initrd" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ] &&
    [ -z "$(missing)" ]; then
    exit 0
fi
[ "$(id -u)" -eq 0 ] || cannot "it needs root (packages not installed yet: $(missing)and the guest's kernel)"

mkdir -p "$cache"
tmp=$(mktemp -d)
chmod 755 "$tmp"
log=$tmp/log
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
install_packages
fetch_kernel
build_guest
fingerprint >"$stamp"
