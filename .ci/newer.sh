#!/usr/bin/env bash
# The tests that talk to servers, on those of Debian 13: RabbitMQ 4.0, PostgreSQL 17 and Redis 8. (Debian 12 has 3.10, 15
# and 7.) The servers are installed into a folder, once (.ci/debian.sh); the tests run there, in namespaces of their own.
# Nothing of the machine is changed but that debootstrap is installed.
#
#   .ci/newer.sh              what make test-newer runs
#   .ci/newer.sh PATTERN PACKAGE…   the tests of these packages that match PATTERN
#   .ci/newer.sh chaos ARGUMENT…    the fault proof, with its command's arguments; its report is in bin/chaos-newer
#
# With NEWER_SECONDS it takes no longer than that: what is not compiled in half of the time is left out, as is what can't begin
# or does not end in it. It says so of each package.
#
# The exit status is 77 where the machine can't do it: no root and no sudo without a password, no apt, no leave to mount;
# and where NEWER_SECONDS are too few.
set -euo pipefail
cd "$(dirname "$0")/.."

# Packages whose tests talk to servers, with those below them. internal/chaos builds Millrace itself, and bench measures.
# What depends most on the servers' versions comes first.
tests=(./migrations ./internal/pg ./internal/broker ./internal/policy ./worker/... ./query/... ./api/... ./internal/localstack)
# Of these packages the tests that need no other program than the servers, and no Go.
some_tests='TestRunStores|TestStackRuns|TestKilledProcesses|TestNodesOfACluster|TestEveryForm|TestAKeyReused|TestARestoredDump|TestFramesInQueues|TestTheWritersRole|TestTheReadersRole|TestTheOwnersConnection'
some=(internal/cli internal/e2e deploy)

cannot() {
	echo "Not tested on newer servers: $*" >&2
	exit 77
}

# Without a limit a day is one.
limit=${NEWER_SECONDS:-86400} least=120
late() { cannot "$((limit - SECONDS)) s are left, and $least are needed"; }
[ "$limit" -gt $least ] || late

debian_seconds=$((limit - least))
# shellcheck source=.ci/debian.sh
. .ci/debian.sh
as_root true
as_root unshare --mount --uts --pid --fork true 2>/dev/null || cannot "this machine gives no namespaces (unshare --mount --uts --pid)"

ensure_debian
[ $((limit - SECONDS)) -ge $least ] || late

rm -rf bin/newer
mkdir -p bin/newer
export CGO_ENABLED=0
go build -o bin/newer/millrace .
inside=tests
plan=()
add() { # PATTERN PACKAGE
	local binary=${2//\//-}.test left=$((limit / 2 - SECONDS)) status=0
	if [ $left -le 0 ]; then
		echo "skip  $2: half of $limit s are over before it is compiled"
		return
	fi
	timeout $left go test -c -o "bin/newer/$binary" "./$2" || status=$?
	case $status in
	0) plan+=("$2 $binary $1") ;;
	124) echo "skip  $2: half of $limit s are over while it is compiled" ;;
	*) exit $status ;;
	esac
}
if [ "${1:-}" = chaos ]; then
	inside="bin/newer/chaos -binaries bin/newer -out /tmp/report $(printf '%q ' "${@:2}")"
	go build -o bin/newer/chaos ./internal/chaos/run
	bin/newer/chaos -build bin/newer "${@:2}"
elif [ $# -gt 1 ]; then
	for package in "${@:2}"; do add "$1" "$package"; done
else
	found=$(for name in "${tests[@]}"; do go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' "$name"; done)
	for package in $found; do add . "${package#millrace/}"; done
	for package in "${some[@]}"; do add "$some_tests" "$package"; done
fi
[ "$inside" != tests ] || [ ${#plan[@]} -gt 0 ] || late
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
as_root env END=$((EPOCHSECONDS + limit - SECONDS - 20)) unshare --mount --uts --pid --fork --kill-child bash -euc '
	debian=$1 work=$2
	hostname millrace
	mount --rbind /dev "$debian/dev"
	mount -t proc proc "$debian/proc"
	mount --bind "$work" "$debian/tmp"
	mount --bind "$PWD" "$debian/srv"
	mount -o remount,bind,ro "$debian/srv"
	exec chroot "$debian" env -i PATH="$PATH" HOME=/tmp LANG=C.UTF-8 END="$END" bash -euc "$3" newer "$4"
' newer "$debian" "$work" '
	cd /srv
	[ "$1" = tests ] || eval "exec $1"
	bin/newer/millrace stack -- bash -uc '\''
		failed=0
		while read -r package binary pattern; do
			began=$EPOCHSECONDS
			left=$((END - began))
			if [ $left -lt 10 ]; then
				echo "skip  $package: the time is over"
				continue
			fi
			cd "/srv/$package"
			timeout --kill-after 5 $left "/srv/bin/newer/$binary" -test.timeout 40m -test.run "$pattern" >"/tmp/$binary.out" 2>&1
			status=$?
			took="$((EPOCHSECONDS - began)) s"
			if [ $status = 0 ]; then
				echo "ok    $package ($took)"
			elif [ $EPOCHSECONDS -ge $END ] && [[ $status = 124 || $status = 137 ]] && ! grep -q "^--- FAIL" "/tmp/$binary.out"; then
				echo "skip  $package: the time was over after $took of it"
			else
				failed=1
				cat "/tmp/$binary.out"
				echo "FAIL  $package ($took)"
			fi
		done </srv/bin/newer/plan
		exit $failed
	'\''
' "$inside"
