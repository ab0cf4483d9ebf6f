#!/bin/bash
# Makes the database's users, each with its own password, when the volume is new. millrace migrate roles gives them
# their rights, once the tables are there. A password changes by ALTER ROLE, and then in .env.
set -euo pipefail

# Each is in the environment, or in a secret's file.
for user in OWNER WRITER READER MONITOR; do
	name=POSTGRES_${user}_PASSWORD
	if [ -z "${!name:-}" ]; then
		declare "$name=$(<"/run/secrets/${name,,}")"
	fi
done

psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
	-v owner="$POSTGRES_OWNER_PASSWORD" -v writer="$POSTGRES_WRITER_PASSWORD" \
	-v reader="$POSTGRES_READER_PASSWORD" -v monitor="$POSTGRES_MONITOR_PASSWORD" <<-'SQL'
	CREATE ROLE millrace_owner LOGIN PASSWORD :'owner';
	CREATE ROLE millrace_writer LOGIN PASSWORD :'writer';
	CREATE ROLE millrace_reader LOGIN PASSWORD :'reader';
	-- For postgres_exporter: sizes, activity and statistics, no records.
	CREATE ROLE millrace_monitor LOGIN PASSWORD :'monitor' IN ROLE pg_monitor;
	SELECT format('GRANT CONNECT ON DATABASE %I TO millrace_monitor', current_database()) \gexec
SQL
