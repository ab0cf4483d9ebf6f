#!/usr/bin/env bash
# deploy/up.sh ARGUMENT…: docker compose up with these arguments, waiting until all runs; what make up runs. First it looks for
# what would fail later, after minutes and with words that say less: an engine or a Compose that is too old, a port that
# somebody else has, more open files than the engine gives.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
	echo "deploy/up.sh: $*" >&2
	exit 1
}
older() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort --version-sort | sed -n 1p)" != "$2" ]; } # VERSION THAN

engine=$(docker version --format '{{.Server.Version}}') || fail "no Docker engine answers (make engine starts one for tests)"
! older "$engine" 25 || fail "Docker $engine is too old: docker-compose.yml needs 25, for the health checks' start_interval"
compose=$(docker compose version --short) || fail "docker compose is not installed"
! older "${compose#v}" 2.24 || fail "Docker Compose $compose is too old: docker-compose.yml needs 2.24"

deploy/env.sh
config=$(docker compose config)

# Open files. A service's limits are tried below; HAProxy counts for itself.
files=$(awk '$1 == "nofile:" { gsub("\"", "", $2); print $2; exit }' <<<"$config")
connections=$(awk '$1 == "BALANCER_CONNECTIONS:" { gsub("\"", "", $2); print $2; exit }' <<<"$config")
[[ $connections =~ ^[1-9][0-9]*$ ]] || fail "BALANCER_CONNECTIONS=$connections is no number of connections"
if [ $((2 * connections + 100)) -gt "$files" ]; then
	fail "BALANCER_CONNECTIONS=$connections needs $((2 * connections + 100)) open files, and OPEN_FILES is $files: change one of them in .env"
fi

# Ports, where the engine is this machine's. Those of our own containers stay theirs.
case ${DOCKER_HOST:-unix:} in
unix:*)
	own=$(docker compose ps --quiet)
	while read -r service address port; do
		# What listens on all addresses is found at this one.
		[ "$address" != 0.0.0.0 ] || address=127.0.0.1
		(exec 3<>"/dev/tcp/$address/$port") 2>/dev/null || continue
		holder=$(docker ps --no-trunc --filter "publish=$port" --format '{{.ID}} {{.Names}}' | sed -n 1p)
		who=${holder#* }
		if [ -z "$holder" ] || ! grep -q "^${holder%% *}" <<<"$own"; then
			fail "$service: port $port of $address is taken by ${holder:+the container }${who:-another program}"
		fi
	done < <(awk '
		/^  [a-z]/ { service = $1; sub(":", "", service) }
		$2 == "mode:" { address = "0.0.0.0" }
		$1 == "host_ip:" { address = $2 }
		$1 == "published:" { gsub("\"", "", $2); print service, address, $2 }' <<<"$config")
	;;
esac

docker compose build
if ! said=$(docker compose run --rm --no-deps --no-TTY api version 2>&1); then
	if grep -q rlimit <<<"$said"; then
		fail "the engine gives a container no $files open files: set OPEN_FILES in .env to its hard limit, and BALANCER_CONNECTIONS to less than half of that"
	fi
	fail "the image does not run: $said"
fi
exec docker compose up --detach --wait "$@"
