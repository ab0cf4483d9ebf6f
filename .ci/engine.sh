#!/usr/bin/env bash
# A Docker engine for tests, with Compose and buildx, on a machine where none answers.
#
#   .ci/engine.sh start           what make engine runs: starts it, and makes the images that stand in for the official ones
#   .ci/engine.sh run COMMAND…    runs a command beside the engine
#   .ci/engine.sh stop            what make engine-stop runs: ends it and what runs in it; images and volumes stay
#   .ci/engine.sh remove          the same, and removes images and volumes
#
# An engine that answers already is left alone: start does nothing, and run only runs the command.
#
# The engine is Debian 13's, in the folder that .ci/debian.sh makes. It runs in namespaces of its own for mounts,
# network, processes and the host's name, so nothing of the machine is changed, and nothing is left when it ends. There
# it sees the machine's own folders (/home, /root, /tmp, …) by the same paths. Its network has no way out: hence the
# images of deploy/images. A port that a container publishes on 127.0.0.1 is on the 127.0.0.1 of that network: only
# commands that .ci/engine.sh run has started reach it. Data and log are in ~/.cache/millrace/engine.
#
# The exit status is 77 where the machine can't do it: no root and no sudo without a password, no apt, no leave to
# mount, no network namespaces.
set -euo pipefail

here=$PWD
cd "$(dirname "$0")/.."

cannot() {
	echo "No Docker engine: $*" >&2
	exit 77
}

# shellcheck source=.ci/debian.sh
. .ci/debian.sh
state=$cache/engine
socket=$state/docker.sock

