# Debian 13 in a folder, ~/.cache/millrace/debian-13-…, made once by debootstrap in two or three minutes. Nothing of the
# machine is changed but that debootstrap is installed. It has the servers that .ci/newer.sh tests on, and the Docker
# engine and the programs of deploy/engine.sh and deploy/images.
#
# Bash sources this file. The caller has a function cannot MESSAGE, which ends the script with status 77. Afterwards
# as_root COMMAND… runs a command as root, $cache is Millrace's cache folder, and $debian is the folder once
# ensure_debian has run. $debian_seconds is how long debootstrap may take.

suite=trixie
packages=rabbitmq-server,postgresql,redis-server,docker.io,docker-cli,docker-compose,docker-buildx,iptables,iproute2,haproxy,prometheus,prometheus-postgres-exporter,ca-certificates,curl,wget
debian_seconds=${debian_seconds:-1800}

if [ "$(id -u)" = 0 ]; then
	as_root() { "$@"; }
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
	as_root() { sudo -n "$@"; }
else
	as_root() { cannot "root is needed, or sudo that asks for no password, to install Debian 13 into a folder and to run it there"; }
fi

# The key changes with what is in the folder.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/millrace
debian=$cache/debian-13-$(sha256sum <<<"$suite $packages $(uname -m) 1" | cut -c1-8)

# mirror prints the address that this machine has Debian's packages from, or nothing where it is not Debian: then
# debootstrap has its own.
mirror() {
	apt-get indextargets --format '$(REPO_URI) $(LABEL) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
		awk '$2 == "Debian" && $3 !~ /-/ && $4 == "main" && $1 ~ /^(https?|file):/ { print $1; exit }'
}

# ensure_debian makes the folder where it is missing.
ensure_debian() {
	[ ! -d "$debian" ] || return 0
	as_root true
	command -v apt-get >/dev/null || cannot "apt installs Debian 13 into a folder, and is missing"
	if ! as_root sh -c 'command -v debootstrap' >/dev/null; then
		echo "Installing debootstrap"
		as_root .ci/apt.sh update || cannot "apt-get update fails"
		as_root .ci/apt.sh install -y --no-install-recommends debootstrap debian-archive-keyring || cannot "apt can't install debootstrap"
	fi
	local proxy="" script=/usr/share/debootstrap/scripts/$suite part
	eval "$(apt-config shell proxy Acquire::http::Proxy)"
	[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid # an older debootstrap
	mkdir -p "$cache"
	# What an earlier run was cut off in is of no use.
	as_root find "$cache" -maxdepth 1 -name 'debian-13.??????*' -mmin +60 -exec rm -rf --one-file-system {} +
	part=$(mktemp -d "$cache/debian-13.XXXXXX")
	echo "Installing Debian 13 with $packages into $debian, once"
	# Renamed when it is whole, so that what is there is whole.
	if ! as_root env ${proxy:+http_proxy="$proxy"} timeout --kill-after 10 "$debian_seconds" debootstrap --variant=minbase --include="$packages" "$suite" "$part" "$(mirror)" "$script" >"$part.log" 2>&1; then
		tail -n 5 "$part.log" >&2
		as_root rm -rf --one-file-system "$part" "$part.log"
		cannot "debootstrap of $suite fails, or takes more than $debian_seconds s"
	fi
	# RabbitMQ 4 looks up the name of this machine, and of every client.
	as_root sh -euc 'chmod 755 "$1"; rm -f "$1"/var/cache/apt/archives/*.deb; printf "127.0.0.1 localhost millrace\n" >"$1/etc/hosts"' sh "$part"
	as_root mv --no-target-directory "$part" "$debian" 2>/dev/null || as_root rm -rf --one-file-system "$part" # another one was sooner
	rm -f "$part.log"
}
