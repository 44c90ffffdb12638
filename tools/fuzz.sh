#!/bin/sh
# Runs every fuzz target for FUZZTIME (a duration, or a count such as 200000x), one after the other, and tells how often
# each was executed. An input that fails is written to testdata/fuzz of its package: keep it, it is a seed from then on.
set -eu
time=${1:-30s}
status=0
for package in $(grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u); do
	for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$package"/*_test.go | cut -d' ' -f2 | sort); do
		log=$(mktemp)
		if go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 1000x "$package" > "$log" 2>&1; then
			grep -oE 'execs: [0-9]+' "$log" | tail -1 | awk -v t="$target" -v p="$package" '{ printf "%-14s %-44s %12d executions\n", p, t, $2 }'
		else
			status=1
			cat "$log"
		fi
		rm -f "$log"
	done
done
exit $status
