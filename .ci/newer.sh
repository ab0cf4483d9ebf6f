#!/usr/bin/env bash
# The tests that talk to servers, on those of Debian 13: RabbitMQ 4.0, PostgreSQL 17 and Redis 8. (Debian 12 has 3.10, 15
# and 7.) The servers are installed into a folder, once (.ci/debian.sh); the tests run there, in namespaces of their own.
# Nothing of the machine is changed but that debootstrap is installed.
#
#   .ci/newer.sh              what make test-newer runs
#   .ci/newer.sh PATTERN PACKAGE…   the tests of these packages that match PATTERN
#   .ci/newer.sh chaos ARGUMENT…    the fault proof, with its command's arguments; its report is in bin/chaos-newer
#
# The exit status is 77 where the machine can't do it: no root and no sudo without a password, no apt, no leave to mount.
set -euo pipefail
cd "$(dirname "$0")/.."

# Packages whose tests talk to servers, with those below them. internal/chaos builds Millrace itself, and bench measures.
# What depends most on the servers' versions comes first: with NEWER_SECONDS no package begins after that time.
tests=(./migrations ./internal/pg ./internal/broker ./internal/policy ./worker/... ./query/... ./api/... ./internal/localstack)
# Of these packages the tests that need no other program than the servers, and no Go.
some_tests='TestRunStores|TestStackRuns|TestKilledProcesses|TestNodesOfACluster|TestEveryForm|TestAKeyReused|TestARestoredDump|TestFramesInQueues|TestTheWritersRole|TestTheReadersRole|TestTheOwnersConnection'
some=(internal/cli internal/e2e deploy)

cannot() {
	echo "Not tested on newer servers: $*" >&2
	exit 77
}

# shellcheck source=.ci/debian.sh
. .ci/debian.sh
as_root true
as_root unshare --mount --uts --pid --fork true 2>/dev/null || cannot "this machine gives no namespaces (unshare --mount --uts --pid)"

ensure_debian

rm -rf bin/newer
mkdir -p bin/newer
export CGO_ENABLED=0
go build -o bin/newer/millrace .
inside=tests
plan=()
add() { # PATTERN PACKAGE
	local binary=$(tr / - <<<"$2").test
	go test -c -o "bin/newer/$binary" "./$2"
	plan+=("$2 $binary $1")
}
if [ "${1:-}" = chaos ]; then
	inside="bin/newer/chaos -binaries bin/newer -out /tmp/report $(printf '%q ' "${@:2}")"
	go build -o bin/newer/chaos ./internal/chaos/run
	bin/newer/chaos -build bin/newer
elif [ $# -gt 1 ]; then
	for package in "${@:2}"; do add "$1" "$package"; done
else
	found=$(for name in "${tests[@]}"; do go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' "$name"; done)
	for package in $found; do add . "${package#millrace/}"; done
	for package in "${some[@]}"; do add "$some_tests" "$package"; done
fi
printf '%s\n' "${plan[@]}" >bin/newer/plan

work=$(mktemp -d)
finish() {
	if [ -d "$work/report" ]; then
		rm -rf bin/chaos-newer
		cp -r "$work/report" bin/chaos-newer
	fi
	as_root rm -rf --one-file-system "$work"
}
trap finish EXIT
chmod 1777 "$work"
# shellcheck disable=SC2016 # expanded within
as_root env NEWER_SECONDS="${NEWER_SECONDS:-}" unshare --mount --uts --pid --fork --kill-child bash -euc '
	debian=$1 work=$2
	hostname millrace
	mount --rbind /dev "$debian/dev"
	mount -t proc proc "$debian/proc"
	mount --bind "$work" "$debian/tmp"
	mount --bind "$PWD" "$debian/srv"
	mount -o remount,bind,ro "$debian/srv"
	exec chroot "$debian" env -i PATH="$PATH" HOME=/tmp LANG=C.UTF-8 NEWER_SECONDS="${NEWER_SECONDS:-}" bash -euc "$3" newer "$4"
' newer "$debian" "$work" '
	cd /srv
	[ "$1" = tests ] || eval "exec $1"
	bin/newer/millrace stack -- bash -uc '\''
		failed=0
		while read -r package binary pattern; do
			began=$SECONDS
			if [ -n "$NEWER_SECONDS" ] && [ $began -ge $NEWER_SECONDS ]; then
				echo "skip  $package: $NEWER_SECONDS s are over"
				continue
			fi
			if (cd "/srv/$package" && "/srv/bin/newer/$binary" -test.timeout 40m -test.run "$pattern" >"/tmp/$binary.out" 2>&1); then
				echo "ok    $package ($((SECONDS - began)) s)"
			else
				failed=1
				cat "/tmp/$binary.out"
				echo "FAIL  $package ($((SECONDS - began)) s)"
			fi
		done </srv/bin/newer/plan
		exit $failed
	'\''
' "$inside"
