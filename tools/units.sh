#!/bin/sh
# Checks systemd/ with systemd's own tools. The unit is checked as it would stand on a host, with a program that exists.
set -eu
cd "$(dirname "$0")/../systemd"

if ! command -v systemd-analyze >/dev/null 2>&1; then
	echo "UNITS SKIPPED: systemd-analyze isn't installed"
	exit 0
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
sed 's|^ExecStart=/usr/bin/compute-agent|ExecStart=/bin/true|' compute-agent.service >"$dir/compute-agent.service"
# systemd-analyze names what it ignores (an unknown key, a bad value) and still succeeds: anything it says is a fault.
out=$(systemd-analyze verify --man=no "$dir/compute-agent.service" 2>&1) || out="${out:-systemd-analyze failed}"
if [ -n "$out" ]; then
	printf '%s\n' "$out"
	exit 1
fi
if command -v systemd-sysusers >/dev/null 2>&1; then
	systemd-sysusers --root="$dir" --dry-run "$PWD/compute-agent.sysusers"
fi
systemd-analyze security --offline=yes "$dir/compute-agent.service" 2>/dev/null | tail -n 1
