# Records in, without a pause, and the same out: what deploy/smoke.sh and terraform/swarm.sh have in common. Bash sources this
# file. The caller sets $api and $query, the addresses, and $work, a folder, and has a function sql STATEMENT that prints
# what PostgreSQL answers its superuser.

posters=()
# shellcheck source=deploy/steps.sh
. deploy/steps.sh
count() { [ "$(curl -fsS "$query/logs/count?q=run:$1")" = "{\"count\":$2}" ]; }
key() { # prints an Idempotency-Key: a UUIDv7
	local time random
	time=$(printf %012x "$(date +%s%3N)")
	random=$(od -An -N10 -tx1 /dev/urandom | tr -d ' \n')
	echo "${time:0:8}-${time:8:4}-7${random:0:3}-8${random:3:3}-${random:6:12}"
}
records() { seq -f "{\"run\":\"$1\",\"n\":%.0f}" "$2" "$3"; } # RUN FIRST LAST
post() { # RUN FIRST LAST: these records under one key, again and again until they are acked
	local key
	key=$(key)
	eventually curl -fsS -o /dev/null --max-time 20 -H "Idempotency-Key: $key" --data-binary "$(records "$1" "$2" "$3")" "$api/log/batch" 2>>"$work/refused"
}

# load RUN: four clients post some 20,000 records a second until "$work/load" is gone. counted RUN waits for them, and then until what
# they had acked is stored: every record once.
load() {
	local client
	posters=()
	touch "$work/load"
	for client in 1 2 3 4; do
		(
			n=$((client * 100000000))
			while [ -e "$work/load" ]; do
				post "$1" $n $((n + 499))
				n=$((n + 500))
				echo $((n - client * 100000000)) >"$work/acked.$client"
				sleep 0.1
			done
		) &
		posters+=($!)
	done
}
counted() {
	local acked=0 client poster found
	rm -f "$work/load"
	for poster in "${posters[@]}"; do
		wait "$poster"
	done
	posters=()
	for client in 1 2 3 4; do
		acked=$((acked + $(<"$work/acked.$client")))
	done
	stored() { [ "$(sql "SELECT count(*) FROM logs WHERE data->>'run' = '$1'")" -ge "$2" ]; }
	eventually stored "$1" $acked
	sleep 1 # what is stored twice may come later
	found=$(sql "SELECT count(*), count(DISTINCT data->>'n') FROM logs WHERE data->>'run' = '$1'")
	echo "$acked records acked, $found stored and different"
	[ "$found" = "$acked|$acked" ]
}

