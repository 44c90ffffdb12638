#!/bin/bash
# The demo: two hosts, one instance, a live migration with its progress, a soft reboot, a timeline of what happened.
#   DRIVER=fake     (default) both hosts are simulated in one process, with an embedded NATS; a few seconds, no root
#   DRIVER=libvirt  real QEMU guests on two real libvirtd in network namespaces; as root on Debian or Ubuntu
# `make demo` builds the program and calls this. `demo.sh tour` is the part that both kinds share.
set -euo pipefail
cd "$(dirname "$0")/../.."
export BIN=${BIN:-$PWD/bin/compute-agent}
bold='' plain=''
if [ -t 1 ]; then
	bold=$'\e[1m' plain=$'\e[0m'
fi

# say a line for people; show a command and run it.
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
show() { printf '$ compute-agent %s\n' "$*"; "$BIN" "$@"; }

# tour walks through the main job on the hosts HOST1 and HOST2.
tour() {
	local create=(instance create --host "$HOST1" --name web1 --vcpus 1 --memory 128 --port "bridge=$BRIDGE${ADDRESS:+,mac=$(mac "$ADDRESS")}")
	if [ -n "${KERNEL:-}" ]; then
		create+=(--kernel "$KERNEL" --initrd "$INITRD" --cmdline "$CMDLINE" --cpu qemu64)
	fi
	both_up
	say "Two hosts"
	show host list
	say "An instance on $HOST1"
	show "${create[@]}"
	answers
	say "It moves to $HOST2 while it runs"
	show migration start web1 --to "$HOST2" --bandwidth "${BANDWIDTH:-48}"
	answers
	say "A soft reboot: the guest is asked by its power button, then started again"
	show instance reboot web1
	answers
	show instance list
	say "What happened"
	show events --instance web1
}

# both_up waits until both hosts have told what their hypervisor has.
both_up() {
	for _ in $(seq 100); do
		if [ "$("$BIN" host list -o json 2>/dev/null | grep -c '"hypervisor": *"connected"' || true)" = 2 ]; then
			return
		fi
		sleep 0.1
	done
	echo "the hosts did not come up within 10 s" >&2
	return 1
}

# mac is the address that the lab's guest answers under.
mac() { local IFS=.; read -ra part <<<"$1"; printf '52:54:00:%02x:%02x:%02x' "${part[1]}" "${part[2]}" "${part[3]}"; }

# answers waits until a real guest answers ping.
answers() {
	[ -n "${ADDRESS:-}" ] || return 0
	for _ in $(seq 60); do
		if ping -c 1 -W 1 "$ADDRESS" >/dev/null 2>&1; then
			echo "the guest answers ping at $ADDRESS"
			return
		fi
	done
	echo "the guest did not answer ping at $ADDRESS within a minute" >&2
	return 1
}

# simulated starts two simulated hosts with an embedded NATS and gives them the tour.
simulated() {
	local port
	dir=$(mktemp -d)
	port=$((20000 + RANDOM % 20000))
	export COMPUTE_AGENT_RPC_URL=nats://127.0.0.1:$port HOST1=node-1 HOST2=node-2 BRIDGE=br-int0
	COMPUTE_AGENT_RPC_EMBEDDED_LISTEN=127.0.0.1:$port "$BIN" run --driver fake --host node --hosts 2 --rpc-url embedded \
		--state-dir "$dir/state" >"$dir/log" 2>&1 &
	pid=$!
	trap 'kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; rm -rf "$dir"' EXIT # both are global: a trap outlives its function
	if ! test/demo/demo.sh tour; then
		echo "the agents said:" >&2
		cat "$dir/log" >&2
		return 1
	fi
}

# real starts two real hypervisor hosts and gives them the tour.
real() {
	local rc=0
	test/lab/setup.sh || rc=$?
	if [ "$rc" -ne 0 ]; then
		exit "$rc" # setup.sh has said what is missing
	fi
	go run ./test/lab/up -agent "$BIN" -- test/demo/demo.sh tour
}

case "${1:-}" in
tour) tour ;;
*) case "${DRIVER:-fake}" in
	fake) simulated ;;
	libvirt) real ;;
	*)
		echo "DRIVER=$DRIVER: use fake or libvirt" >&2
		exit 2
		;;
	esac ;;
esac
