#!/bin/bash
# Runs the lab (test/lab): the main scenario on real hypervisors. Where it can't run it prints one line that begins
# "LAB SKIPPED:" and succeeds, unless LAB=required: then that is a failure, and so is a lab test that skips itself.
#
#   LAB                required | anything else
#   LAB_SETUP_TIMEOUT  seconds for the set-up, which installs packages (default 600)
#   LAB_TIMEOUT        limit of the tests as `go test -timeout` has it (default 15m)
#   TESTFLAGS          more flags for go test
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
	if [ "${LAB:-}" = required ]; then
		echo "LAB FAILED: it is required and can't run: $1" >&2
		exit 1
	fi
	echo "LAB SKIPPED: $1"
	exit 0
}

setup=test/lab/setup.sh
[ -x "$setup" ] || skip "$setup is missing"

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# The set-up says why in its last line and exits with 3 when this machine can't run a lab.
rc=0
timeout "${LAB_SETUP_TIMEOUT:-600}" "$setup" 2>&1 | tee "$log" || rc=$?
case $rc in
0) ;;
3) skip "$(grep -v '^[[:space:]]*$' "$log" | tail -n 1)" ;;
124) skip "$setup took more than ${LAB_SETUP_TIMEOUT:-600} s" ;;
*)
	echo "LAB FAILED: $setup ended with code $rc" >&2
	exit 1
	;;
esac

# shellcheck disable=SC2086 # TESTFLAGS are words.
COMPUTE_AGENT_LAB=1 CGO_ENABLED=1 go test -race -count=1 -v -timeout "${LAB_TIMEOUT:-15m}" ${TESTFLAGS:-} ./test/lab/... 2>&1 |
	tee "$log"

if grep -qE '^[[:space:]]*--- SKIP' "$log"; then
	skip "these tests skipped themselves: $(grep -oE -- '--- SKIP: [^ ]+' "$log" | cut -d' ' -f3 | tr '\n' ' ')"
fi
grep -qE '^[[:space:]]*--- PASS' "$log" || skip "it has no test"
