#!/usr/bin/env bash
# Brings the clients that the tests of deploy/ send with into a folder, each again only when its version changes. What can't be had is
# said, and is no failure: the tests of it are skipped. Nothing of the machine is changed: Debian's packages are unpacked, not installed.
#
#   install.sh FOLDER
set -euo pipefail
mkdir -p "$1"
to=$(cd "$1" && pwd)
cd "$(dirname "$0")"

# without WHAT says that a client can't be had here.
without() { echo "The clients of $1 are not to be had here: $2"; }

# fresh STAMP FILE… reports whether what was made from these files is still there.
fresh() {
	local stamp=$1
	shift
	[ "$(cat "$stamp" 2>/dev/null)" = "$(sha256sum "$@")" ]
}

go_clients() {
	local sources=(go.mod go.sum lines/*.go otlp/*.go bulk/*.go gelf/*.go)
	fresh "$to/go.stamp" "${sources[@]}" && return
	echo "Building the clients in Go"
	timeout 600 go build -trimpath -ldflags "-s -w" -o "$to/" ./otlp ./bulk ./gelf || { without Go "go build fails"; return; }
	sha256sum "${sources[@]}" >"$to/go.stamp"
}

# The Collector takes minutes to build, so it is built where it is asked for.
collector_client() {
	[ -n "${MILLRACE_SLOW_CLIENTS:-}" ] || return 0
	local sources=(collector/go.mod collector/go.sum collector/*.go)
	fresh "$to/collector.stamp" "${sources[@]}" && return
	echo "Building the OpenTelemetry Collector, in some minutes"
	go -C collector build -trimpath -ldflags "-s -w" -o "$to/" . || { without "the Collector" "go build fails"; return; }
	sha256sum "${sources[@]}" >"$to/collector.stamp"
}

# The folder's name begins with a dot so that go ./... passes by what some packages of npm bring.
node_clients() {
	command -v npm >/dev/null || { without Node "there is no npm"; return; }
	mkdir -p "$to/.node"
	cp node/send.mjs node/package.json node/package-lock.json node/.npmrc "$to/.node/"
	fresh "$to/.node/.installed" node/package-lock.json && return
	echo "Installing the clients of Node"
	(cd "$to/.node" && timeout 180 npm ci --ignore-scripts --silent) || { without Node "npm ci fails"; return; }
	sha256sum node/package-lock.json >"$to/.node/.installed"
}

# syslog-ng and rsyslog can't both be installed, and each would start; so would nginx.
debian_clients() {
	fresh "$to/.debian/.installed" install.sh && return
	command -v apt-get >/dev/null || { without Debian "there is no apt"; return; }
	local packages part
	packages=$(for set in "syslog-ng-core syslog-ng-mod-http syslog-ng-scl" "rsyslog rsyslog-elasticsearch" "nginx" "systemd-journal-remote"; do
		apt-get install --simulate --no-install-recommends $set 2>/dev/null | sed -n 's/^Inst \([^ ]*\).*/\1/p'
	done | sort -u)
	[ -n "$packages" ] || { without Debian "apt does not know syslog-ng, rsyslog, nginx or systemd-journal-remote; apt-get update may help"; return; }
	echo "Unpacking syslog-ng, rsyslog, nginx and systemd-journal-remote"
	part=$(mktemp -d "$to/.debian.XXXXXX")
	(cd "$part" && apt-get download -qq $packages 2>/dev/null) || { rm -rf "$part"; without Debian "apt-get download fails"; return; }
	for package in "$part"/*.deb; do
		dpkg-deb --extract "$package" "$part"
		rm "$package"
	done
	sha256sum install.sh >"$part/.installed"
	rm -rf "$to/.debian"
	mv "$part" "$to/.debian"
}

go_clients
node_clients
debian_clients
collector_client
