#!/bin/sh
# deploy/env.sh: what docker-compose.yml needs and .env lacks, with random secrets. What is there stays as it is. ENV_FILE
# names another file.
set -eu
cd "$(dirname "$0")/.."
umask 077
file=${ENV_FILE:-.env}
touch "$file"

# What is mounted must be readable for the containers' users, who are none of this machine's; after a clone under umask
# 077 it is not. Of deploy/etc, which is yours, no more than the way into it.
(cd deploy && chmod -R go+rX grafana haproxy postgres prometheus rabbitmq && chmod go+x etc) ||
	echo "deploy/env.sh: the containers may lack the right to read deploy/" >&2

add() { # NAME VALUE COMMENT
	grep -q "^$1=" "$file" && return
	printf '\n# %s\n%s=%s\n' "$3" "$1" "$2" >>"$file"
	echo "$1 is new in $file" >&2
}
secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

add POSTGRES_PASSWORD "$(secret)" 'docker-compose.yml: the database superuser, millrace.'
for user in owner writer reader monitor; do
	add "POSTGRES_$(echo $user | tr '[:lower:]' '[:upper:]')_PASSWORD" "$(secret)" "docker-compose.yml: the database user millrace_$user."
done
add RABBITMQ_PASSWORD "$(secret)" 'docker-compose.yml: the RabbitMQ user millrace.'
add RABBITMQ_COOKIE "$(secret)" 'docker-compose.yml: what the nodes of RabbitMQ know each other by.'
add REDIS_PASSWORD "$(secret)" 'docker-compose.yml: Redis.'
add GRAFANA_PASSWORD "$(secret)" 'docker-compose.yml: the Grafana user admin.'
grep -q '^KEYS_FILE=' "$file" ||
	add ALLOW_ANONYMOUS true 'Nobody is asked for a key: for an installation whose ports are on 127.0.0.1. Else KEYS_FILE=/etc/millrace/keys, a file in deploy/etc.'

value() { sed -n "s/^$1=//p" "$file" | tail -n 1 | tr -d "\"'"; } # NAME, as the file has it
for name in API_BIND QUERY_BIND; do
	case $(value $name) in
	'' | 127.* | ::1 | '[::1]' | localhost) ;;
	*) [ -n "$(value KEYS_FILE)" ] || echo "warning: $name in $file opens the port to others, and nobody is asked for a key: set KEYS_FILE" >&2 ;;
	esac
done
