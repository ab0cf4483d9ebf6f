#!/usr/bin/env bash
# terraform/swarm.sh: the module on a swarm of one host: apply; a plan that finds nothing to change; another image and
# another setting, each under load and counted, one container after the other; destroy, and nothing is left. It is an
# installation of its own, with ports of its own. A host that is no swarm becomes one, and is none afterwards.
set -Eeuo pipefail
trap 'echo "swarm: line $LINENO: $BASH_COMMAND" >&2' ERR
cd "$(dirname "$0")"

if ! command -v terraform >/dev/null; then
	echo "terraform is not installed (https://developer.hashicorp.com/terraform/install): nothing is tested on a swarm" >&2
	exit 77
fi

name=millrace-test
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
joined=no
applied=no
# shellcheck source=terraform/provider.sh
. ./provider.sh
cd ..
# shellcheck source=deploy/load.sh
. deploy/load.sh
terraform() { command terraform -chdir="$work/terraform" "$@"; }
left() { # prints what there is of the installation
	local kind
	for kind in service secret config volume network; do
		docker $kind ls --filter "name=$name" --format "$kind {{.Name}}"
	done
	docker ps --all --filter "name=$name" --format 'container {{.Names}}'
}
remove() {
	status=$?
	trap - EXIT
	rm -f "$work/load"
	[ ${#posters[@]} = 0 ] || kill "${posters[@]}" 2>/dev/null || true
	if [ $status != 0 ]; then
		docker service ls || true
		for service in $(docker service ls --filter "name=$name" --quiet); do
			docker service ps --no-trunc --format '{{.Name}} {{.CurrentState}} {{.Error}}' "$service" || true
			docker service logs --tail 5 "$service" || true
		done 2>&1 | tail -n 150
		# The second destroy removes what the first one waited for in vain.
		[ $applied = no ] || terraform destroy -auto-approve >/dev/null 2>&1 || terraform destroy -auto-approve >/dev/null || true
	fi
	if [ $joined = yes ]; then
		docker swarm leave --force && docker network rm docker_gwbridge >/dev/null || true
	fi
	docker image rm $name:1 $name:2 >/dev/null 2>&1 || true
	rm -rf "$work"
	exit $status
}
trap remove EXIT

step "image and swarm"
docker build --quiet --tag $name:1 . >/dev/null
printf 'FROM %s:1\nLABEL next=yes\n' $name | docker build --quiet --tag $name:2 - >/dev/null
if [ "$(docker info --format '{{.Swarm.LocalNodeState}}')" = inactive ]; then
	docker swarm init --advertise-addr 127.0.0.1 >/dev/null
	joined=yes
fi

secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
variables() { # IMAGE LINGER: writes the variables
	cat >"$work/terraform/test.auto.tfvars" <<-VARS
		name            = "$name"
		image           = "$1"
		allow_anonymous = true
		ports           = { api = 18080, query = 18081, grafana = 13000 }
		replicas        = { api = 2, worker = 2, query = 1 }
		settings        = { BATCH_LINGER = "$2" }
		balancer_connections = ${BALANCER_CONNECTIONS:-12000}
	VARS
}
{
	echo 'passwords = {'
	for password in postgres owner writer reader monitor rabbitmq cookie redis grafana; do
		echo "  $password = \"$(secret)\""
	done
	echo '}'
} >"$work/terraform/passwords.auto.tfvars"
# The module takes its provider from who uses it.
printf 'provider "docker" {\n  host = "%s"\n}\n' "${DOCKER_HOST:-unix:///var/run/docker.sock}" >"$work/terraform/test_provider.tf"

apply() { # prints how long it took
	local began=$SECONDS
	applied=yes
	terraform apply -no-color -auto-approve -input=false >"$work/apply.log" || {
		tail -n 50 "$work/apply.log"
		return 1
	}
	grep '^Apply complete' "$work/apply.log"
	echo "$((SECONDS - began)) s"
}
unchanged() { # a plan finds nothing to change
	terraform plan -no-color -detailed-exitcode -input=false >"$work/plan.log" || {
		grep -E '^ +[-+~#]|^Plan' "$work/plan.log"
		return 1
	}
	grep '^No changes' "$work/plan.log"
}
updates() { # SERVICE…: applies a plan that changes as many services where they are, and nothing else
	terraform plan -no-color -out=planned -input=false >"$work/plan.log"
	grep '^Plan: ' "$work/plan.log"
	grep -q "^Plan: 0 to add, $# to change, 0 to destroy" "$work/plan.log"
	apply
}
sql() {
	local id
	id=$(docker ps --quiet --filter "label=com.docker.swarm.service.name=$name-postgres" | sed -n 1p)
	docker exec "$id" psql -U millrace -d millrace -qAtc "$1" </dev/null
}
api=http://127.0.0.1:18080 query=http://127.0.0.1:18081

step apply
terraform init -input=false >/dev/null
variables $name:1 50ms
apply
# A kernel without IPVS forwards nothing to what a swarm publishes. Then the balancer is asked at its own address.
if ! eventually 20 curl -fsS -o /dev/null "$api/health" 2>/dev/null; then
	echo "127.0.0.1:18080 does not answer: this kernel may lack IPVS, which a swarm's published ports need. The balancer is asked at its own address."
	id=$(docker ps --quiet --no-trunc --filter "label=com.docker.swarm.service.name=$name-balancer")
	address=$(docker network inspect docker_gwbridge --format '{{range $id, $c := .Containers}}{{$id}} {{$c.IPv4Address}}{{"\n"}}{{end}}' | sed -nE "s|^$id ([^/]+)/.*|\1|p")
	api=http://$address:8080 query=http://$address:8081
fi
eventually 120 post plain 1 100
eventually 60 count plain 100
rm -f "$work/refused"
step "a plan finds nothing to change"
unchanged

step "another image under load"
load image
variables $name:2 50ms
updates api worker query migrate roles
counted image
step "another setting under load"
load setting
variables $name:2 20ms
updates api worker query migrate roles
counted setting
if [ -s "$work/refused" ]; then
	echo "swarm: answers other than 202:" >&2
	sort "$work/refused" | uniq -c >&2
	exit 1
fi
unchanged

step destroy
terraform destroy -no-color -auto-approve -input=false >"$work/destroy.log" || {
	tail -n 30 "$work/destroy.log"
	exit 1
}
grep '^Destroy complete' "$work/destroy.log"
applied=no
[ -z "$(left)" ] || {
	echo "swarm: left behind: $(left)" >&2
	exit 1
}
step ok
