#!/usr/bin/env bash
# make smoke in short, on the Docker engine that answers or on one of our own (.ci/engine.sh), in at most eight minutes, or
# CONTAINERS_SECONDS if that is less. An engine that was started here is stopped at the end. Its images and what was
# compiled are kept for the next time.
#
# The exit status is 77 where the machine can't do it, and where the time is over: it says so, and in which step. What was
# made until then is kept as well.
set -euo pipefail
cd "$(dirname "$0")/.."
limit=${CONTAINERS_SECONDS:-480} smoke=240
[ $limit -le 480 ] || limit=480
if [ $limit -lt $((smoke + 60)) ]; then
	echo "Containers not tested: only $limit s are left, and $((smoke + 60)) are needed" >&2
	exit 77
fi
mkdir -p bin

started=no
finish() {
	status=$?
	if [ $started = yes ]; then
		.ci/engine.sh stop
	fi
	exit $status
}
trap finish EXIT

.ci/engine.sh run true 2>/dev/null || started=yes
VERSION=$(git describe --tags --always 2>/dev/null || echo dev)
export VERSION
status=0
timeout --kill-after 20 $((limit - smoke)) bash -euc '
	.ci/engine.sh start
	.ci/engine.sh run docker build --build-arg VERSION --tag millrace:smoke . >bin/containers.log 2>&1 || { tail -n 20 bin/containers.log >&2; exit 1; }
' || status=$?
case $status in
0) ;;
77) exit 77 ;;
124 | 137)
	echo "Containers not tested: the engine and the images took more than $((limit - smoke)) s. What is whole of them is kept for the next run." >&2
	exit 77
	;;
*) exit $status ;;
esac
echo "The engine and the images are there ($SECONDS s)"
KILLS=1 BROKERS=1 timeout --kill-after 30 $((limit - 30 - SECONDS)) .ci/engine.sh run deploy/smoke.sh 2>&1 | tee bin/containers.log || status=$?
case $status in
124 | 137) # whatever hangs there ends by itself, and fails, within four minutes
	echo "Containers not tested to the end: $limit s were over in the step $(grep '^== ' bin/containers.log | tail -n 1)" >&2
	exit 77
	;;
esac
exit $status
