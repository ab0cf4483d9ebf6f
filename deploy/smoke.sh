#!/usr/bin/env bash
# deploy/smoke.sh: docker-compose.yml on a Docker engine, from nothing: up, records in, the same out, services scaled,
# containers killed, nothing lost, all of it removed. It is a project of its own, with ports and passwords of its own, so it
# also runs beside a stack that is up.
#
#   KILLS=n       the process of each container is killed n times under load (2)
#   BROKERS=1     without the cluster of three brokers at the end
set -Eeuo pipefail
trap 'echo "smoke: line $LINENO: $BASH_COMMAND" >&2' ERR
cd "$(dirname "$0")/.."

work=$(mktemp -d)
export COMPOSE_ANSI=never COMPOSE_PROGRESS=quiet COMPOSE_PROJECT_NAME=millrace-smoke COMPOSE_FILE=docker-compose.yml:deploy/smoke.yml COMPOSE_PROFILES=
export ENV_FILE=$work/env COMPOSE_ENV_FILES=$work/env MILLRACE_IMAGE=millrace:smoke
kills=${KILLS:-2}
helper=$COMPOSE_PROJECT_NAME-helper
# Four ports that nobody has: all digits but the last.
taken() { for digit in 0 1 2 3; do ! (exec 3<>"/dev/tcp/127.0.0.1/$1$digit") 2>/dev/null || return 0; done && return 1; }
SMOKE_PORT=$((2000 + RANDOM % 1000))
while taken $SMOKE_PORT; do
	SMOKE_PORT=$((2000 + RANDOM % 1000))
done
export SMOKE_PORT
api=http://127.0.0.1:${SMOKE_PORT}0 query=http://127.0.0.1:${SMOKE_PORT}1
prometheus=http://127.0.0.1:${SMOKE_PORT}2 grafana=http://127.0.0.1:${SMOKE_PORT}3

