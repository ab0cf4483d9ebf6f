#!/usr/bin/env bash
# What the official image's does: the data belongs to rabbitmq, and so does the process; RABBITMQ_ERLANG_COOKIE becomes a file.
set -euo pipefail
if [[ ${1:-} == rabbitmq* ]] && [ "$(id -u)" = 0 ]; then
	if [ "$1" = rabbitmq-server ]; then
		find /var/lib/rabbitmq \! -user rabbitmq -exec chown rabbitmq '{}' + || true # a secret that is mounted stays as it is
	fi
	exec setpriv --reuid rabbitmq --regid rabbitmq --init-groups "$0" "$@"
fi
if [ -n "${RABBITMQ_ERLANG_COOKIE:-}" ] && [ ! -e /var/lib/rabbitmq/.erlang.cookie ]; then
	(umask 077 && printf '%s\n' "$RABBITMQ_ERLANG_COOKIE" >/var/lib/rabbitmq/.erlang.cookie)
fi
exec "$@"
