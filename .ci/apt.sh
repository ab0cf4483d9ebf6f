#!/usr/bin/env bash
# .ci/apt.sh ARGUMENTS…: apt-get that asks nothing, and waits for up to ten minutes while another apt is at work, as on
# every fresh cloud machine. DPkg::Lock::Timeout is for dpkg's lock alone. The locks of the package lists and of the
# downloads end apt-get at once, so it is tried again while it complains of a lock.
set -euo pipefail
limit=600

# RUNLEVEL=1 keeps Debian's packages from starting their own servers; Millrace starts private ones.
export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive LC_ALL=C
complaint=$(mktemp)
trap 'rm -f "$complaint"' EXIT
waiting=
while true; do
	status=0
	apt-get -qq -o DPkg::Lock::Timeout=$limit "$@" 2>"$complaint" || status=$?
	if [ $status = 0 ] || [ $SECONDS -ge $limit ] || ! grep -qE 'Could not get lock|Unable to (acquire|lock)' "$complaint"; then
		cat "$complaint" >&2
		exit $status
	fi
	[ -n "$waiting" ] || echo "Another apt is at work; waiting for it" >&2
	waiting=yes
	sleep 1
done