remove() {
	status=$?
	trap - EXIT
	rm -f "$work/load"
	if [ $status != 0 ]; then
		docker compose --profile cluster ps --all || true
		docker compose --profile cluster logs --tail 50 || true
	fi
	docker rm --force --volumes "$helper" >/dev/null 2>&1 || true
	[ ${#posters[@]} = 0 ] || kill "${posters[@]}" 2>/dev/null || true
	docker compose --profile cluster down --volumes --remove-orphans --timeout 20 || status=1
	docker image rm millrace:smoke-next >/dev/null 2>&1 || true
	left=$(docker ps --all --quiet --filter "name=$COMPOSE_PROJECT_NAME"; docker volume ls --quiet --filter "name=$COMPOSE_PROJECT_NAME"; docker network ls --quiet --filter "name=$COMPOSE_PROJECT_NAME")
	if [ -n "$left" ]; then
		echo "smoke: left behind: $left" >&2
		status=1
	fi
	rm -rf "$work"
	exit $status
}

# shellcheck source=deploy/load.sh
. deploy/load.sh
sql() { docker compose exec -T postgres psql -U millrace -d millrace -qAtc "$1" </dev/null; }
containers() { docker compose ps --format '{{.ID}} {{.Service}}' | sort -k 2; }
trap remove EXIT

step up
deploy/env.sh 2>/dev/null
# What a run that was ended had left.
docker compose --profile cluster down --volumes --remove-orphans --timeout 0 2>/dev/null || true
docker rm --force --volumes "$helper" >/dev/null 2>&1 || true
deploy/up.sh --wait-timeout 600
docker compose exec -T api /usr/bin/millrace version
id=$(curl -fsS -d '{"level":"info","message":"smoke"}' "$api/log" | sed -E 's/.*"id":"([^"]+)".*/\1/')
eventually curl -fsS -o /dev/null "$query/logs/$id"
post plain 1 100
eventually count plain 100

step "refused before anything starts"
refuses() { # WORDS COMMAND…: it must fail, and say these words
	local words=$1 out
	shift
	if out=$("$@" 2>&1) || ! grep -F "$words" <<<"$out"; then
		echo "smoke: $*: $out" >&2
		return 1
	fi
}
port=${api##*:}
beside() { COMPOSE_PROJECT_NAME=millrace-smoke-2 COMPOSE_FILE=docker-compose.yml:$work/taken.yml deploy/up.sh; }
printf 'services: {balancer: {ports: !override ["127.0.0.1:%s:8080"]}}\n' "$port" >"$work/taken.yml"
refuses "balancer: port $port of 127.0.0.1 is taken by the container millrace-smoke-balancer-1" beside
refuses "needs 24100 open files, and OPEN_FILES is 20000" env OPEN_FILES=20000 BALANCER_CONNECTIONS=12000 deploy/up.sh
if [ -n "${OPEN_FILES:-}" ]; then # an engine with a limit
	refuses "set OPEN_FILES in .env" env OPEN_FILES=$((OPEN_FILES + 1)) deploy/up.sh
fi

step "users: the query service may not write, the worker not read"
refuses 'permission denied' sql 'SET ROLE millrace_reader; DELETE FROM logs'
refuses 'permission denied' sql 'SET ROLE millrace_writer; SELECT data FROM logs'

step "scaled"
scale=(--scale api=3 --scale worker=2 --scale query=2)
docker compose up --detach --wait "${scale[@]}"
posted=0
spread() { # every API has answered requests
	posted=$((posted + 1))
	post scaled $posted $posted
	docker compose exec -T balancer wget -q -O - http://127.0.0.1:8404/metrics >"$work/balancer"
	[ "$(grep -cE '^haproxy_server_http_responses_total\{proxy="api-services",server="api[0-9]+",code="2xx"\} [1-9]' "$work/balancer")" = 3 ]
}
eventually spread
grep -E '^haproxy_server_http_responses_total\{proxy="api-services".*code="2xx"\} [1-9]' "$work/balancer"
eventually count scaled $posted

step "no container's process is root, none may write beside its volumes, none can gain a right"
# A shell for containers that have none.
shell=$(docker compose config --images | grep -E '(^|/)postgres:')
docker compose ps --format '{{.ID}} {{.Service}}' | sort -u -k 2 | while read -r id service; do
	user=$(docker inspect --format '{{.Config.User}}' "$id")
	# What runs as the same user sees the container's files at /proc/1/root, with the container's own rights to write.
	docker run --rm --pid "container:$id" --user "$user" --cap-drop ALL --network none --env "READONLY=$(docker inspect --format '{{.HostConfig.ReadonlyRootfs}}' "$id")" \
		--entrypoint bash "$shell" -euc '
		status=$(</proc/1/status)
		for line in "NoNewPrivs:	1" "CapEff:	0000000000000000" "CapPrm:	0000000000000000" "CapBnd:	0000000000000000"; do
			[[ $status == *"$line"* ]] || { echo "want $line of: $status"; exit 1; }
		done
		[[ ! $status =~ Uid:[[:space:]]+0 ]] || { echo "it is root"; exit 1; }
		for path in / /usr /usr/bin /etc; do
			[ -d "/proc/1/root$path" ] || continue
			if said=$(touch "/proc/1/root$path/smoke" 2>&1); then echo "wrote to $path"; exit 1; fi
			if [ "$READONLY" = true ]; then [[ $said == *"Read-only file system"* ]] || { echo "$said"; exit 1; }; fi
		done' </dev/null || {
		echo "smoke: $service may do more than it needs" >&2
		exit 1
	}
	echo "$service: user $user, read-only $(docker inspect --format '{{.HostConfig.ReadonlyRootfs}}' "$id")"
done
# A program that is another user's by its mode.
for service in postgres rabbitmq redis; do
	refuses '' docker compose exec -T $service sh -c 'su -c id || chown 0 /tmp || mount -t tmpfs none /mnt' </dev/null
done

step "an API and a worker stopped by docker kill: they stay down, and nothing is lost"
load stopped
for service in api worker; do
	stopped=$(docker compose ps --quiet $service | sed -n 1p)
	docker kill "$stopped"
	sleep 2
	[ "$(docker inspect --format '{{.State.Running}}' "$stopped")" = false ]
done
counted stopped
docker compose up --detach --wait "${scale[@]}"

step "each container's process killed $kills times under load: it comes back by itself"
# The engine takes docker kill for a stop that its owner wants. So the processes are killed past it.
docker run --detach --name "$helper" --pid host --user 0 --network none --entrypoint sleep "$shell" infinity >/dev/null
healthy() { [ "$(docker inspect --format '{{.RestartCount}} {{.State.Health.Status}}' "$1")" = "$2 healthy" ]; }
load killed
for round in $(seq "$kills"); do
	containers | while read -r id service; do
		before=$(docker inspect --format '{{.RestartCount}}' "$id")
		docker exec "$helper" bash -c "kill -KILL $(docker inspect --format '{{.State.Pid}}' "$id")" </dev/null
		eventually healthy "$id" $((before + 1))
		echo "$round $service"
	done
done
counted killed
docker rm --force --volumes "$helper" >/dev/null
eventually count killed "$(sql "SELECT count(*) FROM logs WHERE data->>'run' = 'killed'")"

step "another version under load, and back"
printf 'FROM millrace:smoke\nLABEL next=yes\n' | docker build --quiet --tag millrace:smoke-next - >/dev/null
load upgraded
for image in millrace:smoke-next millrace:smoke; do
	MILLRACE_IMAGE=$image docker compose up --detach --wait "${scale[@]}"
done
counted upgraded

step watched
targets() {
	local all
	all=$(curl -fsS $prometheus/api/v1/targets)
	[[ $all == *'"health":"up"'* && $all != *'"health":"down"'* ]]
}
docker compose up --detach --wait
eventually targets
curl -fsS $prometheus/api/v1/rules | grep '"alerts"' >/dev/null
eventually curl -fsS -o /dev/null $grafana/api/health

if [ "${BROKERS:-3}" = 3 ]; then
	step "three brokers"
	docker compose --profile cluster up --detach --wait
	members() { [ "$(docker compose exec -T rabbitmq rabbitmq-queues --quiet quorum_status logs.0 2>/dev/null | grep -c 'rabbit@rabbitmq')" -ge 3 ]; }
	eventually members
	docker compose stop rabbitmq-2
	post cluster 1 100
	eventually count cluster 100
fi
step ok
