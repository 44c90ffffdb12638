#!/bin/sh
# Makes sure that a C compiler is there, which the race detector needs. As root on Debian or Ubuntu it installs gcc;
# elsewhere it says what is missing.
set -eu

cc=$(go env CC)
cc=${cc%% *}
if command -v "$cc" >/dev/null 2>&1; then
	exit 0
fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
	echo "no C compiler ($cc): installing gcc, which the race detector needs"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null
	exit 0
fi
echo "no C compiler ($cc): the race detector needs one. Install gcc (Debian, Ubuntu: apt-get install gcc libc6-dev)" >&2
exit 1
