# What deploy/load.sh and deploy/kube.sh say and wait by. Bash sources this file, in the project's folder.

step() { echo "== $* ($SECONDS s)"; }
# eventually COMMAND…: until it succeeds. An idle machine needs seconds each time; a busy one gets four minutes.
eventually() {
	local end=$((SECONDS + 240))
	until "$@"; do
		if [ $SECONDS -ge $end ]; then
			echo "not in time: $*" >&2
			return 1
		fi
		sleep 0.5
	done
}
