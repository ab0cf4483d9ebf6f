#!/usr/bin/env bash
# What failed in a log of go test, in at most 50 lines: the packages, the tests, and the beginning of what each says. It stands at
# the end of a run's output, where it is looked for: .ci/failures.sh LOG
set -euo pipefail
echo "What failed:"
awk '
	/^FAIL\t/ || /^# / || /^panic: / || /^fatal error: / || /DATA RACE/ { print; said = 0; next }
	/^[[:space:]]*--- FAIL: / { print; said = 0; within = 1; next }
	/^[[:space:]]*--- (PASS|SKIP): / || /^(ok|---|\?|PASS)/ { within = 0 }
	/^[[:space:]]*running tests:/ { print; left = 2; next }
	left > 0 { left--; print; next }
	/^[a-z.\/_]+\.go:[0-9]+:[0-9]+: / { print; next }                      # of the compiler
	within && (/_test\.go:[0-9]+: / || /MISMATCH|no recovery|state:/) && said++ < 12 { print }
' "$1" | cut -c1-300 | head -n 50