# elsewhere reports whether an engine that is not ours answers.
elsewhere() { command -v docker >/dev/null && timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# running reports whether our engine runs: it holds the lock as long as it does.
running() { [ -e "$state/lock" ] && ! flock --nonblock "$state/lock" true; }

# serve becomes the engine. It runs as root.
serve() {
	exec 9>>"$state/lock"
	flock --timeout 2 9 || exit 0 # another one was sooner
	# As many open files as the machine allows. A container can't have more.
	ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
	ulimit -n >"$state/open-files"
	echo $$ >"$state/unshare" # what becomes of this process
	# shellcheck disable=SC2016 # expanded within
	exec unshare --mount --propagation private --net --uts --pid --fork --kill-child bash -euc '
		state=$1 debian=$2 group=$3; shift 3
		read -r pid _ </proc/self/stat # the number outside
		hostname millrace

		# The Debian folder with a layer above it, so that what is written there is written nowhere. It is put together
		# in /run, which nobody else sees here.
		mount -t tmpfs tmpfs /run
		mkdir /run/upper /run/work /run/root
		root=/run/root
		mount -t overlay -o "lowerdir=$debian,upperdir=/run/upper,workdir=/run/work" overlay "$root"
		for dir in /* /usr/local /var/tmp "$@"; do
			case $dir in
			/bin | /boot | /etc | /lib* | /lost+found | /proc | /run | /sbin | /sys | /usr | /var) continue ;;
			esac
			[ -d "$dir" ] && [ ! -L "$dir" ] || continue
			mkdir -p "$root$dir"
			mount --rbind "$dir" "$root$dir"
		done
		mount -t proc proc "$root/proc"
		mount -t sysfs sysfs "$root/sys"
		mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
		mount -t tmpfs tmpfs "$root/run"
		mkdir "$root/run/old"
		pivot_root "$root" "$root/run/old"
		cd /
		umount --lazy /run/old
		rmdir /run/old
		printf "127.0.0.1 localhost millrace\n" >/etc/hosts
		: >/etc/resolv.conf
		ip link set lo up
		# Nobody answers there, which is told at once: names that the engine does not know are not waited for.
		ip address add 192.0.2.1/32 dev lo

		echo "$pid" >"$state/pid"
		# tini passes the signal to end on, and takes leave of the processes that are orphaned.
		exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root /usr/bin/tini -- dockerd \
			--host "unix://$state/docker.sock" --host unix:///var/run/docker.sock --group "$group" \
			--data-root "$state/data" --dns 192.0.2.1 --cgroup-parent /millrace-engine --storage-driver overlay2
	' engine "$state" "$debian" "$@"
}

start() {
	if elsewhere; then
		echo "A Docker engine answers: it is used."
		return
	fi
	if ! running; then
		ensure_debian
		as_root unshare --mount --net --uts --pid --fork true 2>/dev/null ||
			cannot "this machine gives no namespaces (unshare --mount --net --uts --pid)"
		mkdir -p "$state/client"
		as_root mkdir -p "$state/data"
		as_root rm -f "$socket" "$state/pid"
		local visible=() goroot
		goroot=$(go env GOROOT 2>/dev/null || true)
		case $goroot in /usr/local/*) ;; /usr/* | /var/*) visible+=("$goroot") ;; esac
		case $cache in /var/*) visible+=("$cache") ;; esac
		as_root sh -c 'exec setsid --fork "$@" >"$0/log" 2>&1 </dev/null' "$state" \
			env XDG_CACHE_HOME="${cache%/millrace}" "$PWD/.ci/engine.sh" serve "$(id -g)" "${visible[@]}"
		local end=$((SECONDS + 60))
		until inside docker version >/dev/null 2>&1; do
			if [ $SECONDS -ge $end ] || { [ $SECONDS -ge $((end - 55)) ] && ! running; }; then
				tail -n 5 "$state/log" >&2
				stop
				cannot "it does not start; $state/log says more"
			fi
			sleep 0.2
		done
		# All containers are one group, which would get as much of a busy machine's processor time as one process outside.
		# It gets as much as four do.
		as_root sh -c '
			[ ! -e /sys/fs/cgroup/cpu/cpu.shares ] || { mkdir -p /sys/fs/cgroup/cpu/millrace-engine && echo 4096 >/sys/fs/cgroup/cpu/millrace-engine/cpu.shares; }
			[ ! -e /sys/fs/cgroup/millrace-engine/cpu.weight ] || echo 400 >/sys/fs/cgroup/millrace-engine/cpu.weight' || true
		echo "Docker engine $(inside docker version --format '{{.Server.Version}}'), socket $socket"
	fi
	# The images are built here on Debian 13 itself, without the engine and what no server reads.
	base=millrace-standin/debian:${debian##*-}
	if ! inside docker image inspect "$base" >/dev/null 2>&1; then
		echo "Making $base"
		as_root tar --create --directory "$debian" --one-file-system --exclude='./usr/bin/*docker*' --exclude=./usr/sbin/dockerd \
			--exclude=./usr/libexec/docker --exclude='./usr/bin/containerd*' --exclude='./usr/bin/ctr' --exclude=./usr/share/doc \
			--exclude=./usr/share/man --exclude=./usr/share/locale --exclude='./var/lib/apt/lists/*' --exclude='./var/cache/*' \
			--exclude='./dev/*' --exclude='./var/lib/postgresql/*' --exclude='./var/lib/rabbitmq/*' . |
			inside docker import --change 'ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' - "$base" >/dev/null
	fi
	go mod download # while there is a network
	inside deploy/images/build.sh "$base"
}

# inside runs a command beside our engine, in the folder that this script was called in, as this user.
inside() {
	local limit pid vars name
	pid=$(cat "$state/pid" 2>/dev/null) || return 1
	limit=$(cat "$state/open-files")
	vars=()
	while IFS= read -r -d '' name; do vars+=("$name"); done < <(
		unset DOCKER_CONTEXT DOCKER_TLS_VERIFY DOCKER_CERT_PATH
		export DOCKER_HOST=unix://$socket DOCKER_CONFIG=$state/client
		export TESTCONTAINERS_RYUK_DISABLED=true # its image is not there
		PATH=/usr/sbin:/usr/bin:/sbin:/bin:$(go env GOROOT 2>/dev/null || echo /usr/local/go)/bin:/usr/local/bin
		if [ "$limit" -lt 65536 ]; then
			export OPEN_FILES=${OPEN_FILES:-$limit} BALANCER_CONNECTIONS=${BALANCER_CONNECTIONS:-$(((limit - 200) / 2))}
		fi
		env -0
	)
	# shellcheck disable=SC2016 # expanded within
	as_root nsenter --target "$pid" --mount --net --uts --pid -- env -i "${vars[@]}" \
		setpriv --reuid "$(id -u)" --regid "$(id -g)" --clear-groups sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
}

stop() {
	if running; then
		local end=$((SECONDS + 60))
		as_root kill -TERM "$(cat "$state/pid")" 2>/dev/null || end=$SECONDS
		while running; do
			# With it goes all that it has started: unshare --kill-child.
			[ $SECONDS -lt $end ] || as_root kill -KILL "$(cat "$state/unshare")" 2>/dev/null || true
			sleep 0.2
		done
	fi
	# What the kernel keeps of the containers' groups.
	for _ in 1 2 3 4 5; do
		as_root find /sys/fs/cgroup -depth -type d -path '*/millrace-engine*' -exec rmdir {} + 2>/dev/null && break
		sleep 0.2
	done
}

case ${1:-} in
start) start ;;
run)
	shift
	if elsewhere; then
		cd "$here"
		exec "$@"
	fi
	running || cannot "none answers; make engine starts one for tests"
	cd "$here"
	inside "$@"
	;;
stop)
	stop
	;;
remove)
	stop
	as_root rm -rf --one-file-system "$state"
	;;
serve)
	shift
	serve "$@"
	;;
*)
	echo "usage: .ci/engine.sh start|run COMMAND…|stop|remove" >&2
	exit 2
	;;
esac
