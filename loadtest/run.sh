#!/usr/bin/env bash
# Runs ingest.js by bin/k6: on BASE_URL and QUERY_URL, or, without BASE_URL, on a Millrace that it starts on private
# servers and free ports in a temporary folder, and stops. Everything else in the environment is for the script.
set -euo pipefail
cd "$(dirname "$0")/.."

scenario=${SCENARIO:-smoke}
export OUT=${OUT:-loadtest/results/$(date -u +%Y%m%d-%H%M%S)-$scenario}
mkdir -p "$OUT"

dir=
millrace=
finish() {
	status=$?
	trap - EXIT
	if [ -n "$millrace" ]; then
		kill -INT "$millrace" 2>/dev/null || true
		wait "$millrace" || { echo "Millrace did not stop well:" >&2; tail -n 20 "$dir/log" >&2; [ "$status" != 0 ] || status=1; }
		cp "$dir/log" "$OUT/millrace.log"
		rm -rf "$dir"
	fi
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

if [ -z "${BASE_URL:-}" ]; then
	dir=$(mktemp -d)
	chmod 755 "$dir" # PostgreSQL runs as another user when this is root's
	: >"$dir/out"
	# In a process group of its own: a Ctrl-C is for k6 first, which still counts.
	set -m
	# Away from .env, and without the URLs of servers: those that hold somebody's logs get no load unasked.
	program=$PWD/bin/millrace
	(cd "$dir" && exec env -u POSTGRES_URL -u RABBITMQ_URL -u REDIS_URL API_ADDR=127.0.0.1:0 QUERY_ADDR=127.0.0.1:0 \
		WORKER_ADDR=127.0.0.1:0 "$program" run --dir data) >"$dir/out" 2>"$dir/log" &
	millrace=$!
	set +m
	until grep -q '^Millrace is running' "$dir/out"; do
		kill -0 "$millrace" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
		sleep 0.2
	done
	BASE_URL=$(awk '$1 == "api" { print $2; exit }' "$dir/out")
	QUERY_URL=$(awk '$1 == "query" { print $2; exit }' "$dir/out")
	export BASE_URL QUERY_URL
fi

# A port for k6's REST API that nobody has: two runs side by side would else share one.
port=$((20000 + RANDOM % 10000))
while (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done

export K6_NO_USAGE_REPORT=true K6_AUTO_EXTENSION_RESOLUTION=false
# Where load and Millrace share the cores, the load's part is to be known.
TIMEFORMAT='  k6 took %U s of the processors for itself and %S s in the kernel, in %R s.'
time bin/k6 run --quiet --address "127.0.0.1:$port" -e "K6_API=http://127.0.0.1:$port" loadtest/ingest.js
echo "  $OUT/report.html and summary.json have it."
