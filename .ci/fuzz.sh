#!/usr/bin/env bash
# Every fuzz target for FUZZTIME each, on the servers of millrace stack: make fuzz. With FUZZ_SECONDS it takes no longer than
# that: it takes the targets in another order each time, and says which it left out.
set -euo pipefail
cd "$(dirname "$0")/.."
least=20 # compiling a target takes that

targets=$(git grep -oE '^func Fuzz[A-Za-z0-9]+' -- '*_test.go')
[ -z "${FUZZ_SECONDS:-}" ] || targets=$(shuf <<<"$targets")
without=()
while IFS=: read -r file name; do
	name=${name#func } folder=./${file%/*}
	within=()
	if [ -n "${FUZZ_SECONDS:-}" ]; then
		left=$((FUZZ_SECONDS - SECONDS))
		if [ $left -lt $least ]; then
			without+=("$name in $folder")
			continue
		fi
		# As Ctrl-C does: the fuzzer takes leave, and takes no input for a crash.
		within=(timeout --signal INT --kill-after 10 "$left")
	fi
	echo "== $name in $folder"
	status=0
	"${within[@]}" go test -run NONE -fuzz "^$name\$" -fuzztime "$FUZZTIME" "$folder" </dev/null || status=$?
	if [ $status != 0 ] && [ ${#within[@]} -gt 0 ] && [ $SECONDS -ge "$FUZZ_SECONDS" ]; then
		without+=("$name in $folder, which was cut off")
	elif [ $status != 0 ]; then
		exit $status
	fi
done <<<"$targets"
[ ${#without[@]} = 0 ] || {
	printf -v list ', %s' "${without[@]}"
	echo "Not fuzzed, since $FUZZ_SECONDS s are over: ${list:2}"
}
