#!/usr/bin/env bash
# A Kubernetes of one node for tests, on a machine where none answers: etcd, kube-apiserver, kube-controller-manager,
# kube-scheduler, containerd, kubelet, kube-proxy and CoreDNS, and beside it kubectl and Helm.
#
#   .ci/kube.sh test              what make kube runs: engine, images, cluster, deploy/kube.sh; what it started ends with it.
#                                 With KUBE_SECONDS it takes no longer than that, and does not make the programs
#   .ci/kube.sh build             makes the programs from the module proxy, once a version
#   .ci/kube.sh built             reports whether they are there
#   .ci/kube.sh start             starts the cluster, below the engine of make engine
#   .ci/kube.sh load IMAGE…       brings images of the engine to the node
#   .ci/kube.sh run COMMAND…      runs a command beside the cluster: kubectl and helm reach it, docker the engine
#   .ci/kube.sh stop              ends it and what runs in it; nothing of it stays
#
# It runs in namespaces of its own for mounts, network and processes, below those of .ci/engine.sh, and ends with them at
# the latest. The programs are in ~/.cache/millrace/kubernetes-…, what the cluster writes is in ~/.cache/millrace/kube.
# Where a Docker engine answers that is not ours, test makes its cluster by kind.
#
# The exit status is 77 where the machine can't do it: what .ci/engine.sh needs is not there, kind is missing, or KUBE_SECONDS
# are too few.
set -euo pipefail

here=$PWD
cd "$(dirname "$0")/.."

cannot() {
	echo "No Kubernetes: $*" >&2
	exit 77
}

