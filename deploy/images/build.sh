#!/usr/bin/env bash
# deploy/images/build.sh BASE: makes the images that stand in for those which docker-compose.yml and the Dockerfile name,
# under the same names, from the image BASE. .ci/engine.sh runs it on its own engine alone: elsewhere these names belong to
# the official images. What is there and has not changed is left.
set -euo pipefail
cd "$(dirname "$0")/../.."
base=$1

# standins prints a line for each image: its name, and the folder that it is made from.
standins() {
	{
		sed -nE 's/^ *image: ([^$ ]+)$/\1/p' docker-compose.yml
		sed -nE 's/^FROM .*(golang:[^ ]+).*$/\1/p' Dockerfile
	} | sort -u | while read -r image; do
		local folder=${image##*/}
		echo "$image deploy/images/${folder%%:*}"
	done
}

# modules copies to a folder what go.sum lists, from this machine's module cache: the proxy of builds without a network.
modules() {
	local from path version file
	from=$(go env GOMODCACHE)/cache/download
	while read -r path version _; do
		file=$(sed 's/[A-Z]/!\l&/g' <<<"$path/@v/${version%/go.mod}")
		mkdir -p "$1/${file%/*}"
		for file in "$from/$file".{mod,info,zip}; do
			[ ! -e "$file" ] || cp "$file" "$1/${file#"$from"/}"
		done
	done <go.sum
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
standins | while read -r image folder; do
	if [ ! -e "$folder/Dockerfile" ]; then
		echo "$image has no stand-in: $folder/Dockerfile is missing" >&2
		exit 1
	fi
	key=$(find "$folder" -type f | sort | xargs sha256sum)$base
	contexts=()
	if [ "$folder" = deploy/images/golang ]; then
		key+=$(go version)$(sha256sum go.sum)
		contexts=(--build-context "go=$(go env GOROOT)" --build-context "modules=$work/modules")
	fi
	key=$(sha256sum <<<"$key" | cut -c1-16)
	[ "$(docker image inspect --format '{{index .Config.Labels "millrace.standin"}}' "$image" 2>/dev/null)" != "$key" ] || continue
	echo "Making a stand-in for $image"
	if [ ${#contexts[@]} -gt 0 ]; then
		modules "$work/modules"
	fi
	docker build --quiet --build-arg BASE="$base" --label "millrace.standin=$key" "${contexts[@]}" --tag "$image" "$folder" >"$work/id" </dev/null
done
