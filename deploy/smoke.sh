#!/usr/bin/env bash
# deploy/smoke.sh: docker-compose.yml on a Docker engine, from nothing: up, records in, the same out, services scaled,
# containers killed, nothing lost, all of it removed. It is a project of its own, but wants the ports to itself.
set -euo pipefail
cd "$(dirname "$0")/.."

export COMPOSE_PROJECT_NAME=millrace-smoke
if [ -e .env ]; then
	echo "smoke: .env is taken as it is" >&2
fi
deploy/env.sh
api=http://127.0.0.1:8080 query=http://127.0.0.1:8081
remove() {
	status=$?
	if [ $status != 0 ]; then
		docker compose --profile cluster ps --all || true
		docker compose --profile cluster logs --tail 50 || true
	fi
	docker compose --profile cluster down --volumes --remove-orphans --timeout 20
	exit $status
}
trap remove EXIT

eventually() { # SECONDS COMMAND…: until it succeeds
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		if [ $SECONDS -ge $end ]; then
			echo "smoke: not in time: $*" >&2
			return 1
		fi
		sleep 1
	done
}
count() { [ "$(curl -fsS "$query/logs/count?q=run:$1")" = "{\"count\":$2}" ]; }
post() { # RUN: a hundred records under one key, again and again until they are acked
	local key body i
	key=$(docker compose exec -T postgres psql -U millrace -d millrace -Atc 'SELECT uuidv7()')
	body=$(for i in $(seq 100); do echo "{\"run\":\"$1\",\"n\":$i}"; done)
	eventually 60 curl -fsS -o /dev/null --max-time 20 -H "Idempotency-Key: $key" --data-binary "$body" $api/log/batch
}

echo "== up"
docker compose up --detach --build --wait --wait-timeout 600
docker compose exec -T api /usr/bin/millrace version
id=$(curl -fsS -d '{"level":"info","message":"smoke"}' $api/log | sed -E 's/.*"id":"([^"]+)".*/\1/')
eventually 30 curl -fsS -o /dev/null "$query/logs/$id"
post plain
eventually 30 count plain 100
echo "== users: the query service may not write, the worker not read"
refused() { # psql must fail, and for this reason
	local out
	out=$(docker compose exec -T postgres psql -qU millrace -d millrace -c "$1" 2>&1) && return 1
	grep 'permission denied' <<<"$out"
}
refused 'SET ROLE millrace_reader; DELETE FROM logs'
refused 'SET ROLE millrace_writer; SELECT data FROM logs'

echo "== scaled"
docker compose up --detach --wait --scale api=3 --scale worker=2 --scale query=2
for n in 1 2 3; do
	post "scaled$n"
done
for n in 1 2 3; do
	eventually 30 count "scaled$n" 100
done

echo "== an API and a worker killed in the midst of it"
(for n in $(seq 20); do post "killed$n"; done) &
posts=$!
for service in api worker; do
	ids=$(docker compose ps --quiet $service)
	docker kill "${ids%%$'\n'*}"
done
wait $posts
for n in $(seq 20); do
	eventually 60 count "killed$n" 100
done

echo "== watched"
targets() {
	local all
	all=$(curl -fsS http://127.0.0.1:9090/api/v1/targets)
	[[ $all == *'"health":"up"'* && $all != *'"health":"down"'* ]]
}
docker compose up --detach --wait
eventually 120 targets
curl -fsS http://127.0.0.1:9090/api/v1/rules | grep '"alerts"' >/dev/null
eventually 60 curl -fsS -o /dev/null http://127.0.0.1:3000/api/health

echo "== three brokers"
docker compose --profile cluster up --detach --wait
members() { [ "$(docker compose exec -T rabbitmq rabbitmq-queues --quiet quorum_status logs.0 2>/dev/null | grep -c 'rabbit@rabbitmq')" -ge 3 ]; }
eventually 120 members
docker compose stop rabbitmq-2
post cluster
eventually 60 count cluster 100
echo "== ok"