# shellcheck source=.ci/debian.sh
. .ci/debian.sh
engine=$cache/engine
state=$cache/kube
version=$(sed -nE 's|^.*k8s\.io/kubernetes v([^ ]+)( //.*)?$|\1|p' .ci/kube/go.mod)
# The key changes with what the programs are made of, and how: the number at the end.
programs=$cache/kubernetes-$version-$({ cat .ci/kube/{.,tools,collector}/go.{mod,sum} .ci/kube/*/*.go .ci/kube/*/*/*.go; uname -m; echo 1; } | sha256sum | cut -c1-8)

elsewhere() { command -v docker >/dev/null && timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# running reports whether our cluster runs: it holds the lock as long as it does.
running() { [ -e "$state/lock" ] && ! flock --nonblock "$state/lock" true; }

built() { [ -d "$programs" ]; }

# build makes the programs. What was compiled until it is cut off is kept by Go, so that the next time goes on there.
build() {
	! built || return 0
	local part p=k8s.io/component-base/version flags
	echo "Making Kubernetes $version in $programs, once: a quarter of an hour on two cores"
	mkdir -p "$cache"
	find "$cache" -maxdepth 1 -name 'kubernetes.??????*' -mmin +180 -exec rm -rf {} +
	part=$(mktemp -d "$cache/kubernetes.XXXXXX")
	export CGO_ENABLED=0
	flags="-s -w -X $p.gitVersion=v$version -X $p.gitMajor=${version%%.*} -X $p.gitMinor=$(cut -d. -f2 <<<"$version") -X $p.gitTreeState=clean -X $p.buildDate=2026-01-01T00:00:00Z"
	go -C .ci/kube build -trimpath -ldflags "$flags" -o "$part/" k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubelet,kube-proxy,kubectl}
	go -C .ci/kube build -trimpath -ldflags '-s -w' -o "$part/etcd" go.etcd.io/etcd/server/v3
	go -C .ci/kube build -trimpath -ldflags '-s -w' -o "$part/" ./pause github.com/containernetworking/plugins/plugins/{main/bridge,main/loopback,ipam/host-local}
	go -C .ci/kube/tools build -trimpath -ldflags '-s -w' -o "$part/" ./dns helm.sh/helm/v3/cmd/helm
	go -C .ci/kube/collector build -trimpath -ldflags '-s -w' -o "$part/collector" .
	chmod 755 "$part"
	mv --no-target-directory "$part" "$programs" 2>/dev/null || rm -rf "$part" # another one was sooner
}

# below runs a command as root in the engine's namespaces.
below() { as_root nsenter --target "$(cat "$engine/pid")" --mount --net --uts --pid -- "$@"; }

start() {
	! elsewhere || cannot "a Docker engine answers that is not .ci/engine.sh's; kind makes a cluster on it"
	[ -e "$engine/lock" ] && ! flock --nonblock "$engine/lock" true || cannot "make engine starts what it runs in"
	! running || return 0
	build
	as_root rm -rf --one-file-system "$state"
	mkdir -p "$state"
	# A network of its own. The file is where commands find it.
	# shellcheck disable=SC2016 # expanded within
	below sh -euc 'touch "$1/net"; exec setsid --fork sh -c "$4" start "$@" >"$1/log" 2>&1 </dev/null' start "$state" "$programs" "$PWD/.ci/kube/node.sh" \
		'echo $$ >"$1/unshare"; exec unshare --mount --net="$1/net" --pid --fork --kill-child --mount-proc \
		env -i PATH="$2:/usr/sbin:/usr/bin:/sbin:/bin" HOME=/root /usr/bin/tini -- bash "$3" "$1" "$2"'
	local end=$((SECONDS + 120)) begun=$SECONDS
	until [ -e "$state/ready" ]; do
		if [ $SECONDS -ge $end ] || { [ $SECONDS -ge $((begun + 5)) ] && ! running; }; then
			tail -n 5 "$state/log" "$state"/logs/*.log >&2
			stop
			echo "Kubernetes does not start" >&2
			exit 1
		fi
		sleep 0.2
	done
	echo "Kubernetes $version ($((SECONDS - begun)) s)"
}

# run runs a command beside the cluster, in the folder that this script was called in, as this user.
run() {
	local vars=() name
	while IFS= read -r -d '' name; do vars+=("$name"); done < <(
		unset DOCKER_CONTEXT DOCKER_TLS_VERIFY DOCKER_CERT_PATH
		export DOCKER_HOST=unix://$engine/docker.sock DOCKER_CONFIG=$engine/client KUBECONFIG=$state/kubeconfig
		export HELM_CACHE_HOME=$state/helm HELM_CONFIG_HOME=$state/helm HELM_DATA_HOME=$state/helm
		PATH=$programs:/usr/sbin:/usr/bin:/sbin:/bin:$(go env GOROOT 2>/dev/null || echo /usr/local/go)/bin:/usr/local/bin
		env -0
	)
	# shellcheck disable=SC2016 # expanded within
	below nsenter --net="$state/net" -- env -i "${vars[@]}" \
		setpriv --reuid "$(id -u)" --regid "$(id -g)" --clear-groups sh -c 'cd "$0" && exec "$@"' "$here" "$@"
}

# load brings images of the engine to the node. What the node has is left out.
load() {
	below sh -euc 'socket=$1; shift; docker -H unix:///var/run/docker.sock save "$@" | ctr --address "$socket" --namespace k8s.io images import --digests=false - >/dev/null' \
		load "$state/containerd.sock" "$@"
}

stop() {
	if running; then
		below kill -KILL "$(cat "$state/unshare")" 2>/dev/null || true # all that it has started goes with it
		local end=$((SECONDS + 30))
		while running && [ $SECONDS -lt $end ]; do sleep 0.2; done
	fi
	[ -e "$state" ] || return 0
	below umount "$state/net" 2>/dev/null || true
	for _ in 1 2 3 4 5; do
		as_root find /sys/fs/cgroup -depth -type d -path '*/millrace-kube*' -exec rmdir {} + 2>/dev/null && break
		sleep 0.2
	done
	as_root rm -rf --one-file-system "$state"
}

# test makes the images, has a cluster, and runs deploy/kube.sh on it.
test_chart() {
	local began=$SECONDS limit=${KUBE_SECONDS:-86400}
	if [ -n "${KUBE_SECONDS:-}" ]; then
		built || cannot "its programs are not made; make kube makes them, in a quarter of an hour"
		[ "$limit" -ge 300 ] || cannot "only $limit s are left for it, and 300 are needed"
	fi
	engine_started=no kind=no
	mkdir -p bin/kube
	VERSION=$(git describe --tags --always 2>/dev/null || echo dev)
	export VERSION
	finish() {
		status=$?
		trap - EXIT
		if [ $kind = yes ]; then
			kind delete cluster --name millrace-test || true
		else
			stop || true
			[ $engine_started = no ] || .ci/engine.sh stop
		fi
		exit $status
	}
	trap finish EXIT
	if elsewhere; then
		command -v kind >/dev/null && command -v kubectl >/dev/null && command -v helm >/dev/null ||
			cannot "a Docker engine answers that is not .ci/engine.sh's, and kind, kubectl and helm are not all installed"
	else
		build
		.ci/engine.sh run true 2>/dev/null || engine_started=yes
		.ci/engine.sh start
	fi
	# Tomorrow's version: today's with a migration more.
	rm -rf bin/kube/next
	mkdir -p bin/kube/next bin/kube/image
	git ls-files -z --cached --others --exclude-standard | tar --create --null --ignore-failed-read --files-from - 2>/dev/null | tar --extract --directory bin/kube/next
	local last
	last=$(find bin/kube/next/migrations -name '*.up.sql' | sed -E 's|.*/0*([0-9]+)_.*|\1|' | sort -n | tail -n 1)
	printf 'CREATE TABLE millrace_next (id bigint);\n' >"bin/kube/next/migrations/$(printf %04d $((last + 1)))_next.up.sql"
	printf 'DROP TABLE millrace_next;\n' >"bin/kube/next/migrations/$(printf %04d $((last + 1)))_next.down.sql"
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/kube/image/client ./internal/chaos/client
	printf 'FROM scratch\nCOPY client /client\nUSER 65532:65532\nENTRYPOINT ["/client"]\n' >bin/kube/image/Dockerfile
	image() { # NAME FOLDER
		.ci/engine.sh run docker build --build-arg VERSION --tag "$1" "$2" >bin/kube/log 2>&1 || {
			tail -n 20 bin/kube/log >&2
			exit 1
		}
	}
	image millrace:dev .
	image millrace:next bin/kube/next
	image millrace-client:dev bin/kube/image
	echo "The images are there ($((SECONDS - began)) s)"
	if elsewhere; then
		kind=yes
		export KUBECONFIG=$PWD/bin/kube/kubeconfig
		kind create cluster --name millrace-test --wait 3m
		deploy/kube.sh kind load docker-image --name millrace-test
		return
	fi
	# These a registry would give: the servers', and the Collector's.
	mapfile -t foreign < <(sed -nE 's|.*image: ([a-z0-9/-]+:[0-9][^ ]*).*|\1|p' deploy/helm/millrace/values-demo.yaml deploy/helm/examples/collector.yaml)
	mkdir -p bin/kube/collector
	cp "$programs/collector" bin/kube/collector/
	printf 'FROM scratch\nCOPY collector /otelcol-k8s\nUSER 10001:10001\nENTRYPOINT ["/otelcol-k8s"]\n' >bin/kube/collector/Dockerfile
	image "${foreign[-1]}" bin/kube/collector
	start
	load millrace:dev millrace:next millrace-client:dev "${foreign[@]}"
	echo "The node has the images ($((SECONDS - began)) s)"
	status=0
	timeout --kill-after 60 $((limit - SECONDS + began)) .ci/kube.sh run deploy/kube.sh true | tee bin/kube/log || status=$?
	case $status in
	124 | 137) cannot "the chart is not tested to the end: $limit s were over in the step $(grep '^== ' bin/kube/log | tail -n 1)" ;;
	esac
	return $status
}

case ${1:-} in
test) test_chart ;;
build) build ;;
built) built ;;
start) start ;;
load)
	shift
	load "$@"
	;;
run)
	shift
	running || cannot "none runs; .ci/kube.sh start starts one"
	run "$@"
	;;
stop) stop ;;
*)
	echo "usage: .ci/kube.sh test|build|built|start|load IMAGE…|run COMMAND…|stop" >&2
	exit 2
	;;
esac
